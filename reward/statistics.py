"""What is made of scores: shares with intervals by prompt, calibration, rank correlation, best of n. Pure functions.

N is the number of pairs (or responses), G the number of distinct prompts. ``clusters`` (N,) int64 tells which prompt
each belongs to: pairs on one prompt are not independent, so every interval goes by prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TIE = 1e-5  # scores this near are equal: packing alone moves a float32 score by about 1e-6
NORMAL_95 = 1.959964  # the standard normal's 97.5 % quantile
BINS = 10  # of confidence, over [½, 1]
BOOTSTRAP_DRAWS = 500


@dataclass(frozen=True)
class Share:
    """A share of pairs and the 95 % interval of what it estimates."""

    accuracy: float
    interval: tuple[float, float]
    ties: float  # share of the pairs that count half


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences, its 95 % interval and standard error; one prompt alone gives neither."""

    mean: float
    standard_error: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Bin:
    """Pairs whose confidence lies in [low, high); in the last one up to and with 1."""

    low: float
    high: float
    pairs: int
    confidence: float | None  # their mean; None in an empty bin
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How far σ(Δ) can be believed; see :func:`calibration`."""

    pairs: int
    expected_error: float
    brier: float
    confidence: float  # mean over all pairs
    accuracy: float
    bins: list[Bin]


def hits(margins: Floats) -> Floats:
    """1 where the chosen response is ahead, 0 where it is behind, ½ where the two are within TIE; (N,) to (N,).

    ``margins``: chosen less rejected.
    """
    return np.where(np.abs(margins) <= TIE, 0.5, (margins > 0).astype(np.float64))


def share(correct: Floats, clusters: Integers, weights: Floats | None = None, ties: Floats | None = None) -> Share:
    """The mean of ``correct`` (N,), of values 0, ½ and 1, with Wilson's interval at the effective number of pairs.
    Where values are means of several judgements, ``ties`` (N,) says which share of these are ties, for ½ does not.

    That number is p(1 − p)/s², s the clustered standard error, at most N (Korn and Graubard 1998; Franco et al. 2019):
    pairs that agree within a prompt widen the interval. Where all are right or all wrong s says nothing, and it is G.
    """
    weights = np.ones(len(correct)) if weights is None else weights
    mean = float(np.average(correct, weights=weights))
    error = clustered_error(correct, clusters, weights)
    count = float(len(np.unique(clusters)))
    variance = mean * (1 - mean)
    if error is not None and variance > 0:
        count = len(correct) if error == 0 else min(float(len(correct)), max(1.0, variance / error**2))
    tied = correct == 0.5 if ties is None else ties
    return Share(mean, wilson(mean, count), float(np.average(tied, weights=weights)))


def clustered_error(values: Floats, clusters: Integers, weights: Floats | None = None) -> float | None:
    """Standard error of the weighted mean m of ``values`` (N,), clustered; None for one cluster.

    √(G/(G − 1) Σ_g (Σ_{i in g} w_i (v_i − m))²) / Σ w (Liang and Zeger 1986, for a mean).
    """
    weights = np.ones(len(values)) if weights is None else weights
    _, place = np.unique(clusters, return_inverse=True)
    sums = np.bincount(place, weights * (values - np.average(values, weights=weights)))
    if len(sums) < 2:
        return None
    return float(math.sqrt(len(sums) / (len(sums) - 1) * float(sums @ sums)) / weights.sum())


def difference(first: Floats, second: Floats, clusters: Integers) -> Difference:
    """Of ``first`` less ``second``, (N,) each, paired; the interval is normal, from the clustered standard error."""
    changes = first - second
    mean, error = float(changes.mean()), clustered_error(changes, clusters)
    if error is None:
        return Difference(mean, None, None)
    return Difference(mean, error, (mean - NORMAL_95 * error, mean + NORMAL_95 * error))


def wilson(share: float, count: float, quantile: float = NORMAL_95) -> tuple[float, float]:
    """Wilson's score interval of a share seen in ``count`` independent observations (Wilson 1927).

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n).
    """
    spread = quantile**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = quantile * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_interval(
    statistic: Callable[[Integers], float], clusters: Integers, seed: int, draws: int = BOOTSTRAP_DRAWS
) -> tuple[float, float] | None:
    """95 % percentile interval of ``statistic``, which takes positions into the sample: whole clusters are drawn, with
    replacement. None for one cluster, or where no draw gives a number.
    """
    order = np.argsort(clusters, kind="stable")
    _, starts, sizes = np.unique(clusters[order], return_index=True, return_counts=True)
    if len(starts) < 2:
        return None
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = generator.integers(len(starts), size=len(starts))
        ends = np.cumsum(sizes[drawn])
        positions = np.arange(ends[-1]) + np.repeat(starts[drawn] - ends + sizes[drawn], sizes[drawn])
        values.append(statistic(order[positions]))
    if np.isnan(values).all():
        return None
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def calibration(margins: Floats, bins: int = BINS) -> Calibration:
    """Reliability of P(chosen better) = σ(Δ) over pairs of score differences Δ (N,).

    A pair's confidence is that in the response it sets first, σ(|Δ|), in [½, 1]; it is right if that is the chosen one.
    The expected calibration error is Σ_b n_b/N |accuracy_b − confidence_b| over ``bins`` equally wide (Naeini et al.
    2015, Guo et al. 2017); the Brier score is the mean of (1 − σ(Δ))², 0.25 where every Δ is 0.
    """
    confidence, correct = sigmoid(np.abs(margins)), hits(margins)
    edges = np.linspace(0.5, 1.0, bins + 1)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    rows = []
    error = 0.0
    for index in range(bins):
        inside = place == index
        count = int(inside.sum())
        mean, right = (float(confidence[inside].mean()), float(correct[inside].mean())) if count else (None, None)
        if mean is not None and right is not None:
            error += count / len(margins) * abs(right - mean)
        rows.append(Bin(float(edges[index]), float(edges[index + 1]), count, mean, right))
    brier = float(np.mean((1 - sigmoid(margins)) ** 2))
    return Calibration(len(margins), error, brier, float(confidence.mean()), float(correct.mean()), rows)


def sigmoid(values: Floats) -> Floats:
    """1/(1 + e^−x), without overflow."""
    return np.exp(-np.logaddexp(0.0, -values))


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation of two (N,) samples, equal values sharing their mean rank; NaN where either is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    norm = math.sqrt(float(ranks[0] @ ranks[0]) * float(ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1]) / norm if norm > 0 else math.nan


def expected_best(by: Sequence[float], values: Sequence[float], count: int) -> float:
    """Mean of ``values`` at the highest ``by`` among ``count`` of N samples, over all subsets of that size.

    The sample of rank i, from the lowest, is the best of C(i − 1, n − 1) of the C(N, n) subsets (Nakano et al. 2021,
    appendix I). Samples equal in ``by`` stand for one another: each counts with their mean.

    Raises:
        ValueError: ``count`` is not in [1, N].
    """
    total = len(by)
    if not 1 <= count <= total:
        raise ValueError(f"the best of {count} cannot be taken from {total} samples")
    keys, place = np.unique(np.asarray(by, dtype=np.float64), return_inverse=True)
    means = np.bincount(place, np.asarray(values, dtype=np.float64)) / np.bincount(place, minlength=len(keys))
    ranked = means[np.sort(place)]
    subsets = math.comb(total, count)
    weights = [math.comb(rank, count - 1) / subsets for rank in range(total)]
    return float(np.dot(weights, ranked))


def best_of_kl(count: int) -> float:
    """log n − (n − 1)/n, in nats: the KL divergence of best-of-n from the policy sampled (Stiennon et al. 2020), an
    upper bound where responses repeat (Beirami et al. 2024)."""
    return math.log(count) - (count - 1) / count


def powers_up_to(limit: int) -> list[int]:
    """1, 2, 4, … and ``limit`` itself."""
    counts = [2**power for power in range(limit.bit_length()) if 2**power < limit]
    return [*counts, limit]
