"""What reward model, rules, policy, reference and critic say of responses: asked for as soon as some are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cool_rlhf.ppo.collaborators import Models
from cool_rlhf.ppo.experience import Judged
from cool_rlhf.ppo.rewards import PendingRewards, Recipe, Reward, ask_rewards
from cool_rlhf.protocols import Future, Portion

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Asked:
    """A portion of a step's rollouts and the answers to it, which are under way side by side."""

    portion: Portion
    rewards: PendingRewards
    logprobs: Future[list[Tensor]]
    reference: Future[list[Tensor]]
    values: Future[list[Tensor]]


@dataclass(frozen=True)
class Keep:
    """Whether policy and critic keep their forward passes for the update that follows."""

    policy: bool = False
    critic: bool = False


def ask(models: Models, portion: Portion, recipes: Mapping[str, Recipe], keep: Keep) -> Asked:
    rollouts = [rollout for _, rollout in portion]
    sequences = [rollout.tokens for rollout in rollouts]
    begins = [len(rollout.prompt_tokens) for rollout in rollouts]
    logprobs = models.policy.logprobs(sequences, begins=begins, keep=keep.policy)
    reference = models.reference.logprobs(sequences, begins=begins)
    values = models.critic.values(sequences, keep=keep.critic)
    rewards = ask_rewards(models.scorer, rollouts, recipes)  # last: the rules run in this process
    return Asked(portion, rewards, logprobs, reference, values)


def gather(asked: Sequence[Asked]) -> tuple[list[Judged], list[Reward]]:
    """Every rollout with what was said of it, and what its reward is made of, in the order of the step's prompts."""
    found: list[tuple[int, Judged, Reward]] = []
    for each in asked:
        rewards = each.rewards.result()
        answers = zip(each.portion, rewards, each.logprobs.result(), each.reference.result(), each.values.result(),
                      strict=True)  # fmt: skip
        for (place, rollout), reward, logprobs, reference, values in answers:
            found.append((place, Judged(rollout, reward.total, logprobs, reference, values), reward))
    found.sort(key=lambda item: item[0])
    return [judged for _, judged, _ in found], [reward for _, _, reward in found]
