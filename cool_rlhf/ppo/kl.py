"""Per-token estimates of KL(π ‖ π_ref) from tokens drawn from π (Schulman 2020, "Approximating KL divergence"), the
estimates as a loss, and a coefficient that follows a target."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

KLKind = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """One estimate for each token, with d = log π − log π_ref::

        k1 = d              unbiased; what a reward is reduced by
        k2 = d² / 2         biased, but its gradient is that of the KL: the one to use as a loss
        k3 = e^(−d) − 1 + d unbiased and never negative

    As a loss k1 has an expected gradient of zero and pulls nowhere; inside a reward, where it is not differentiated,
    it is the right one.

    Args:
        logprobs: log π of the sampled tokens, any shape.
        ref_logprobs: log π_ref of the same tokens, same shape.
        kind: ``k1``, ``k2`` or ``k3``.

    Raises:
        ValueError: for any other ``kind``.
    """
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"no KL estimate is called {kind!r}; use one of {', '.join(get_args(KLKind))}")


def kl_loss(logprobs: Tensor, ref_logprobs: Tensor, kind: str, gradient: str) -> Tensor:
    """The estimates as a loss of each token, same shape as the arguments.

    The gradient of KL(π ‖ π_ref) is E[d · ∇log π], which is k2's. That of k3 itself is E[(1 − e^(−d)) · ∇log π], the
    gradient of the other divergence, KL(π_ref ‖ π); it is what GRPO (Shao et al. 2024, arXiv 2402.03300) descends.

    Args:
        kind: ``k2`` or ``k3``: what the loss's value is.
        gradient: ``k2`` gives either the divergence's gradient; ``k3`` leaves k3 its own, and does nothing to k2.

    Raises:
        ValueError: for k1, which as a loss has an expected gradient of zero, and for any other name.
    """
    if kind not in ("k2", "k3") or gradient not in ("k2", "k3"):
        raise ValueError(f"no loss has the value {kind!r} and the gradient {gradient!r}; use k2 or k3")
    value = kl_estimate(logprobs, ref_logprobs, kind)
    if kind == gradient or kind == "k2":
        return value
    pulling = kl_estimate(logprobs, ref_logprobs, "k2")
    return pulling + (value - pulling).detach()


def adapted_coefficient(coefficient: float, kl: float, target: float, share: float) -> float:
    """The KL coefficient after a batch (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)::

        e = clamp(KL / target − 1, −0.2, 0.2)
        β ← β · (1 + share · e)

    Args:
        kl: mean over the batch's responses of k1 summed over their tokens, in nats.
        target: what ``kl`` should be, above 0.
        share: how strongly one batch moves the coefficient: its responses / horizon, at most 1. The paper has 0.1.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + share * error)
