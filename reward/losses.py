"""Losses of the conditional reward model: focal ranking and log barrier (InternLM2 report, section 4.2.1, figure 8).

All are computed in float32 at least: in bfloat16 a score near the bound rounds onto it and the barrier is infinite.
The ``*_per_pair`` and ``*_per_score`` forms serve batches that are cut over micro-batches and ranks: sum them and
divide by the whole batch's count.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Within this distance of the bound the barrier goes on as a straight line.
BARRIER_MARGIN = 0.1


def focal_ranking_per_pair(
    chosen: Tensor, rejected: Tensor, gamma: float, margin: Tensor | float | None = None, detach_focal: bool = False
) -> Tensor:
    """Focal ranking loss of each pair, (N,). With Δ = r_chosen − r_rejected − margin and P = σ(Δ)::

        L = −(1 − 2·max(0, P − ½))^γ · log P

    For P > ½ the factor is (2(1 − P))^γ = exp(γ · (log 2 + log σ(−Δ))), and that is how it is computed: as written
    it is NaN or infinite for large |Δ|. The factor is differentiated along with the rest, as the formula says, so at
    P = ½ the gradient in Δ jumps from −½ to −½ − (γ/2)·log 2 (−1.19 at γ = 2).

    Args:
        chosen, rejected: (N,) scores.
        gamma: γ ≥ 0; 0 is the plain ranking loss.
        margin: (N,) or one for all, by how much the chosen one should lead; None for none.
        detach_focal: hold the factor constant under differentiation; the gradient then does not jump.
    """
    delta = _float32(chosen) - _float32(rejected)
    if margin is not None:
        delta = delta - margin
    log_decay = torch.where(delta > 0, math.log(2) + F.logsigmoid(-delta), 0.0)
    factor = (gamma * log_decay).exp()
    if detach_focal:
        factor = factor.detach()
    return -factor * F.logsigmoid(delta)


def log_barrier_per_score(scores: Tensor, bound: float) -> Tensor:
    """Barrier of each score, same shape as ``scores``::

        L(x) = −(log(x + bound) + log(bound − x))

    Beyond |x| = bound − 0.1 it goes on as its tangent there. The report does not say what happens at the bound; so
    value and gradient stay finite and a score outside is still pushed back, where clamping would leave it there.

    Raises:
        ValueError: where ``bound`` leaves no room inside the straight part.
    """
    if bound <= BARRIER_MARGIN:
        raise ValueError(f"bound is {bound}; it must be above {BARRIER_MARGIN}")
    edge = bound - BARRIER_MARGIN
    slope = 1 / (bound - edge) - 1 / (bound + edge)
    x = _float32(scores)
    inside = x.clamp(-edge, edge)
    return -(torch.log(inside + bound) + torch.log(bound - inside)) + slope * F.relu(x.abs() - edge)


def focal_ranking_loss(chosen: Tensor, rejected: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of :func:`focal_ranking_per_pair` over the pairs, a scalar; 0 where there are none."""
    return _mean(focal_ranking_per_pair(chosen, rejected, gamma))


def log_barrier_penalty(scores: Tensor, bound: float = 5.0) -> Tensor:
    """Mean of :func:`log_barrier_per_score`, a scalar; 0 where there are none."""
    return _mean(log_barrier_per_score(scores, bound))


def reward_loss(
    chosen: Tensor,
    rejected: Tensor,
    gamma: float = 2.0,
    penalty_weight: float = 0.02,
    bound: float = 5.0,
    margin: Tensor | float | None = None,
    detach_focal: bool = False,
) -> Tensor:
    """L = L_rank + λ · L_pen: the mean of :func:`focal_ranking_per_pair` over the pairs, and of
    :func:`log_barrier_per_score` over all scores, chosen and rejected alike. A scalar; 0 where there are none.

    Args:
        chosen, rejected: (N,) scores.
        gamma: γ ≥ 0 of the focal factor; 0 is the plain ranking loss.
        penalty_weight: λ ≥ 0; 0 leaves the barrier out.
        bound: of the scores, above ``BARRIER_MARGIN``.
        margin: (N,) or one for all, by how much the chosen one should lead; None for none.
        detach_focal: hold the focal factor constant under differentiation.
    """
    ranking = _mean(focal_ranking_per_pair(chosen, rejected, gamma, margin, detach_focal))
    return ranking + penalty_weight * log_barrier_penalty(torch.cat([chosen.flatten(), rejected.flatten()]), bound)


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, values.numel())


def _float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
