"""Per-token estimates of KL(π ‖ π_ref) from tokens drawn from π (Schulman 2020, "Approximating KL divergence")."""

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
