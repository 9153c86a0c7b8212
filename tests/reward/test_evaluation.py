"""Tables over a handful of pairs whose scores can be counted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from cool_rlhf.protocols import PreferencePair, ScoredConversation, UserError
from reward.evaluation import (
    accuracy_table,
    histogram_edges,
    length_effect,
    opposed_table,
    opposing_domains,
    score_pairs,
    score_spread,
    subset_table,
)
from reward.rewardbench import ROW_WEIGHTS, SECTIONS, section_scores
from reward.statistics import wilson


def pair(
    chosen: str, rejected: str, domain: str, prompt: str = "?", subset: str | None = None, finished: bool = True
) -> PreferencePair:
    question = {"role": "user", "content": prompt}
    return PreferencePair(
        chosen=[question, {"role": "assistant", "content": chosen}],
        rejected=[question, {"role": "assistant", "content": rejected}],
        domain=domain,
        margin=None,
        chosen_finished=True,
        rejected_finished=finished,
        subset=subset,
    )


def by_length(conversations: Sequence[ScoredConversation]) -> list[float]:
    """Brief wants short answers, thorough and long want long ones; without a condition all are alike."""
    sign = {"brief": -1.0, "thorough": 1.0, "long": 1.0, None: 0.0}
    return [sign[item.condition] * len(item.messages[-1]["content"]) for item in conversations]


PAIRS = [
    pair("yes", "yes indeed", "brief"),
    pair("of course not", "no", "thorough"),
    pair("no", "not at all", "brief"),
    pair("well, perhaps", "no", "brief"),  # a wrong label
]


def test_own_other_and_no_condition():
    table = accuracy_table(score_pairs(by_length, PAIRS, ["thorough", "brief"]))
    assert list(table) == ["overall", "brief", "thorough"]
    assert (table["brief"].pairs, table["brief"].prompts) == (3, 1)
    assert table["brief"].own.accuracy == pytest.approx(2 / 3)
    assert {name: other.accuracy for name, other in table["brief"].others.items()} == {"thorough": pytest.approx(1 / 3)}
    assert table["brief"].other.accuracy == pytest.approx(1 / 3)
    assert (table["brief"].none.accuracy, table["brief"].none.ties) == (0.5, 1.0)
    assert (table["thorough"].own.accuracy, table["thorough"].other.accuracy) == (1.0, 0.0)
    assert (table["overall"].own.accuracy, table["overall"].other.accuracy) == (0.75, 0.25)
    assert table["overall"].others == {}


def test_other_is_the_mean_over_the_other_conditions():
    table = accuracy_table(score_pairs(by_length, PAIRS[:1], ["brief", "thorough", "long"]))
    assert list(table["brief"].others) == ["long", "thorough"]
    assert table["brief"].other.accuracy == 0.0


def test_two_conditions_that_disagree_are_no_tie():
    def score(conversations: Sequence[ScoredConversation]) -> list[float]:
        sign = {"short": -1.0, "long": 1.0}
        return [sign.get(item.condition, 0.0) * len(item.messages[-1]["content"]) for item in conversations]

    opposite = accuracy_table(score_pairs(score, PAIRS[:1], ["brief", "short", "long"]))["brief"].other
    assert (opposite.accuracy, opposite.ties) == (0.5, 0.0)
    undecided = accuracy_table(score_pairs(score, PAIRS[:1], ["brief", "short", "none"]))["brief"].other
    assert (undecided.accuracy, undecided.ties) == (0.75, 0.5)


def test_a_domain_without_a_condition_is_judged_by_none():
    table = accuracy_table(score_pairs(by_length, [pair("a", "bb", "default"), PAIRS[0]], ["brief"]))
    assert (table["default"].own.accuracy, table["default"].own.ties) == (0.5, 1.0)
    assert table["default"].other.accuracy == 1.0
    assert table["brief"].other is None
    assert accuracy_table(score_pairs(by_length, PAIRS[:1], []))["brief"].other is None


def test_intervals_go_by_prompts():
    pairs = [pair("a" * (1 + k % 2), "aaa" if k // 2 % 4 else "", "brief", str(k // 2)) for k in range(40)]
    found = accuracy_table(score_pairs(by_length, pairs, ["brief"]))["brief"]
    assert (found.pairs, found.prompts, found.own.accuracy) == (40, 20, 0.75)
    assert found.own.interval == pytest.approx(wilson(0.75, 19))  # a prompt's two pairs agree


def test_whether_a_response_ended_reaches_the_scorer():
    def finished_first(conversations: Sequence[ScoredConversation]) -> list[float]:
        return [float(item.finished) for item in conversations]

    scored = score_pairs(finished_first, [pair("a", "b", "brief", finished=False)], ["brief"])
    assert scored.right(None).tolist() == [1.0]


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="1 of 4 responses a score that is no number"):
        score_pairs(lambda asked: [1.0, float("nan"), 0.0, 0.0], PAIRS[:2], [])


OPPOSED = [
    pair("yes", "no way", "brief", "a"),
    pair("no way", "yes", "thorough", "a"),
    pair("no way", "yes", "long", "a"),
    pair("yes", "no way", "brief", "b"),  # another prompt
    pair("no", "nope", "brief", "c"),
    pair("nope", "no", "brief", "c"),  # the same domain: noise, not a conflict
]


def test_pairs_that_other_domains_judge_oppositely():
    assert opposing_domains(OPPOSED) == {0: ["long", "thorough"], 1: ["brief"], 2: ["brief"]}
    cut = pair("no way", "yes", "thorough", "b", finished=False)
    assert opposing_domains([OPPOSED[3], cut]) == {}  # a response that was cut is another one


def test_opposed_pairs_under_the_own_and_the_exchanged_condition():
    table = opposed_table(score_pairs(by_length, OPPOSED, ["brief", "thorough", "long"]))
    assert list(table) == ["overall", "brief", "long", "thorough"]
    assert (table["overall"].pairs, table["overall"].prompts) == (3, 1)
    assert (table["overall"].own.accuracy, table["overall"].other.accuracy) == (1.0, 0.0)
    assert table["overall"].none.accuracy == 0.5
    assert opposed_table(score_pairs(by_length, PAIRS, ["brief"])) == {}


def test_without_conditions_one_of_two_opposed_labels_is_missed():
    def any_way(conversations: Sequence[ScoredConversation]) -> list[float]:
        return [float(len(item.messages[-1]["content"])) for item in conversations]

    overall = opposed_table(score_pairs(any_way, OPPOSED[:2], []))["overall"]
    assert (overall.own.accuracy, overall.other.accuracy, overall.none.accuracy) == (0.5, 0.5, 0.5)


def test_spread_and_share_outside():
    scored = score_pairs(
        by_length, [pair("ab", "abcd", "brief"), pair("abcdefg", "a", "thorough")], ["brief", "thorough"]
    )
    edges = histogram_edges(scored.own, 5.0)
    assert (edges[0], edges[-1], len(edges)) == (-5.0, 7.0, 41)
    table = score_spread(scored, 5.0, edges)
    assert table["brief"].mean == (-2.0, -4.0)
    assert table["thorough"].outside == (1.0, 0.0)
    assert table["overall"].outside == (0.5, 0.0)
    assert table["overall"].deviation == (4.5, 2.5)
    for side in (0, 1):
        assert np.sum(table["overall"].counts[side]) == 2
    assert table["thorough"].counts[0][-1] == 1


def test_how_far_scores_go_with_length():
    table = length_effect(
        score_pairs(by_length, [*PAIRS, pair("ab", "cd", "brief", "other")], ["brief", "thorough"]), 0
    )
    assert table["brief"].correlation == pytest.approx(-1.0)
    assert table["brief"].interval == pytest.approx((-1.0, -1.0))
    assert table["brief"].prefers_longer == 0.0  # of three pairs: the fourth is of equal length
    assert table["brief"].longer_is_chosen == pytest.approx(1 / 3)
    assert table["thorough"].correlation == pytest.approx(1.0)
    assert table["thorough"].interval is None  # one prompt
    flat = length_effect(score_pairs(by_length, [pair("ab", "cd", "default")], []), 0)["default"]
    assert (flat.correlation, flat.prefers_longer, flat.longer_is_chosen) == (None, None, None)


def test_accuracy_by_subset():
    rows = [pair("a", "bb", "brief", "1", "x"), pair("bb", "a", "brief", "2", "x"), pair("a", "bb", "brief", "3", "w")]
    table = subset_table(score_pairs(by_length, [*rows, PAIRS[0]], ["brief"]))
    assert {name: (pairs, found.accuracy) for name, (pairs, found) in table.items()} == {"w": (1, 1.0), "x": (2, 0.5)}
    assert subset_table(score_pairs(by_length, PAIRS, ["brief"])) == {}


def bench_rows(subset: str, right: int, wrong: int) -> list[PreferencePair]:
    texts = [("a", "bb")] * right + [("bb", "a")] * wrong
    return [pair(*sides, "brief", f"{subset} {k}", subset) for k, sides in enumerate(texts)]


def test_sections_of_rewardbench():
    rows = [
        *bench_rows("alpacaeval-easy", 3, 1),
        *bench_rows("mt-bench-hard", 1, 1),
        *bench_rows("donotanswer", 0, 1),
        *bench_rows("math-prm", 1, 1),
        *bench_rows("hep-rust", 2, 0),
        *bench_rows("of another benchmark", 9, 0),
    ]
    bench = section_scores(score_pairs(by_length, rows, ["brief"]))
    heavy = 984 / 447
    reasoning = (heavy + 2) / (2 * heavy + 2)
    scores = {name: section.score.accuracy for name, section in bench.sections.items()}
    assert scores == pytest.approx({"Chat": 0.75, "Chat Hard": 0.5, "Safety": 0.0, "Reasoning": reasoning})
    assert bench.score == pytest.approx((0.75 + 0.5 + 0.0 + reasoning) / 4)
    assert bench.sections["Reasoning"].pairs == 4
    assert bench.sections["Reasoning"].missing == ["hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python"]
    part = section_scores(score_pairs(by_length, rows[:4], ["brief"]))
    assert (list(part.sections), part.score) == (["Chat"], None)
    assert section_scores(score_pairs(by_length, PAIRS, ["brief"])) is None


def test_mathematics_weighs_as_much_as_code():
    # The benchmark counts its 447 rows as 984, which is six times 164.
    assert ROW_WEIGHTS["math-prm"] * 447 == pytest.approx(6 * 164)
    assert len([subset for subsets in SECTIONS.values() for subset in subsets]) == 23
