from __future__ import annotations

import pytest

from cool_rlhf.tracking.figures import running_mean


@pytest.mark.parametrize("count", [1, 2, 3, 47, 48, 100])
def test_a_running_mean_has_a_value_for_each(count: int) -> None:
    """Also where the window would be longer than the values: a round that has just begun."""
    assert running_mean([2.0] * count) == pytest.approx([2.0] * count)


def test_a_running_mean_is_centred() -> None:
    assert running_mean([0.0, 3.0, 6.0, 0.0]) == pytest.approx([1.5, 3.0, 3.0, 3.0])
