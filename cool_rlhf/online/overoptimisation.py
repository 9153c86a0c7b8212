"""Score and gold over the distance from the start, and when they part (Gao et al., arXiv 2210.10760)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log

import numpy as np
from scipy import stats
from scipy.optimize import lsq_linear

from cool_rlhf.derived_settings import FEWEST_VALIDATIONS
from cool_rlhf.online.responses import Floats


@dataclass(frozen=True)
class Fit:
    """R(d) = d (α − β log d) with d = √KL, R the reward above the start's: the paper's form for RL."""

    alpha: float
    beta: float  # at least 0

    def __call__(self, distance: float) -> float:
        """R at ``distance`` = √KL; 0 at 0, its limit."""
        return distance * (self.alpha - self.beta * log(distance)) if distance > 0 else 0.0

    @property
    def peak(self) -> float | None:
        """The distance at which R is highest, exp(α / β − 1); None where it only rises, or the peak is beyond what a
        float holds."""
        exponent = self.alpha / self.beta - 1 if self.beta > 0 else inf
        return exp(exponent) if exponent < 700 else None


def fit_reward(kl: Sequence[float], reward: Sequence[float]) -> Fit:
    """Least squares of Gao et al.'s form, which is linear in α and β, with β ≥ 0.

    Args:
        kl: N points' KL from the start in nats, at least 0; those at 0 say nothing and are left out.
        reward: N rewards above the start's.
    Raises: ValueError for fewer than three points away from the start, or a negative KL.
    """
    d, r = np.sqrt(_checked(kl, reward)), np.asarray(reward, dtype=np.float64)
    d, r = d[d > 0], r[d > 0]
    if len(d) < 3:
        raise ValueError(f"a fit of two numbers needs three points with KL above 0, not {len(d)}")
    matrix = np.stack([d, -d * np.log(d)], axis=1)
    alpha, beta = lsq_linear(matrix, r, bounds=([-np.inf, 0.0], [np.inf, np.inf])).x
    return Fit(float(alpha), float(beta))


@dataclass(frozen=True)
class Parting:
    """Whether score and gold part: their trends over √KL within the window, in units of the reward a √nat."""

    parted: bool
    points: int
    score_slope: float
    gold_slope: float
    score_p: float  # one-sided, of the score rising
    gold_p: float  # one-sided, of gold falling
    best: int  # the index of the point of highest gold in the whole series


def parting(
    kl: Sequence[float], score: Sequence[float], gold: Sequence[float], *, window: int = 10, alpha: float = 0.05
) -> Parting:
    """The warning rule: over the last ``window`` points the score rises along √KL while gold falls.

    Both by ordinary regression on √KL, one-sided at ``alpha``; both must hold, so a noisy gold alone does not warn.
    Points are in the order of training. Raises: ValueError for lists of different lengths or a negative KL. Fewer
    than four points, or points of one KL, part never.
    """
    distance = np.sqrt(_checked(kl, score, gold))
    best = int(np.argmax(gold)) if len(gold) else 0
    d = distance[-window:]
    if len(d) < FEWEST_VALIDATIONS or np.ptp(d) == 0:
        return Parting(False, len(d), 0.0, 0.0, 1.0, 1.0, best)
    rising = stats.linregress(d, score[-window:], alternative="greater")
    falling = stats.linregress(d, gold[-window:], alternative="less")
    parted = bool(rising.pvalue < alpha and falling.pvalue < alpha)
    slopes, p_values = (float(rising.slope), float(falling.slope)), (float(rising.pvalue), float(falling.pvalue))
    return Parting(parted, len(d), *slopes, *p_values, best)


def _checked(kl: Sequence[float], *others: Sequence[float]) -> Floats:
    values = np.asarray(kl, dtype=np.float64)
    if any(len(other) != len(values) for other in others):
        raise ValueError(f"{len(values)} values of KL, but {', '.join(str(len(other)) for other in others)} of reward")
    if (values < 0).any():
        raise ValueError("KL must not be negative: pass its mean over responses, which is at least 0 but for noise")
    return values
