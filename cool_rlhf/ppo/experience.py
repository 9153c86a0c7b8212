"""From rollouts and what the models say of them to experience: reward shaping, credit, and what to watch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cool_rlhf.ppo.advantages import gae, whiten
from cool_rlhf.ppo.kl import kl_estimate
from cool_rlhf.ppo.moments import Moments
from cool_rlhf.protocols import Experience, Message, Rollout, ScoredConversation


@dataclass(frozen=True)
class Judged:
    """A rollout and what the frozen and the trained models say of it, before any update."""

    rollout: Rollout
    score: float  # the whole reward by the domain's recipe, before penalty and KL
    logprobs: Tensor  # (L,) float32, log π of token t; of the response's tokens at least
    reference_logprobs: Tensor  # (L,) float32, likewise
    values: Tensor  # (L,) float32, values[t] before token t is chosen


@dataclass(frozen=True)
class Shaping:
    """How rewards and advantages are made of a judged rollout."""

    kl_coefficient: float  # 0 where the divergence stands in the loss
    kl_kind: str
    score_moments: Moments | None  # scores are standardised by them; None: taken as they are
    score_clip: float  # scores, standardised or not, are cut to ± this; 0: not cut
    unfinished_penalty: float
    discount: float
    trace_decay: float  # of the advantages
    critic_trace_decay: float  # of the returns
    whiten_advantages: bool
    old_logprobs: Literal["trainer", "engine"]  # whose log-probabilities the ratio starts from
    correction_cap: float  # 0: off; see `engine_weights`


def to_score(rollout: Rollout) -> ScoredConversation:
    """The conversation that the reward model sees; the rollout's domain is its condition."""
    answer: Message = {"role": "assistant", "content": rollout.response}
    return ScoredConversation([*rollout.prompt.messages, answer], rollout.prompt.domain, rollout.finished)


def token_rewards(judged: Judged, shaping: Shaping) -> Tensor:
    """Reward of each response token, (R,): −β · KL_t, and on the last one the score besides.

    The score, less ``unfinished_penalty`` for a response cut at the token limit, stands on the last token that the
    policy chose: the end of turn if it came, never a token after it.
    """
    mask = judged.rollout.mask
    kl = kl_estimate(judged.logprobs[mask], judged.reference_logprobs[mask], shaping.kl_kind)
    rewards = -shaping.kl_coefficient * kl
    score = shaped_score(judged.score, shaping)
    rewards[-1] += score - (0.0 if judged.rollout.finished else shaping.unfinished_penalty)
    return rewards


def shaped_score(score: float, shaping: Shaping) -> float:
    """``score`` standardised, then cut, each where ``shaping`` says so."""
    if shaping.score_moments is not None:
        score = shaping.score_moments.standardise(score)
    return max(-shaping.score_clip, min(shaping.score_clip, score)) if shaping.score_clip > 0 else score


def engine_weights(logprobs: Tensor, engine_logprobs: Tensor, cap: float) -> Tensor:
    """Truncated importance weights min(π / π_engine, cap) of the sampled tokens (Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training").

    The engine that samples computes the policy in other kernels and precisions than the trainer. Weighing each
    token's advantage corrects the policy's loss for that; it does not for nucleus sampling, whose cut-off tokens are
    never drawn.
    """
    return (logprobs - engine_logprobs).exp().clamp(max=cap)


def make_experience(batch: Sequence[Judged], shaping: Shaping) -> list[Experience]:
    """Advantages and returns of every rollout, in order.

    Advantages go with λ = ``trace_decay``, returns with ``critic_trace_decay`` (decoupled as in Yuan et al. 2025, arXiv
    2503.01491). They are whitened, where that is on, over all tokens of the batch, and weighed afterwards.
    """
    masks = [judged.rollout.mask for judged in batch]
    lengths = torch.tensor([int(mask.sum()) for mask in masks])
    padded_mask = torch.arange(int(lengths.max())) < lengths[:, None]
    rewards = pad_sequence([token_rewards(judged, shaping) for judged in batch], batch_first=True)
    values = pad_sequence([judged.values[mask] for judged, mask in zip(batch, masks, strict=True)], batch_first=True)
    advantages, returns = gae(rewards, values, padded_mask, shaping.discount, shaping.trace_decay)
    if shaping.critic_trace_decay != shaping.trace_decay:
        _, returns = gae(rewards, values, padded_mask, shaping.discount, shaping.critic_trace_decay)
    if shaping.whiten_advantages:
        advantages = whiten(advantages, padded_mask)

    experiences = []
    for row, (judged, mask) in enumerate(zip(batch, masks, strict=True)):
        kept = padded_mask[row]
        weighted = advantages[row][kept]
        if shaping.correction_cap > 0:
            weighted = weighted * engine_weights(judged.logprobs[mask], judged.rollout.logprobs, shaping.correction_cap)
        experiences.append(
            Experience(
                tokens=judged.rollout.tokens,
                mask=mask,
                old_logprobs=_old_logprobs(judged, shaping),
                reference_logprobs=torch.where(mask, judged.reference_logprobs, 0.0),
                values=torch.where(mask, judged.values, 0.0),
                advantages=_on_whole(weighted, mask),
                returns=_on_whole(returns[row][kept], mask),
            )
        )
    return experiences


def _old_logprobs(judged: Judged, shaping: Shaping) -> Tensor:
    """(L,), 0 outside the response."""
    mask = judged.rollout.mask
    if shaping.old_logprobs == "engine":
        return _on_whole(judged.rollout.logprobs, mask)
    return torch.where(mask, judged.logprobs, 0.0)


def _on_whole(response: Tensor, mask: Tensor) -> Tensor:
    """Numbers of the response's tokens, (R,), on the whole sequence, (L,): 0 elsewhere."""
    return response.new_zeros(len(mask)).masked_scatter(mask, response)


def describe(batch: Sequence[Judged], experiences: Sequence[Experience]) -> dict[str, float]:
    """The numbers to watch at each step. KL is k1 against the reference, in nats: ``kl`` per response, the mean over
    responses of its sum over tokens; ``kl_per_token`` per response token. The advantages are what the policy learns
    from, whitened and weighed where that is on."""
    masks = [judged.rollout.mask for judged in batch]
    logprobs, reference = _on_responses([j.logprobs for j in batch], [j.reference_logprobs for j in batch], masks)
    engine = torch.cat([judged.rollout.logprobs for judged in batch])
    values, returns = _on_responses([e.values for e in experiences], [e.returns for e in experiences], masks)
    advantages = torch.cat([experience.advantages[experience.mask] for experience in experiences])
    gap = logprobs - engine
    spread = returns.var(correction=0)
    return {
        **score_metrics([judged.rollout for judged in batch], [judged.score for judged in batch], "reward/score"),
        "kl": float((logprobs - reference).sum()) / len(batch),
        "kl_per_token": float((logprobs - reference).mean()),
        "response_length": len(logprobs) / len(batch),
        "finished": _mean([float(judged.rollout.finished) for judged in batch]),
        "unfinished": _mean([float(not judged.rollout.finished) for judged in batch]),
        "surprisal": -float(logprobs.mean()),
        "engine_gap/mean": float(gap.abs().mean()),
        "engine_gap/max": float(gap.abs().max()),
        "engine_gap/ratio": float(gap.exp().mean()),
        "value/mean": float(values.mean()),
        "return/mean": float(returns.mean()),
        "advantage/mean": float(advantages.mean()),
        "advantage/deviation": float(advantages.std(correction=0)),
        "value/explained": float(1 - (returns - values).var(correction=0) / spread) if spread > 0 else 0.0,
    }


def score_metrics(rollouts: Sequence[Rollout], scores: Sequence[float], name: str) -> dict[str, float]:
    """Mean of all scores under ``name`` and of each domain's under ``name/DOMAIN``."""
    return {name: _mean(scores), **by_domain(rollouts, scores, name)}


def by_domain(rollouts: Sequence[Rollout], scores: Sequence[float | None], name: str) -> dict[str, float]:
    """Mean over each domain's rollouts that have a score (not None), as ``name/DOMAIN``; domains in sorted order."""
    groups: dict[str, list[float]] = defaultdict(list)
    for rollout, score in zip(rollouts, scores, strict=True):
        if score is not None:
            groups[rollout.prompt.domain].append(score)
    return {f"{name}/{domain}": _mean(group) for domain, group in sorted(groups.items())}


def _on_responses(a: list[Tensor], b: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    mask = torch.cat(masks)
    return torch.cat(a)[mask], torch.cat(b)[mask]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
