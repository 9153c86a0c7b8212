"""What the driver's side of the policy asks of its ranks."""

from __future__ import annotations

from dataclasses import replace

import torch

from cool_rlhf.config import PPOConfig
from cool_rlhf.protocols import Experience
from cool_rlhf.roles.policy import RemotePolicy


class Ranks:
    """Two of them, which note what they are asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[tuple]]] = []

    def __len__(self) -> int:
        return 2

    def each(self, name: str, arguments: list[tuple]) -> list:
        self.asked.append((name, arguments))
        return []


def test_an_update_weighs_divergence_and_entropy_as_it_is_told_and_kept_passes_as_the_settings_say() -> None:
    ranks = Ranks()
    settings = replace(PPOConfig(), entropy_coefficient=0.3, clip_high=0.4)
    policy = RemotePolicy(ranks, settings, 0.7, [])
    zeros = torch.zeros(4)
    batch = [Experience(torch.arange(4), zeros > 0, zeros, zeros, zeros, zeros, zeros) for _ in range(4)]
    policy.update(batch, [], 1e-3, 0.1, 0.2)
    policy.logprobs([one.tokens for one in batch], begins=[1] * 4, keep=True)
    (_, updates), (_, passes) = ranks.asked
    for objective in (arguments[2] for arguments in updates):
        assert (objective.kl_coefficient, objective.entropy_coefficient) == (0.1, 0.2)
        assert (objective.clip.low, objective.clip.high, objective.temperature) == (0.2, 0.4, 0.7)
    assert {arguments[4] for arguments in updates} == {1e-3}
    assert {arguments[2].entropy_coefficient for arguments in passes} == {0.3}, "its entropies may be learnt from"


def test_without_texts_no_rank_passes_over_any() -> None:
    ranks, zeros = Ranks(), torch.zeros(4)
    policy = RemotePolicy(ranks, PPOConfig(), 1.0, [])
    batch = [Experience(torch.arange(4), zeros > 0, zeros, zeros, zeros, zeros, zeros) for _ in range(4)]
    for texts in ([], [torch.arange(5)]):
        policy.update(batch, texts, 1e-3, 0.0, 0.0)
    without, beside = ([arguments[1] for arguments in asked] for _, asked in ranks.asked)
    assert without == [[], []]
    assert sorted(map(len, (texts for rank in beside for texts in rank))) == [0, 1], "ranks keep step"
