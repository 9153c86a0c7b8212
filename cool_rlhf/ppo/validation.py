"""How good the policy is on what it does not learn from: its reward, and beside it what alignment may cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cool_rlhf.config import PPOConfig
from cool_rlhf.instructions import Instruction
from cool_rlhf.ppo.collaborators import Data, Models, PendingRollouts, start_sampling
from cool_rlhf.ppo.experience import by_domain, score_metrics, to_score
from cool_rlhf.ppo.observer import Observer
from cool_rlhf.ppo.rewards import Reward, ask_rewards, part_metrics, recipe_for
from cool_rlhf.protocols import Future, Rollout, Scorer
from cool_rlhf.schedule import derive_seed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PendingValidation:
    """The responses that a validation looks at, and what the policy says of held-out texts meanwhile."""

    sampled: PendingRollouts  # to the held-out prompts, then to the instructions
    texts: Future[list[Tensor]] | None  # log-probabilities of each text; None without texts


def ask_validation(models: Models, data: Data, settings: PPOConfig, *, seed: int, version: int) -> PendingValidation:
    """Ask for one response to each held-out prompt and each instruction, always with the same seed, and for the texts'
    log-probabilities, at temperature 1 whatever responses are sampled at."""
    asked = [*data.validation[: settings.validation_prompts], *(each.prompt for each in data.instructions)]
    sampled = start_sampling(models.sampler, asked, seed=derive_seed(seed, "validation"), version=version)
    texts = models.policy.logprobs(data.held_out_texts, temperature=1.0) if data.held_out_texts else None
    return PendingValidation(sampled, texts)


def validate(
    models: Models, data: Data, settings: PPOConfig, observer: Observer, step: int, pending: PendingValidation
) -> dict[str, float]:
    """Show the observer the responses, and say how good they are, how far the policy is from the reference, and what it
    has forgotten.

    Returns the names that :func:`cool_rlhf.metric_names.validation_metrics` lists.
    """
    sampled, count = pending.sampled.result(), len(data.validation[: settings.validation_prompts])
    rollouts, followed = sampled[:count], sampled[count:]
    sequences = [rollout.tokens for rollout in rollouts]
    under = {name: ask_under(models.scorer, rollouts, name) for name in settings.validation_conditions}
    begins = [len(rollout.prompt_tokens) for rollout in rollouts]
    logprobs = models.policy.logprobs(sequences, begins=begins)
    reference = models.reference.logprobs(sequences, begins=begins)
    rewards = ask_rewards(models.scorer, rollouts, data.recipes).result()
    scores = [reward.total for reward in rewards]
    pairs = zip(logprobs.result(), reference.result(), rollouts, strict=True)
    kl = sum(float((ours - theirs)[rollout.mask].sum()) for ours, theirs, rollout in pairs)
    gold = known_gold(data, rollouts, rewards)
    under_metrics: dict[str, float] = {}
    for name, answer in under.items():
        under_metrics |= score_metrics(rollouts, answer.result(), f"validation/under/{name}")
    observer.samples(step, rollouts, scores, gold)
    return {
        **score_metrics(rollouts, scores, "validation/score"),
        **part_metrics(rollouts, rewards, data.recipes, "validation"),
        **under_metrics,
        **gold_metrics(rollouts, gold, "validation/gold"),
        "validation/kl": kl / len(rollouts),
        "validation/response_length": _mean([len(rollout.response_tokens) for rollout in rollouts]),
        "validation/finished": _mean([rollout.finished for rollout in rollouts]),
        **(held_out_loss(pending.texts.result()) if pending.texts else {}),
        **instruction_metrics(data.instructions, followed),
    }


def ask_under(scorer: Scorer, rollouts: Sequence[Rollout], condition: str) -> Future[list[float]]:
    """Every response under ``condition``, whatever its own domain."""
    return scorer.score([replace(to_score(rollout), condition=condition) for rollout in rollouts])


def held_out_loss(logprobs: Sequence[Tensor]) -> dict[str, float]:
    """``validation/lm_loss``: mean cross-entropy of the next token over all texts, in nats, by the (L,) log-probability
    of every token; the first of a text is given, not predicted."""
    return {
        "validation/lm_loss": -sum(float(each.sum()) for each in logprobs) / sum(len(each) - 1 for each in logprobs)
    }


def instruction_metrics(instructions: Sequence[Instruction], rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Share of instructions followed: ``validation/instructions``, and of each kind. A response that was cut at the
    token limit follows none."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for instruction, rollout in zip(instructions, rollouts, strict=True):
        kinds[instruction.kind].append(float(rollout.finished and instruction.is_followed(rollout.response)))
    if not kinds:
        return {}
    name = "validation/instructions"
    shares = {f"{name}/{kind}": _mean(followed) for kind, followed in sorted(kinds.items())}
    return {name: _mean([value for followed in kinds.values() for value in followed]), **shares}


def known_gold(data: Data, rollouts: Sequence[Rollout], rewards: Sequence[Reward]) -> list[float | None]:
    """Of every response what the data's gold rule says; where that says nothing, what the rules of its domain's recipe
    gave it."""

    def of(rollout: Rollout, reward: Reward) -> float | None:
        exact = data.gold(rollout)
        return recipe_for(data.recipes, rollout.prompt.domain).gold(reward.rules) if exact is None else exact

    return list(map(of, rollouts, rewards))


def gold_metrics(rollouts: Sequence[Rollout], gold: Sequence[float | None], name: str) -> dict[str, float]:
    """Mean of every gold score there is under ``name`` and of each domain's under ``name/DOMAIN``; nothing where no
    domain has a rule."""
    known = [value for value in gold if value is not None]
    return {name: _mean(known), **by_domain(rollouts, gold, name)} if known else {}


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
