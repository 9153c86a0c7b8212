"""Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438) and whitening over masked sequences."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, trace_decay: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of the response tokens.

    With t⁺ the next True position of the mask after t (any gap between them is another speaker's turn, in which the
    policy chooses nothing: it neither discounts nor decays), γ = ``discount`` and λ = ``trace_decay``::

        δ_t = r_t + γ · V_{t⁺} − V_t
        A_t = δ_t + γλ · A_{t⁺}
        R_t = A_t + V_t

    After the last True position both V and A are 0, for a finished response and for one cut at the token limit alike:
    nothing is bootstrapped.

    Args:
        rewards: (B, T), reward received for token t.
        values: (B, T), the critic's estimate before token t is chosen, that is, its head at position t − 1.
        mask: (B, T) bool, True on response tokens. What the other arguments hold elsewhere is never read.
        discount: γ in [0, 1]. The report does not state it; ours is 1.
        trace_decay: λ in [0, 1]; 0.99 in the report.

    Returns:
        (advantages, returns), both (B, T), float32 or what is finer among the arguments, 0 outside the mask. Advantages
        are not normalised (report, section 4.2.3).
    """
    dtype = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.float32)
    rewards, values = rewards.to(dtype), values.to(dtype)
    advantages = torch.zeros_like(values)
    next_value = values.new_zeros(values.shape[0])
    next_advantage = values.new_zeros(values.shape[0])
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + discount * next_value - values[:, t]
        next_advantage = torch.where(here, delta + discount * trace_decay * next_advantage, next_advantage)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = torch.where(here, next_advantage, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` with mean 0 and variance 1 over the mask's True positions, all of them together; 0 elsewhere::

        (A_t − mean) / deviation,    deviation² = mean of (A_t − mean)²

    The variance divides by the number of tokens, not by one less. Equal values become 0. Off by default: the report
    does not normalise advantages.

    Args:
        values: any shape; what stands outside the mask is never read.
        mask: bool, same shape.
    """
    count = mask.sum().clamp(min=1)
    mean = torch.where(mask, values, 0.0).sum() / count
    centred = torch.where(mask, values - mean, 0.0)
    deviation = (centred.square().sum() / count).sqrt()
    rounding = 16 * torch.finfo(values.dtype).eps * mean.abs()  # all that equal values seem to deviate by
    return torch.where(deviation > rounding, centred / deviation, 0.0)
