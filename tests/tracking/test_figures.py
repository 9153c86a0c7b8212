from __future__ import annotations

from typing import Any

import pytest

from cool_rlhf.tracking.curves import PPO_SECTIONS, charts
from cool_rlhf.tracking.figures import HEIGHT, Chart, Curve, figure, running_mean


@pytest.mark.parametrize("count", [1, 2, 3, 47, 48, 100])
def test_a_running_mean_has_a_value_for_each(count: int) -> None:
    """Also where the window would be longer than the values: a round that has just begun."""
    assert running_mean([2.0] * count) == pytest.approx([2.0] * count)


def test_a_running_mean_is_centred() -> None:
    assert running_mean([0.0, 3.0, 6.0, 0.0]) == pytest.approx([1.5, 3.0, 3.0, 3.0])


def rounds_of(**fields: float) -> list[dict[str, Any]]:
    """Three rounds of ten steps, the last of which have ``fields``."""
    rows = [{"stage": "ppo", "round": k // 10, "step": 1 + k % 10, "seconds": 1.0, "kl": 0.1} for k in range(30)]
    return [row | (fields if row["step"] == 10 else {}) for row in rows]


def test_what_is_measured_once_a_round_is_drawn_over_rounds() -> None:
    """Laid end to end, the last step of one round is where the next begins."""
    ((section,), (other,)) = charts(rounds_of(once=0.5), PPO_SECTIONS)
    assert (other.x_axis, list(other.curves[0].x), other.dividers) == ("round", [0, 1, 2], ())
    (kl,) = section.charts
    assert list(kl.dividers) == [(0.5, "round 0"), (10.5, "1"), (20.5, "2")]


def test_a_long_legend_takes_nothing_from_the_plot() -> None:
    def height(*names: str) -> int:
        return figure(Chart("t", "", "step", "score", [Curve(name, [1], [1.0], [0]) for name in names])).layout.height

    assert height("training", "validation") == HEIGHT
    assert height(*(f"domain {k}" for k in range(9))) > height(*(f"domain {k}" for k in range(4))) > HEIGHT
