"""Rounds of answers from an engine that says which policy it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cool_rlhf.answers import read_responses
from cool_rlhf.config import Config
from cool_rlhf.online.responses import EARLY, LATE, SFT
from cool_rlhf.online_stage import answer_prompts
from cool_rlhf.protocols import Message, Prompt, Rollout

PROMPTS = [Prompt(f"p-{n}", [Message(role="user", content=f"question {n}")], "math", None) for n in range(2)]


def no_gold(response: object) -> None:
    return None


class Engine:
    """All of the roles. Responses name the policy, scores are the number of the round that asks."""

    def __init__(self, ready: type, round: int) -> None:
        self.ready, self.round = ready, round
        self.sampler = self
        self.holds, self.version = "", 0

    def load(self, path: str, version: int) -> None:
        self.holds, self.version = path, version

    def sample(self, prompts: Sequence[Prompt], *, seed: int, version: int) -> Any:
        assert version == self.version
        two = torch.zeros(2, dtype=torch.long)
        return self.ready([Rollout(p, two[:1], two[1:], torch.zeros(1), True, version, self.holds) for p in prompts])

    def logprobs(self, sequences: Sequence[Tensor], *, temperature: float) -> Any:
        return self.ready([torch.zeros(len(sequence)) for sequence in sequences])

    def scores_and_states(self, conversations: Sequence[object]) -> Any:
        return self.ready([(float(self.round), torch.zeros(3))] * len(conversations))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of a run on the user's own prompts, which no gold rule judges."""
    made = Config(output_dir=str(tmp_path))
    made.data.prompts = ["mine.jsonl"]
    made.online.samples_per_prompt = 3
    return made


def test_every_policy_answers_once_in_however_many_rounds(config: Config, ready: type, tmp_path: Path) -> None:
    for round in range(4):
        engine = Engine(ready, round)
        checkpoints = {SFT: "sft", EARLY: f"early {round}", LATE: f"late {round}"}
        roles: Any = SimpleNamespace(rollouts=engine, reference=engine, scorer=engine)
        answered = answer_prompts(config, roles, PROMPTS, checkpoints, no_gold, round, resumed=False)
        each = Counter(response.text for response in read_responses(tmp_path / f"rounds/{round}/responses.jsonl"))
        policies = ["sft", *(f"{policy} {past}" for past in range(round + 1) for policy in (EARLY, LATE))]
        assert each == dict.fromkeys(policies, 6)
        assert len({response.id for response in answered}) == len(answered)
        assert {response.score for response in answered} == {float(round)}, "all by the round's reward model"


def test_what_was_answered_before_a_round_was_interrupted_is_not_asked_again(
    config: Config, ready: type, tmp_path: Path
) -> None:
    engine, other = Engine(ready, 0), Engine(ready, 7)
    roles: Any = SimpleNamespace(rollouts=engine, reference=engine, scorer=engine)
    first = answer_prompts(config, roles, PROMPTS, {SFT: "sft", LATE: "late"}, no_gold, 0, resumed=False)
    assert read_responses(tmp_path / "rounds/0/responses.jsonl") == first
    again = SimpleNamespace(rollouts=None, reference=None, scorer=other)
    checkpoints = {SFT: "sft", LATE: "late"}
    resumed: Sequence[Any] = answer_prompts(config, again, PROMPTS, checkpoints, no_gold, 0, resumed=True)  # type: ignore[arg-type]
    assert [(r.id, r.text, r.kl) for r in resumed] == [(r.id, r.text, r.kl) for r in first]
    assert all(r.hidden is not None and r.score == 7.0 for r in resumed), "the detectors look at hidden states too"
    changed = answer_prompts(config, roles, PROMPTS, {SFT: "sft", LATE: "another"}, no_gold, 0, resumed=False)
    assert {r.text for r in changed} == {"sft", "another"}, "a round that is made anew asks anew"
