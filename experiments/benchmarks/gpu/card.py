"""What the card can do, measured: the rate of a large bfloat16 product of random matrices, and of a copy."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

SIDE = 8192


def seconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Of one call, the median; on the device's own clock, after a few that are not counted."""
    for _ in range(5):
        work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def matrix_rate() -> float:
    """Floating-point operations a second."""
    left, right = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * SIDE**3 / seconds(lambda: left @ right)


def copy_rate() -> float:
    """Bytes a second, read and written."""
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def name() -> str:
    return torch.cuda.get_device_name()


def flops_per_token(layers_and_head: int, hidden: int, layers: int, mean_seen: float) -> float:
    """Of a forward pass: two for each weight of a matrix, and four for each hidden unit and token seen, in each layer.

    Args:
        layers_and_head: weights that a token is multiplied by; embeddings are looked up.
        mean_seen: tokens that a token attends to, in the mean.
    """
    return 2 * layers_and_head + 4 * hidden * layers * mean_seen
