"""What PPO works with and reads from: models, sampler and data that are handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cool_rlhf.data.streams import Stream, TextStream
from cool_rlhf.instructions import Instruction
from cool_rlhf.ppo.rewards import Recipe
from cool_rlhf.protocols import (
    Critic,
    LanguageModel,
    Policy,
    Portion,
    Prompt,
    Rollout,
    Sampler,
    Sampling,
    Scorer,
    StaleWeightsError,
)

if TYPE_CHECKING:
    from torch import Tensor

Gold = Callable[[Rollout], float | None]
"""A response's true score in [0, 1]; None where that is not known. It is watched, never learned from."""


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
    gold: Gold  # None of a response: what the rules of its domain's recipe say
    recipes: Mapping[str, Recipe] = field(default_factory=dict)  # domain → what its responses are rewarded for
    held_out_texts: Sequence[Tensor] = ()  # (L,) integers each, all of which validation reads
    instructions: Sequence[Instruction] = ()


@dataclass(frozen=True)
class PendingRollouts:
    """Responses that are under way, with weights of ``version``."""

    version: int
    sampling: Sampling

    def portions(self) -> Iterator[Portion]:
        """As they are finished; StaleWeightsError where a response was drawn with weights of another version."""
        for portion in self.sampling.portions():
            self._check([rollout for _, rollout in portion])
            yield portion

    def result(self) -> list[Rollout]:
        """One for each prompt, in order; StaleWeightsError likewise."""
        rollouts = self.sampling.result()
        self._check(rollouts)
        return rollouts

    def _check(self, rollouts: Sequence[Rollout]) -> None:
        stale = {rollout.policy_version for rollout in rollouts} - {self.version}
        if stale:
            raise StaleWeightsError(
                f"responses were sampled with weights of version {sorted(stale)}, not {self.version}"
            )


def start_sampling(sampler: Sampler, prompts: Sequence[Prompt], *, seed: int, version: int) -> PendingRollouts:
    """Ask for one response to each prompt, with the weights of ``version``."""
    return PendingRollouts(version, sampler.sample(prompts, seed=seed, version=version))
