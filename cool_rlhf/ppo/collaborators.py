"""What PPO works with and reads from: models, sampler and data that are handed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cool_rlhf.data.streams import Stream, TextStream
from cool_rlhf.instructions import Instruction
from cool_rlhf.ppo.rewards import Recipe
from cool_rlhf.protocols import (
    Critic,
    Future,
    LanguageModel,
    Policy,
    Prompt,
    Rollout,
    Sampler,
    Scorer,
    StaleWeightsError,
)

if TYPE_CHECKING:
    from torch import Tensor

Gold = Callable[[Rollout], float | None]
"""A response's true score in [0, 1]; None in a domain that has no rule. It is watched, never learned from."""


@dataclass(frozen=True)
class Models:
    """The four models of PPO and the engine that samples from the first."""

    policy: Policy
    critic: Critic
    reference: LanguageModel
    scorer: Scorer
    sampler: Sampler


@dataclass(frozen=True)
class Data:
    """What a round reads; nothing of the three held-out parts stands in ``prompts`` or ``pretrain``."""

    prompts: Stream[Prompt]
    pretrain: TextStream
    validation: Sequence[Prompt]
    gold: Gold
    recipes: Mapping[str, Recipe] = field(default_factory=dict)  # domain → what its responses are rewarded for
    held_out_texts: Sequence[Tensor] = ()  # (L,) int64 each, for the language model's loss
    instructions: Sequence[Instruction] = ()


@dataclass(frozen=True)
class PendingRollouts:
    """Responses that are under way, with weights of ``version``."""

    version: int
    future: Future[list[Rollout]]

    def result(self) -> list[Rollout]:
        """One for each prompt; StaleWeightsError where one was drawn with weights of another version."""
        rollouts = self.future.result()
        stale = {rollout.policy_version for rollout in rollouts} - {self.version}
        if stale:
            raise StaleWeightsError(
                f"responses were sampled with weights of version {sorted(stale)}, not {self.version}"
            )
        return rollouts


def start_sampling(sampler: Sampler, prompts: Sequence[Prompt], *, seed: int, version: int) -> PendingRollouts:
    """Ask for one response to each prompt, with the weights of ``version``."""
    return PendingRollouts(version, sampler.sample(prompts, seed=seed, version=version))
