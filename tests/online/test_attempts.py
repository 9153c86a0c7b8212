from __future__ import annotations

import pytest

from cool_rlhf.online.attempts import REPEATS, Attempt, next_attempt
from cool_rlhf.online.repair import RepairVerdict, judge_repair


def verdict(right: int, lost: int = 0) -> RepairVerdict:
    """Of ten held-out pairs ``right``, none before; of a hundred general ones ``lost``."""
    held_out = [True] * right + [False] * (10 - right)
    return judge_repair([False] * 10, held_out, [True] * 100, [True] * (100 - lost) + [False] * lost)


def attempt(lost: int = 0, **patterns: tuple[int, int]) -> Attempt:
    """``patterns``: how often learnt, and how many of ten pairs are right then."""
    found = {name: verdict(right, lost) for name, (_, right) in patterns.items()}
    return Attempt({name: times for name, (times, _) in patterns.items()}, found)


def test_what_is_mended_at_no_cost_stays() -> None:
    assert next_attempt([attempt(a=(1, 10), b=(1, 9))]) == {"a": 1, "b": 1}
    assert next_attempt([attempt()]) == {}


def test_patches_that_are_too_weak_once_are_learnt_more_often_where_that_costs_nothing() -> None:
    first = attempt(enough=(1, 10), part=(1, 6), no=(1, 0))
    assert next_attempt([first]) == {"enough": 1, "part": REPEATS, "no": REPEATS}
    second = attempt(enough=(1, 10), part=(4, 8), no=(4, 0))
    assert next_attempt([first, second]) == {"enough": 1, "part": 4}, (
        "in part, at no cost, stays; what mends nothing goes"
    )
    assert next_attempt([first, second, attempt(enough=(1, 10), part=(4, 8))]) == {"enough": 1, "part": 4}


def test_what_was_bought_too_dearly_is_given_back_pattern_by_pattern() -> None:
    first = attempt(a=(1, 6), b=(1, 6), c=(1, 10))
    second = attempt(5, a=(4, 8), b=(4, 8), c=(1, 10))
    assert next_attempt([first, second]) == {"a": 4, "b": 1, "c": 1}, "the last one first"
    third = attempt(5, a=(4, 8), b=(1, 6), c=(1, 10))
    assert next_attempt([first, second, third]) == {"a": 1, "b": 1, "c": 1}
    settled = attempt(a=(1, 6), b=(1, 6), c=(1, 10))
    assert next_attempt([first, second, third, settled]) == {"a": 1, "b": 1, "c": 1}, "and not tried again"


def test_more_weight_is_tried_once_what_costs_too_much_has_gone() -> None:
    first, second = attempt(5, a=(1, 6), b=(1, 0)), attempt(a=(1, 6))
    assert next_attempt([first]) == {"a": 1}
    assert next_attempt([first, second]) == {"a": REPEATS}
    assert next_attempt([first, second, attempt(5, a=(4, 8))]) == {"a": 1}
    assert next_attempt([first, second, attempt(5, a=(4, 8)), second]) == {"a": 1}


def test_what_was_mended_without_it_is_not_given_up_for_anothers_weight() -> None:
    first, second = attempt(a=(1, 10), b=(1, 6)), attempt(a=(1, 0), b=(4, 10))
    assert next_attempt([first]) == {"a": 1, "b": 4}
    assert next_attempt([first, second]) == {"a": 1, "b": 1}


def test_what_mends_nothing_goes_before_anything_that_mends() -> None:
    first = attempt(a=(1, 6), b=(1, 0))
    second = attempt(5, a=(4, 8), b=(4, 0))
    assert next_attempt([first, second]) == {"a": 4}
    worse = attempt(5, a=(4, 0), b=(4, 8))
    assert next_attempt([first, worse]) == {"a": 1, "b": 4}, "learnt once it had mended"
    assert next_attempt([first, second, attempt(a=(4, 8))]) == {"a": 4}


@pytest.mark.parametrize(
    ("found", "following"),
    [
        (attempt(5, a=(1, 10), b=(1, 6), c=(1, 0), d=(1, 10)), {"a": 1, "b": 1, "d": 1}),
        (attempt(5, a=(1, 10), b=(1, 6), d=(1, 10)), {"a": 1, "d": 1}),
        (attempt(5, a=(1, 10), d=(1, 10)), {"a": 1}),
    ],
)
def test_a_first_attempt_that_costs_too_much_loses_what_mends_least(found: Attempt, following: dict[str, int]) -> None:
    assert next_attempt([found]) == following
