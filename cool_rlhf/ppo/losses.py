"""The clipped policy loss and the value loss (Schulman et al. 2017, arXiv 1707.06347), per token and as means.

The means serve whoever holds the whole batch. Where a batch is cut over micro-batches and ranks, sum the per-token
losses and divide by the whole batch's token count: means of parts would weigh tokens by how the batch was cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """Where the ratio ρ = π / π_old stops counting."""

    low: float  # 1 − low is the least ratio that a token with a negative advantage is pushed to; ours 0.2
    high: float  # 1 + high is the greatest one with a positive advantage; ours is ``low`` (report silent)
    dual: float  # > 1: with a negative advantage the loss is at most dual · |A|; 0: no such bound

    @classmethod
    def symmetric(cls, half_width: float) -> Clip:
        return cls(half_width, half_width, 0.0)


def policy_loss_per_token(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: Clip
) -> Tensor:
    """Clipped surrogate of each token, 0 outside the mask; same shape as its arguments::

        ρ_t = exp(log π(t) − log π_old(t))
        S_t = min(ρ_t · A_t, clamp(ρ_t, 1 − low, 1 + high) · A_t)
        L_t = −S_t, and with a dual clip −max(S_t, dual · A_t) where A_t < 0

    Unequal sides are DAPO's (Yu et al. 2025, arXiv 2503.14476), the dual clip is Ye et al.'s (2020, arXiv 1912.09729):
    without it a token whose ratio has exploded under a negative advantage outweighs all others.
    """
    ratio = torch.where(mask, logprobs - old_logprobs, 0.0).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip.low, 1 + clip.high) * advantages)
    if clip.dual:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, clip.dual * advantages), surrogate)
    return torch.where(mask, -surrogate, 0.0)


def clipped_tokens(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: Clip) -> Tensor:
    """True where a clip stops the gradient: the ratio has already gone beyond it in the advantage's direction, or so
    far against a negative one that the dual clip bounds the loss."""
    ratio = torch.where(mask, logprobs - old_logprobs, 0.0).exp()
    stopped = ((advantages > 0) & (ratio > 1 + clip.high)) | ((advantages < 0) & (ratio < 1 - clip.low))
    if clip.dual:
        stopped |= (advantages < 0) & (ratio > clip.dual)
    return mask & stopped


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Mean of :func:`policy_loss_per_token` over the mask, a scalar; 0 where the mask is empty.

    Args:
        logprobs: log-probabilities under the policy that is trained, any shape.
        old_logprobs: the same tokens under the policy before the update.
        advantages: same shape; constants.
        mask: bool, True on response tokens.
        clip: half-width of the ratio's range, ours 0.2 (the report does not state it).
    """
    return _masked_mean(policy_loss_per_token(logprobs, old_logprobs, advantages, mask, Clip.symmetric(clip)), mask)


def value_loss_per_token(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """½ (V_t − R_t)² of each token, 0 outside the mask. Values are not clipped (report, section 4.2.3)."""
    return torch.where(mask, values - returns, 0.0).square() / 2


def clipped_value_loss_per_token(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """½ max((V_t − R_t)², (V'_t − R_t)²) with V'_t = clamp(V_t, V_old − clip, V_old + clip); 0 outside the mask.

    The value loss of the first PPO code (baselines' ``ppo2``), off by default: a value that has gone further than
    ``clip`` from what it was has no gradient any more, unless it has gone away from its return.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    worse = torch.maximum(value_loss_per_token(values, returns, mask), value_loss_per_token(near, returns, mask))
    return torch.where(mask, worse, 0.0)


def value_loss(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Mean of :func:`value_loss_per_token` over the mask, a scalar; 0 where the mask is empty."""
    return _masked_mean(value_loss_per_token(values, returns, mask), mask)


def _masked_mean(per_token: Tensor, mask: Tensor) -> Tensor:
    return per_token.sum() / mask.sum().clamp(min=1)
