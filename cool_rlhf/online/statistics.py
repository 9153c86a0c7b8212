"""The tests behind a finding: paired rises, corrections over everything tested, log-odds with an informative prior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from cool_rlhf.online.responses import Floats


def paired_rise(changes: Floats | Sequence[float]) -> float:
    """One-sided p-value of (N,) paired changes tending above 0.

    Wilcoxon's signed-rank test on the changes that are not 0, the exact sign test where all those are of one size; 1
    where nothing changed. Only for changes whose sign is a toss-up where nothing is the matter.
    """
    moved = np.asarray(changes, dtype=np.float64)
    moved = moved[moved != 0]
    if not len(moved):
        return 1.0
    if np.allclose(np.abs(moved), abs(moved[0])):
        return float(stats.binomtest(int((moved > 0).sum()), len(moved), alternative="greater").pvalue)
    return float(stats.wilcoxon(moved, alternative="greater").pvalue)


def exceeds(values: Floats | Sequence[float], least: float) -> float:
    """One-sided p-value of the mean of (N,) values lying above ``least`` (t test); 1 for fewer than three values."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 3:
        return 1.0
    if np.ptp(array) == 0:  # no variance to test against: the sign test
        return 0.5 ** len(array) if array[0] > least else 1.0
    return float(stats.ttest_1samp(array, least, alternative="greater").pvalue)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that those below α hold at most a share α of false ones in the mean (Benjamini and
    Hochberg 1995)."""
    return [float(p) for p in stats.false_discovery_control(p_values, method="bh")] if len(p_values) else []


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that with probability 1 − α none below α is false (Holm 1979): the k-th smallest of m
    times m − k + 1, made monotone, at most 1."""
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = highest
    return adjusted


def log_odds(first: Floats, second: Floats, prior: Floats, totals: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Log-odds ratio of each word between two corpora under a Dirichlet prior, and its z score; both (V,).

    Monroe, Colaresi and Quinn 2008, equations 16, 20 and 22: with counts y, totals n, prior α and its total α₀,
    δ_w = log[(y¹_w + α_w) / (n¹ + α₀ − y¹_w − α_w)] − the same of the second corpus, variance
    1 / (y¹_w + α_w) + 1 / (y²_w + α_w). Positive where ``first`` uses the word more. ``totals``: n¹, n² and α₀, (V,)
    each, where the paper has one of each: the sums of the counts and of the prior. Every prior must be above 0, and
    below its total.
    """
    *sizes, spread = totals
    odds = [(y + prior) / (n + spread - y - prior) for y, n in zip((first, second), sizes, strict=True)]
    delta = np.log(odds[0]) - np.log(odds[1])
    return delta, delta / np.sqrt(1 / (first + prior) + 1 / (second + prior))


def gold_departure(score_changes: Floats, gold_changes: Floats, score_sd: float, gold_sd: float) -> float:
    """p-value of the score having risen while gold did not: of a mean score change above a quarter of ``score_sd``
    *and* a mean gold change below a tenth of ``gold_sd``; the larger of the two p-values, for both must hold."""
    return max(exceeds(score_changes, 0.25 * score_sd), exceeds(-gold_changes, -0.1 * gold_sd))
