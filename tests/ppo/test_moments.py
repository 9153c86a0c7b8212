import json
import math
import statistics
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cool_rlhf.ppo.moments import Moments


def test_numbers_worked_by_hand():
    # 1, 3: mean 2, squares 2. Then 8: mean 4, squares 9 + 1 + 16.
    first = Moments().including([1.0, 3.0])
    assert (first.count, first.mean, first.squares) == (2, 2.0, 2.0)
    both = first.including([8.0])
    assert (both.count, both.mean) == (3, 4.0)
    assert both.squares == pytest.approx(26)
    assert both.standardise(7.0) == pytest.approx(3 / math.sqrt(26 / 3))


def test_without_a_spread_there_is_nothing_to_tell_apart():
    assert Moments().deviation == 0
    assert Moments().including([2.0]).standardise(2.0) == 0
    assert Moments().including([2.0, 2.0]).standardise(5.0) == 0
    for count in (3, 7, 10):  # the mean of these is rounded
        assert Moments().including([0.1] * count).standardise(0.1) == 0


@given(parts=st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=5), min_size=1, max_size=5))
def test_parts_and_restarts_change_nothing(parts):
    moments, numbers = Moments(), [number for part in parts for number in part]
    for part in parts:
        moments = Moments(**json.loads(json.dumps(asdict(moments)))).including(part)
    assert moments.count == len(numbers)
    assert moments.mean == pytest.approx(statistics.fmean(numbers), abs=1e-12)
    assert moments.deviation == pytest.approx(statistics.pstdev(numbers), abs=1e-9)
