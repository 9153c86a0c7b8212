"""Means and paired differences against numbers worked by hand."""

from __future__ import annotations

import math
from operator import attrgetter

import pytest

from cool_rlhf.evaluation.comparison import JudgedResponse, best_of, differences, estimate, expected_best_of, means


def judged(
    prompt: str, score: float, gold: float | None = None, domain: str = "math", length: int = 4
) -> JudgedResponse:
    return JudgedResponse(prompt, domain, score, gold, length, finished=length < 8)


def test_estimate_by_hand() -> None:
    found = estimate([1.0, 2.0, 6.0])
    assert (found.mean, found.prompts) == (3.0, 3)
    assert found.standard_error == pytest.approx(math.sqrt((4 + 1 + 9) / 2) / math.sqrt(3))
    assert estimate([5.0]).standard_error is None


def test_a_prompt_counts_once_however_often_it_was_sampled() -> None:
    table = means([judged("a", 0.0), judged("a", 4.0), judged("a", 2.0), judged("b", 5.0)])
    assert table["overall"]["score"].mean == 3.5
    assert table["overall"]["score"].standard_error == pytest.approx(1.5)
    assert table["overall"]["score"].prompts == 2


def test_measures_by_domain_and_only_where_they_are_known() -> None:
    responses = [judged("a", 1.0, 0.5, "brief", length=2), judged("b", 2.0, None, "math", length=8)]
    table = means(responses)
    assert list(table) == ["overall", "overall_with_gold", "brief", "math"]
    assert (table["overall"]["gold"].mean, table["overall"]["gold"].prompts) == (0.5, 1)
    assert "gold" not in table["math"]
    assert table["overall"]["response_length"].mean == 5.0
    assert [table[name]["finished"].mean for name in table] == [0.5, 1.0, 1.0, 0.0]


def test_prompts_that_have_gold_are_a_row_where_others_have_none() -> None:
    responses = [judged("a", 1.0, 0.5, "math"), judged("b", 2.0, None, "chat"), judged("c", 6.0, None, "chat")]
    table = means(responses)
    assert [table[name]["score"].mean for name in table] == [3.0, 1.0, 4.0, 1.0]
    assert table["overall"]["gold"] == table["overall_with_gold"]["gold"]
    assert list(means(responses[:1])) == ["overall", "math"], "all have gold"
    assert list(means(responses[1:])) == ["overall", "chat"]


def test_difference_is_paired_by_prompt() -> None:
    before = [judged("a", 0.0), judged("b", 10.0), judged("c", 20.0)]
    after = [judged("c", 21.0), judged("a", 2.0), judged("b", 13.0)]
    found = differences(before, after)["overall"]["score"]
    assert found.mean == 2.0
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))  # unpaired it would be about 8


def test_difference_of_other_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="different prompts"):
        differences([judged("a", 0.0)], [judged("b", 0.0)])


def test_best_of_takes_all_that_are_highest_in_each_prompt() -> None:
    """As the curve of best of n does: of equals that the judge cannot tell apart, the earliest is no better choice."""
    responses = [judged("a", 1.0, 0.1), judged("a", 3.0, 0.2), judged("a", 3.0, 0.9), judged("b", -1.0, 0.3)]
    assert best_of(responses, attrgetter("score")) == responses[1:]
    assert best_of(responses, attrgetter("gold")) == [responses[2], responses[3]]
    alone = responses[:3]
    table = means(best_of(alone, attrgetter("score")))["overall"]
    curve = expected_best_of(alone, attrgetter("score"), 3)["overall"]
    assert table["gold"].mean == pytest.approx(curve["gold"].mean) == pytest.approx(0.55)
