"""What every update shares: micro-batches that may be empty, and metrics that add up over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cool_rlhf.data.packing import Packed
from cool_rlhf.protocols import TrainEngine


def join(values: Sequence[Tensor], packed: Packed, dtype: torch.dtype) -> Tensor:
    """Per-token values of the packed sequences, (T,), beside their tokens; (0,) for an empty pack."""
    joined = torch.cat(list(values)) if values else torch.empty(0)
    return joined.to(packed.tokens.device, dtype)


class Totals:
    """Metrics of one optimiser step on one rank.

    Each is a share: a sum divided by the count of the whole batch, so that adding the ranks' numbers gives the mean
    over the whole batch. The sums stay on the device until the end, not to wait for it after each micro-batch.
    """

    def __init__(self, engine: TrainEngine) -> None:
        self._engine = engine
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, share: Tensor) -> None:
        share = share.detach()
        self._sums[name] = self._sums[name] + share if name in self._sums else share

    def step(self, learning_rate: float, norm_name: str) -> dict[str, float]:
        """Take the optimiser step; the shares, and the gradient's norm before clipping under ``norm_name``."""
        norm = self._engine.step(learning_rate)  # of the whole gradient, on every rank: of which each gives its share
        return {**{name: float(sum_) for name, sum_ in self._sums.items()}, norm_name: norm / self._engine.world_size}
