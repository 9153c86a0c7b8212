from math import log

import pytest

from cool_rlhf.tracking.distance import (
    Validations,
    distance_chart,
    parted,
    parting_note,
    score_beside_gold,
    trends,
)
from cool_rlhf.tracking.figures import figure


def rows(golds, round=0, kind="ppo"):
    """Validations at KL 0, 1, 4, 9, …: the score rises by 1 with each √nat."""
    made = []
    for place, gold in enumerate(golds):
        fields = {"validation/kl": float(place**2), "validation/score": 2.0 + place, "validation/gold": gold}
        made.append({"stage": kind, "round": round, "step": 10 * place, "seconds": 1.0, **fields})
        made.append({"stage": kind, "round": round, "step": 10 * place + 1, "seconds": 1.0, "kl": 0.1})
    return made


def test_gold_that_falls_while_the_score_rises_is_seen():
    assert parted(rows([0.5, 0.7, 0.6, 0.5, 0.4, 0.3]), 0).parted
    assert not parted(rows([0.3, 0.4, 0.5, 0.6, 0.7, 0.7]), 0).parted


def test_the_metrics_say_where_both_are_heading():
    heading = trends(parted(rows([0.9, 0.7, 0.5, 0.3]), 0))
    assert heading == pytest.approx(
        {"overoptimisation/score_slope": 1.0, "overoptimisation/gold_slope": -0.2, "overoptimisation/parted": 1.0}
    )
    assert trends(parted(rows([0.9, 0.7, 0.5]), 0)) == {}


def test_each_round_is_judged_alone():
    both = rows([0.5, 0.7, 0.6, 0.5, 0.4, 0.3]) + rows([0.3, 0.4, 0.5, 0.6, 0.7, 0.8], round=1)
    assert parted(both, 0).parted
    assert not parted(both, 1).parted


def test_the_chart_starts_at_zero_and_fits_gold():
    golds = [0.0, *(d * (0.3 - 0.1 * log(d)) for d in (1, 2, 3, 4))]
    chart = distance_chart(rows([0.5 + gold for gold in golds]))
    score, gold, fitted = chart.curves
    assert list(score.x) == [0, 1, 2, 3, 4]
    assert list(score.y) == [0, 1, 2, 3, 4]
    assert gold.y == pytest.approx(golds)
    at = dict(zip(fitted.x, fitted.y, strict=True))
    assert at[4.0] == pytest.approx(golds[4])
    assert "0.30 − 0.10 log d" in chart.explanation


def test_each_round_has_its_own_start_and_fit():
    first = [0.5, *(0.5 + d * (0.3 - 0.1 * log(d)) for d in (1, 2, 3, 4))]
    second = [0.5 + d * (0.2 - 0.05 * log(d)) for d in (1, 2, 3, 4, 5)]  # starts from the last policy, away from SFT
    later = [{**row, "validation/kl": (row["step"] / 10 + 1) ** 2.0, "validation/score": 7.0 + row["step"]}
             for row in rows(second, round=1) if "validation/kl" in row]  # fmt: skip
    chart = distance_chart([*rows(first), *later, *rows([0.4, 0.5], round=2)])
    assert [curve.name for curve in chart.curves] == [
        f"{kind}, round {round}" for round in (0, 1) for kind in ("score", "gold", "gold, fitted")
    ]
    score, gold, fitted = chart.curves[3:]
    assert list(score.y) == [0, 10, 20, 30, 40], "above the first score by the round's own reward model"
    assert gold.y == pytest.approx([value - second[0] for value in second])
    assert (fitted.x[0], fitted.x[-1]) == (1, 5)
    assert (fitted.y[0], fitted.y[-1]) == pytest.approx((0, second[-1] - second[0]))
    assert "0.30 − 0.10 log d), round 0; d (0.20 − 0.05 log d), round 1" in chart.explanation


def test_a_round_has_one_colour_and_one_name_in_the_legend():
    """Else the legend of a few rounds is higher than the figure."""
    golds = [0.5, 0.6, 0.7, 0.6, 0.5]
    drawn = figure(distance_chart([row for round in range(3) for row in rows(golds, round=round)]))
    assert [trace.name for trace in drawn.data if trace.showlegend] == ["round 0", "round 1", "round 2"]
    assert len({(trace.name, trace.legendgroup, trace.line.color) for trace in drawn.data}) == 3
    assert drawn.data[5].hovertemplate.endswith("<extra>gold, fitted, round 1</extra>")
    assert {trace.mode for trace in drawn.data[2::3]} == {"lines"}, "what is fitted has no points"
    alone = figure(distance_chart(rows(golds)))
    assert [trace.name for trace in alone.data if trace.showlegend] == ["score", "gold", "gold, fitted"]


def test_the_report_says_where_they_part_and_where_that_cannot_be_told():
    parting = rows([0.5, 0.7, 0.6, 0.5, 0.4, 0.9])
    parting[8]["overoptimisation/parted"] = parting[10]["overoptimisation/parted"] = 1.0
    note = parting_note(parting, 0)
    assert note.startswith("Score and gold part at step 40")
    assert note.endswith("Gold was best at step 10."), "of what was known then"
    assert "takes 4 validations of a round, and this one has 3" in parting_note(rows([0.5] * 3, round=1), 1)
    assert parting_note(rows([0.5] * 4), 0) is None
    assert parting_note(rows([0.5] * 3), 1) is None


def test_without_gold_or_with_few_points_there_is_no_chart():
    assert distance_chart(rows([0.5, 0.6, 0.7])) is None
    assert distance_chart(rows([0.5] * 5, kind="sft")) is None


def test_a_divergence_estimated_below_zero_counts_as_zero():
    found = rows([0.5, 0.6])
    found[0]["validation/kl"] = -0.01
    assert Validations.of(found).kl == [0.0, 1.0]


def rows_of_domains(maths, gold):
    """Gold in maths alone, while the score of all rises, for that of chat does."""
    made = [row for row in rows(gold) if "validation/kl" in row]
    for row, score in zip(made, maths, strict=True):
        row |= {"validation/score/math": score, "validation/gold/math": row["validation/gold"]}
        row |= {"validation/score/chat": 2 * row["validation/score"] - score}
        row["overoptimisation/score"] = score
    return made


FALLING = [0.9, 0.7, 0.5, 0.3, 0.1]


def test_score_and_gold_are_those_of_the_same_responses():
    honest = rows_of_domains(FALLING, FALLING)
    found = parted(honest, 0)
    assert not found.parted, "nothing is exploited in maths"
    assert found.score_slope < 0
    assert parted(rows_of_domains(FALLING[::-1], FALLING), 0).parted
    score, gold, _ = distance_chart(honest).curves
    assert list(score.y) == list(gold.y)


def test_rows_that_lack_the_score_beside_gold_are_not_compared():
    earlier = rows_of_domains(FALLING, FALLING)
    for row in earlier:
        del row["overoptimisation/score"]
        row["overoptimisation/parted"] = 1.0
    assert Validations.of(earlier).steps == []
    assert parting_note(earlier, 0) is None
    for row in earlier:
        row["validation/gold/chat"] = 0.5
    assert Validations.of(earlier).score == [2.0, 3.0, 4.0, 5.0, 6.0], "all have gold"


def test_the_score_beside_gold_is_the_mean_over_responses():
    assert score_beside_gold([1.0, 2.0, 6.0, 9.0], [0.5, 0.5, 0.0, None]) == {"overoptimisation/score": 3.0}
    assert score_beside_gold([1.0, 2.0], [0.5, 0.0]) == score_beside_gold([1.0], [None]) == {}
