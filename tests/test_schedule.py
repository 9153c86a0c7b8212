import subprocess
import sys

import pytest

from cool_rlhf.schedule import cosine, derive_seed, scheduled


def test_cosine_worked_by_hand():
    # Two of ten steps rise to 3 by thirds; then half a cosine over eight, whose last is 1.
    rates = [cosine(step, 10, 3.0, 1.0, warmup_fraction=0.2) for step in range(10)]
    assert rates[:3] == pytest.approx([1.0, 2.0, 3.0])
    assert rates[-1] == pytest.approx(1.0)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_half_way_down_is_the_mean():
    assert cosine(5, 11, 3.0, 1.0) == pytest.approx(2.0)


def test_a_single_step_has_the_peak():
    assert cosine(0, 1, 3.0, 1.0) == 3.0


def test_seeds_depend_on_every_part_and_on_nothing_else():
    seeds = {derive_seed(*parts) for parts in [(1, "a", 2), (1, "a", 3), (2, "a", 2), (1, "b", 2), (1, "a")]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)
    many = {derive_seed(1, "a", step) for step in range(2000)}
    assert len(many) == 2000
    assert max(many) > 2**30
    code = "from cool_rlhf.schedule import derive_seed; print(derive_seed(1, 'a', 2))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive_seed(1, "a", 2)


def test_linear_worked_by_hand():
    # One of five steps rises, then four from 4 down to 1.
    rates = [scheduled("linear", step, 5, 4.0, 1.0, warmup_fraction=0.2) for step in range(5)]
    assert rates == pytest.approx([2.0, 4.0, 3.0, 2.0, 1.0])


def test_constant_rises_and_stays():
    assert [scheduled("constant", step, 4, 3.0, 1.0, 0.5) for step in range(4)] == pytest.approx([1.0, 2.0, 3.0, 3.0])
    assert {scheduled("constant", step, 4, 3.0, 1.0) for step in range(4)} == {3.0}


def test_cosine_is_the_schedule_of_that_name():
    assert scheduled("cosine", 3, 9, 3.0, 1.0, 0.2) == cosine(3, 9, 3.0, 1.0, 0.2)
    with pytest.raises(ValueError, match="constant, cosine, linear"):
        scheduled("step", 0, 1, 1.0, 0.0)


def test_two_steps_have_the_peak_and_the_final_rate():
    for kind in ("cosine", "linear"):
        assert [scheduled(kind, step, 2, 3.0, 1.0) for step in range(2)] == pytest.approx([3.0, 1.0])
