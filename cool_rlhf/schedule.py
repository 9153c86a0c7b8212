"""Learning rates by step, and seeds by step. Step 0 is the first of ``steps``."""

from __future__ import annotations

import hashlib
import math

SCHEDULES = ("constant", "cosine", "linear")


def scheduled(kind: str, step: int, steps: int, peak: float, final: float, warmup_fraction: float = 0.0) -> float:
    """The rate at ``step`` under one of ``SCHEDULES``; all rise as :func:`cosine` does. ``constant`` then stays at the
    peak and has no use for ``final``; ``linear`` and ``cosine`` have ``final`` at the last of all steps."""
    if kind == "cosine":
        return cosine(step, steps, peak, final, warmup_fraction)
    if kind not in SCHEDULES:
        raise ValueError(f"no schedule is called {kind!r}; use one of {', '.join(SCHEDULES)}")
    warmup = math.floor(warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if kind == "constant":
        return peak
    return peak + (final - peak) * min(1.0, (step - warmup) / max(1, steps - warmup - 1))


def cosine(step: int, steps: int, peak: float, final: float, warmup_fraction: float = 0.0) -> float:
    """Linear rise to ``peak`` over the first ``warmup_fraction`` of the steps, then half a cosine to ``final``.

    The rise does not start at 0, which would waste a step: its first step has ``peak`` / (warm-up steps + 1). The
    last of all steps has ``final`` exactly, except where there is only one, which has ``peak``.
    """
    warmup = math.floor(warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup - 1)
    return final + (peak - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2³¹) that depends on every part and is the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31
