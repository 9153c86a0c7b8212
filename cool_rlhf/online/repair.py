"""Mending the reward model: what patches are mixed with, and whether a repair is kept."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from scipy import stats

from cool_rlhf.data.mixing import mixed_order
from cool_rlhf.online.statistics import exceeds
from cool_rlhf.protocols import PreferencePair
from cool_rlhf.schedule import derive_seed
from reward.statistics import NORMAL_95

Mended = Literal["enough", "in part", "not"]
PART_LEVEL = 0.05  # of the test that a pattern is mended in part
LEAST_HELD_OUT = 5  # of a pattern's pairs, to judge its repair by: one that happens to be right shows nothing
REPLAY_POOL = 20_000  # of the pairs learnt from, those that replay draws from


def sample_pairs(pairs: Sequence[PreferencePair], count: int, seed: int) -> list[PreferencePair]:
    """``count`` of the pairs in their order, at most; each domain has its share of them. The same in every round."""
    order = mixed_order([pair.domain for pair in pairs], derive_seed(seed, "judging pairs"))
    return [pairs[place] for place in sorted(order[:count])]


def mix_with_replay(
    patches: Sequence[PreferencePair],
    base: Sequence[PreferencePair],
    ratio: float,
    seed: int,
    least: int = 0,
    epochs: int = 1,
) -> list[PreferencePair]:
    """For each of the epochs the patches as they are and ``ratio`` base pairs for every patch, one that stands there
    several times being one; at least ``least`` base pairs, drawn without replacement; all shuffled.

    Replay keeps what was learned before: each epoch draws others, as long as there are any. Fewer base pairs than asked
    for are all taken.
    Raises: ValueError for a negative ratio.
    """
    if ratio < 0:
        raise ValueError(f"a negative number of base pairs, {ratio}, cannot be replayed for each patch")
    rng = random.Random(derive_seed("replay", seed))
    different = len({id(patch) for patch in patches})
    count = min(len(base), max(least, ceil(ratio * different)))
    order = rng.sample(range(len(base)), len(base))
    mixed: list[PreferencePair] = []
    for epoch in range(epochs):
        drawn = (order[place % len(base)] for place in range(epoch * count, (epoch + 1) * count))
        part = [*patches, *(base[index] for index in drawn)]
        rng.shuffle(part)
        mixed += part
    return mixed


@dataclass(frozen=True)
class RepairVerdict:
    """Whether a patched reward model is kept, and by what."""

    kept: bool
    costs: bool  # more of the general accuracy than is allowed
    mended: Mended  # enough: as many of the held-out pairs are right as are asked for; in part: more than before
    reason: str
    held_out_before: float  # share of the pattern's held-out pairs that are right before the repair
    held_out: float  # and after it
    held_out_pairs: int
    before: float  # general accuracy
    after: float
    fall: float  # before − after; negative where it rose
    fall_interval: tuple[float, float]  # 95 %, of the paired difference, normal approximation
    mcnemar_p: float  # exact, two-sided: that right and wrong turned equally often
    general_pairs: int


def judge_repair(
    held_out_before: Sequence[bool],
    held_out: Sequence[bool],
    before: Sequence[bool],
    after: Sequence[bool],
    *,
    least_right: float = 0.9,
    most_fall: float = 0.01,
) -> RepairVerdict:
    """Keep a repair that mends more than it costs; otherwise it is to be rolled back.

    A pattern is mended enough where at least ``least_right`` of its held-out pairs are right, and none fewer than
    before; in part where more are than before, by a larger share than that of the general pairs lost and by more than
    chance (an exact sign test at ``PART_LEVEL``). Either is kept if accuracy on the general pairs falls by at most
    ``most_fall``.

    Args:
        held_out_before: for each held-out pair of the pattern whether the model preferred the clean side without the
            patches.
        held_out: the same pairs after it.
        before: for each general validation pair whether the model was right before the patch.
        after: the same pairs after it.
    Raises: ValueError where either set is empty, or is not of as many pairs before as after.

    The rule goes by the mean difference itself; its interval and McNemar's exact test say how sure it is.
    """
    if not held_out or not before or (len(held_out_before), len(before)) != (len(held_out), len(after)):
        raise ValueError(
            "a repair is judged by the same held-out and general pairs before and after: got "
            f"{len(held_out_before)} and {len(held_out)} held-out, {len(before)} and {len(after)} general"
        )
    fall, fall_interval, mcnemar_p = _fall(before, after)
    right_before, right = float(np.mean(held_out_before)), float(np.mean(held_out))
    mended: Mended = "in part" if right - right_before > max(fall, 0.0) and _rises(held_out_before, held_out) else "not"
    costly = costs(before, after, most_fall)
    reasons = []
    if right >= max(least_right, right_before):
        mended = "enough"
    else:
        shares = f"{right:.1%} of the pattern's held-out pairs are right, {right_before:.1%} were before"
        reasons.append(f"{shares}, {least_right:.0%} are asked for" if right < least_right else shares)
    if costly:
        reasons.append(f"general accuracy falls by {fall:.4f}, at most {most_fall} is allowed")
    return RepairVerdict(
        kept=mended != "not" and not costly,
        costs=costly,
        mended=mended,
        reason="; ".join(reasons) or "mends the pattern at no cost that counts",
        held_out_before=right_before,
        held_out=right,
        held_out_pairs=len(held_out),
        before=float(np.mean(before)),
        after=float(np.mean(after)),
        fall=fall,
        fall_interval=fall_interval,
        mcnemar_p=mcnemar_p,
        general_pairs=len(before),
    )


def costs(before: Sequence[bool], after: Sequence[bool], most_fall: float) -> bool:
    """Whether the share of pairs that are right falls by more than is allowed."""
    fall = (sum(before) - sum(after)) / len(before)
    return fall > most_fall + 1e-12  # 0.75 − 0.74 is a little more than 0.01 in floating point


def effect(
    scores: Sequence[tuple[float, float]], weights: Sequence[float], prompts: Sequence[str]
) -> tuple[float, float]:
    """What a policy is paid more than what it started from, in standard deviations of the scores of the latter, so that
    a reward model of flatter scores is no other one; and the one-sided p-value of its being paid more at all.

    Args:
        scores: of the policy's answers and of those beside them.
        weights: of each such pair in the mean difference.
        prompts: which each pair answers; several answers to one, or one under several conditions, are no independent
            ones.
    """
    gains: dict[str, float] = defaultdict(float)
    for prompt, weight, (late, start) in zip(prompts, weights, scores, strict=True):
        gains[prompt] += weight * (late - start)
    spread = float(np.std([start for _, start in scores])) if scores else 0.0
    return (sum(gains.values()) / spread if spread else 0.0), exceeds(list(gains.values()), 0.0)


def _fall(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, tuple[float, float], float]:
    """By how much the share of right pairs fell, its interval, and McNemar's p-value: see :class:`RepairVerdict`."""
    changes = np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64)
    fall = float(changes.mean())
    error = float(changes.std(ddof=1)) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
    lost, won = int((changes > 0).sum()), int((changes < 0).sum())
    p = float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return fall, (fall - NORMAL_95 * error, fall + NORMAL_95 * error), p


def _rises(before: Sequence[bool], after: Sequence[bool]) -> bool:
    """Whether more pairs turned right than wrong, one-sided."""
    turned = [now - then for then, now in zip(before, after, strict=True)]
    won, lost = turned.count(1), turned.count(-1)
    return won > 0 and bool(stats.binomtest(won, won + lost, alternative="greater").pvalue < PART_LEVEL)
