"""The clipped policy loss and the value loss (Schulman et al. 2017, arXiv 1707.06347), per token and as means.

The means serve whoever holds the whole batch. Where a batch is cut over micro-batches and ranks, sum the per-token
losses and divide by the whole batch's token count: means of parts would weigh tokens by how the batch was cut.
"""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss_per_token(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """Clipped surrogate of each token, 0 outside the mask; same shape as its arguments::

    ρ_t = exp(log π(t) − log π_old(t))
    L_t = −min(ρ_t · A_t, clamp(ρ_t, 1 − clip, 1 + clip) · A_t)
    """
    ratio = torch.where(mask, logprobs - old_logprobs, 0.0).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return torch.where(mask, -surrogate, 0.0)


def clipped_tokens(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """True where the clip stops the gradient: the ratio has already gone beyond it in the advantage's direction."""
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    return mask & (((advantages > 0) & (ratio > 1 + clip)) | ((advantages < 0) & (ratio < 1 - clip)))


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Mean of :func:`policy_loss_per_token` over the mask, a scalar; 0 where the mask is empty.

    Args:
        logprobs: log-probabilities under the policy that is trained, any shape.
        old_logprobs: the same tokens under the policy before the update.
        advantages: same shape; constants.
        mask: bool, True on response tokens.
        clip: half-width of the ratio's range, ours 0.2 (the report does not state it).
    """
    return _masked_mean(policy_loss_per_token(logprobs, old_logprobs, advantages, mask, clip), mask)


def value_loss_per_token(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """½ (V_t − R_t)² of each token, 0 outside the mask. Values are not clipped (report, section 4.2.3)."""
    return torch.where(mask, values - returns, 0.0).square() / 2


def value_loss(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Mean of :func:`value_loss_per_token` over the mask, a scalar; 0 where the mask is empty."""
    return _masked_mean(value_loss_per_token(values, returns, mask), mask)


def _masked_mean(per_token: Tensor, mask: Tensor) -> Tensor:
    return per_token.sum() / mask.sum().clamp(min=1)
