"""How good the policy is on what it does not learn from: its reward, and beside it what alignment may cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cool_rlhf.config import PPOConfig
from cool_rlhf.instructions import Instruction
from cool_rlhf.ppo.collaborators import Data, Models, start_sampling
from cool_rlhf.ppo.experience import by_domain, score_metrics, to_score
from cool_rlhf.ppo.observer import Observer
from cool_rlhf.ppo.rewards import Reward, ask_rewards, part_metrics, recipe_for
from cool_rlhf.protocols import Future, Policy, Rollout, Scorer
from cool_rlhf.schedule import derive_seed

if TYPE_CHECKING:
    from torch import Tensor


def validate(
    models: Models, data: Data, settings: PPOConfig, observer: Observer, step: int, *, seed: int, version: int
) -> dict[str, float]:
    """Sample once for each held-out prompt and each instruction, always with the same seed; show the observer, and say
    how good the responses are, how far the policy is from the reference, and what it has forgotten.

    Returns the names that :func:`cool_rlhf.metric_names.validation_metrics` lists.
    """
    prompts = data.validation[: settings.validation_prompts]
    asked = [*prompts, *(instruction.prompt for instruction in data.instructions)]
    sampled = start_sampling(models.sampler, asked, seed=derive_seed(seed, "validation"), version=version).result()
    rollouts, followed = sampled[: len(prompts)], sampled[len(prompts) :]
    sequences = [rollout.tokens for rollout in rollouts]
    under = {name: ask_under(models.scorer, rollouts, name) for name in settings.validation_conditions}
    begins = [len(rollout.prompt_tokens) for rollout in rollouts]
    logprobs = models.policy.logprobs(sequences, begins=begins)
    reference = models.reference.logprobs(sequences, begins=begins)
    pending = ask_rewards(models.scorer, rollouts, data.recipes)
    text_loss = held_out_loss(models.policy, data.held_out_texts) if data.held_out_texts else {}
    rewards = pending.result()
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
        **text_loss,
        **instruction_metrics(data.instructions, followed),
    }


def ask_under(scorer: Scorer, rollouts: Sequence[Rollout], condition: str) -> Future[list[float]]:
    """Every response under ``condition``, whatever its own domain."""
    return scorer.score([replace(to_score(rollout), condition=condition) for rollout in rollouts])


def held_out_loss(policy: Policy, texts: Sequence[Tensor]) -> dict[str, float]:
    """``validation/lm_loss``: mean cross-entropy of the next token over all of ``texts``, in nats, at temperature 1
    whatever responses are sampled at."""
    logprobs = policy.logprobs(texts, temperature=1.0).result()
    return {"validation/lm_loss": -sum(float(each.sum()) for each in logprobs) / sum(len(text) - 1 for text in texts)}


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
    """Of every response; without a gold rule for all, what the rules of its domain's recipe gave it."""
    if data.gold is not None:
        return [data.gold(rollout) for rollout in rollouts]
    pairs = zip(rollouts, rewards, strict=True)
    return [recipe_for(data.recipes, rollout.prompt.domain).gold(reward.rules) for rollout, reward in pairs]


def gold_metrics(rollouts: Sequence[Rollout], gold: Sequence[float | None], name: str) -> dict[str, float]:
    """Mean of every gold score there is under ``name`` and of each domain's under ``name/DOMAIN``; nothing where no
    domain has a rule."""
    known = [value for value in gold if value is not None]
    return {name: _mean(known), **by_domain(rollouts, gold, name)} if known else {}


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
