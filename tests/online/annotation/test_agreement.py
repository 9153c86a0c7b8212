from __future__ import annotations

import pytest

from cool_rlhf.online.annotation.agreement import agreement


def test_worked_by_hand() -> None:
    """Three items compared: ab, aa, bbb; a single vote is no comparison.

    n = 7, n_a = 3, n_b = 4. D_o = (1/7) [(4 - 2)/1 + 0 + 0] = 2/7. D_e = (49 - 9 - 16) / 42 = 24/42 = 4/7. alpha = 1/2.
    Pairs of judgements, ordered: 2 + 2 + 6, of which 2 differ: 80 %.
    """
    found = agreement([{"a": 1, "b": 1}, {"a": 2}, {"b": 3}, {"a": 1}])
    assert (found.items, found.percent, found.alpha) == (3, pytest.approx(0.8), pytest.approx(0.5))


def test_krippendorffs_example() -> None:
    """Content Analysis, 4th ed., section 12.3.3: nominal data of four observers with gaps, alpha 0.743."""
    units = ["111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]
    counts = [{answer: unit.count(answer) for answer in "12345" if answer in unit} for unit in units]
    found = agreement(counts)
    assert found.alpha == pytest.approx(0.743, abs=5e-4)
    assert found.items == 11


def test_nothing_to_compare() -> None:
    assert agreement([{"a": 1}, {}]).alpha is None
    assert agreement([{"a": 2}, {"a": 3}]).alpha is None, "one answer only: chance would give the same"
    assert agreement([{"a": 2}]).percent == 1.0
