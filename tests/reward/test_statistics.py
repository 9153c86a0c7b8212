"""Against numbers worked by hand, published tables and other implementations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from reward.statistics import (
    TIE,
    best_of_kl,
    bootstrap_interval,
    calibration,
    clustered_error,
    difference,
    expected_best,
    hits,
    powers_up_to,
    share,
    sigmoid,
    spearman,
    wilson,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_ties_count_half():
    assert hits(array(1.0, -1.0, 0.0, TIE / 2, -TIE / 2, 2 * TIE)).tolist() == [1, 0, 0.5, 0.5, 0.5, 1]


def test_wilson_against_published_values():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_clustered_error_by_hand():
    # Mean 0.5; sums of the deviations by prompt: 1, 0, −1. √(3/2 · 2)/6.
    values, prompts = array(1, 1, 1, 0, 0, 0), np.array([7, 7, 3, 3, 9, 9])
    assert clustered_error(values, prompts) == pytest.approx(math.sqrt(3) / 6)
    assert clustered_error(values, np.zeros(6, dtype=np.int64)) is None


def test_clusters_of_one_give_the_common_standard_error():
    values = array(0.3, 0.9, 0.4, 0.1)
    assert clustered_error(values, np.arange(4)) == pytest.approx(values.std(ddof=1) / 2)


def test_weights_are_as_good_as_repeated_rows():
    values, prompts = array(1, 0, 1), np.array([0, 1, 2])
    repeated = clustered_error(array(1, 1, 0, 1), np.array([0, 0, 1, 2]))
    assert clustered_error(values, prompts, array(2, 1, 1)) == pytest.approx(repeated)
    assert share(values, prompts, array(2, 1, 1)).accuracy == 0.75


def test_an_interval_goes_by_prompts():
    right = np.tile(array(1, 1, 1, 0), 10)  # 40 pairs, 30 right
    alone = share(right, np.arange(40))
    assert alone.interval == pytest.approx(wilson(0.75, 39))  # the sample's variance has 39 degrees of freedom
    # Each prompt's four pairs agree, so that there are but ten observations.
    agreeing = share(np.repeat(array(1, 1, 1, 0, 1, 1, 1, 0, 1, 1), 4), np.repeat(np.arange(10), 4))
    assert agreeing.interval == pytest.approx(wilson(0.8, 9))
    assert share(np.ones(40), np.repeat(np.arange(10), 4)).interval == wilson(1.0, 10)
    opposite = share(np.tile(array(1, 0), 20), np.repeat(np.arange(20), 2))  # one of each pair right: no spread at all
    assert opposite.interval == wilson(0.5, 40)


def test_the_interval_covers_what_it_estimates():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        easiness = generator.beta(4, 2, size=60)  # by prompt; mean 2/3
        right = (generator.random((60, 5)) < easiness[:, None]).astype(np.float64).ravel()
        low, high = share(right, np.repeat(np.arange(60), 5)).interval
        covered += low <= 2 / 3 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_ties_are_reported():
    found = share(array(1, 0.5, 0.5, 0), np.arange(4))
    assert (found.accuracy, found.ties) == (0.5, 0.5)


def test_paired_difference():
    found = difference(array(1, 1, 0, 1), array(0, 1, 0, 0), np.arange(4))
    error = math.sqrt(1 / 3) / 2  # changes 1, 0, 0, 1
    assert (found.mean, found.standard_error) == pytest.approx((0.5, error))
    assert found.interval == pytest.approx((0.5 - 1.959964 * error, 0.5 + 1.959964 * error))
    assert difference(array(1), array(0), np.array([0])).interval is None


def test_bootstrap_draws_whole_prompts():
    prompts = np.array([5, 2, 5, 2, 8])
    seen = []

    def keep(positions: np.ndarray) -> float:
        drawn = prompts[positions].tolist()
        times = {place: positions.tolist().count(place) for place in range(5)}
        assert times[0] == times[2]  # both pairs of prompt 5
        assert times[1] == times[3]  # both of prompt 2
        assert times[0] + times[1] + times[4] == 3
        seen.append(drawn)
        return float(len(drawn))

    assert bootstrap_interval(keep, prompts, seed=1, draws=50) is not None
    assert len({tuple(drawn) for drawn in seen}) > 5
    assert bootstrap_interval(keep, np.zeros(3, dtype=np.int64), seed=1) is None


def test_bootstrap_agrees_with_the_standard_error():
    generator = np.random.default_rng(3)
    prompts = np.repeat(np.arange(200), 3)
    values = generator.normal(size=200)[prompts] + 0.3 * generator.normal(size=600)
    low, high = bootstrap_interval(lambda at: float(values[at].mean()), prompts, seed=0, draws=2000)
    error = clustered_error(values, prompts)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert bootstrap_interval(lambda at: float(values[at].mean()), prompts, seed=0, draws=2000) == (low, high)


def test_calibration_by_hand():
    even, sure = math.log(0.62 / 0.38), math.log(0.97 / 0.03)
    found = calibration(array(even, even, -even, sure))
    assert [row.pairs for row in found.bins] == [0, 0, 3, 0, 0, 0, 0, 0, 0, 1]
    third, last = found.bins[2], found.bins[9]
    assert (third.low, third.high, third.confidence, third.accuracy) == pytest.approx((0.6, 0.65, 0.62, 2 / 3))
    assert (last.confidence, last.accuracy) == pytest.approx((0.97, 1.0))
    assert found.bins[0].accuracy is None
    assert found.expected_error == pytest.approx(3 / 4 * (2 / 3 - 0.62) + 1 / 4 * 0.03)
    assert found.brier == pytest.approx((2 * 0.38**2 + 0.62**2 + 0.03**2) / 4)
    assert (found.accuracy, found.confidence) == pytest.approx((0.75, (3 * 0.62 + 0.97) / 4))


def test_a_calibrated_model_has_no_error():
    generator = np.random.default_rng(1)
    margins = np.abs(generator.normal(scale=2, size=40000))
    right = generator.random(40000) < sigmoid(margins)
    found = calibration(np.where(right, margins, -margins))
    assert found.expected_error < 0.01
    assert sum(row.pairs for row in found.bins) == 40000


def test_extreme_margins_stay_finite():
    found = calibration(array(1e4, -1e4, 0.0))
    assert found.brier == pytest.approx((0 + 1 + 0.25) / 3)
    assert found.bins[-1].pairs == 2
    assert calibration(array(0.0)).bins[0].accuracy == 0.5


def test_spearman_against_scipy():
    generator = np.random.default_rng(2)
    first, second = generator.integers(0, 9, size=(2, 50)).astype(np.float64)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert spearman(array(1, 2, 3), array(10, 20, 15)) == pytest.approx(0.5)
    assert math.isnan(spearman(array(1, 1), array(1, 2)))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_expected_best_is_the_mean_over_all_subsets(count):
    by, values = [0.3, 2.0, -1.0, 0.7, 0.1], [5.0, 1.0, 2.0, 8.0, 3.0]
    subsets = list(itertools.combinations(range(5), count))
    best = [values[max(subset, key=by.__getitem__)] for subset in subsets]
    assert expected_best(by, values, count) == pytest.approx(sum(best) / len(best))


def test_equals_stand_for_one_another():
    assert expected_best([1.0, 1.0, 0.0], [4.0, 0.0, 9.0], 3) == pytest.approx(2.0)
    assert expected_best([0.0, 0.0], [1.0, 3.0], 2) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="best of 3"):
        expected_best([1.0, 2.0], [1.0, 2.0], 3)


def test_kl_of_best_of_n():
    assert [best_of_kl(count) for count in (1, 2, 16)] == pytest.approx([0.0, 0.193147, 1.835089], abs=1e-6)


def test_sizes_of_the_curve():
    assert [powers_up_to(limit) for limit in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]
