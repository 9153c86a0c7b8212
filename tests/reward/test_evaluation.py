import pytest

from cool_rlhf.protocols import PreferencePair
from reward.evaluation import accuracy_by_condition, correct, wilson


def pair(chosen: str, rejected: str, domain: str, finished: bool = True) -> PreferencePair:
    question = {"role": "user", "content": "?"}
    return PreferencePair(
        chosen=[question, {"role": "assistant", "content": chosen}],
        rejected=[question, {"role": "assistant", "content": rejected}],
        domain=domain,
        margin=None,
        chosen_finished=True,
        rejected_finished=finished,
    )


def by_length(conversations) -> list[float]:
    """Brief wants short answers, thorough long ones; without a condition all are alike."""
    sign = {"brief": -1.0, "thorough": 1.0, None: 0.0}
    return [sign[item.condition] * len(item.messages[-1]["content"]) for item in conversations]


PAIRS = [
    pair("yes", "yes indeed", "brief"),
    pair("of course not", "no", "thorough"),
    pair("no", "not at all", "brief"),
    pair("well, perhaps", "no", "brief"),  # a wrong label
]


def test_own_other_and_no_condition():
    table = accuracy_by_condition(by_length, PAIRS, ["thorough", "brief"])
    assert list(table) == ["brief", "thorough"]
    assert table["brief"].pairs == 3
    assert table["brief"].own.accuracy == pytest.approx(2 / 3)
    assert {name: other.accuracy for name, other in table["brief"].others.items()} == {"thorough": pytest.approx(1 / 3)}
    assert table["brief"].other.accuracy == pytest.approx(1 / 3)
    assert table["brief"].none.accuracy == 0.0  # a tie is a miss
    assert table["thorough"].own.accuracy == 1.0
    assert table["thorough"].other.accuracy == 0.0


def test_other_is_the_mean_over_the_other_conditions():
    sign = {"brief": -1.0, "thorough": 1.0, "terse": -1.0, "long": 1.0, None: 0.0}

    def score(conversations) -> list[float]:
        return [sign[item.condition] * len(item.messages[-1]["content"]) for item in conversations]

    table = accuracy_by_condition(score, PAIRS[:1], sign.keys() - {None})
    assert list(table["brief"].others) == ["long", "terse", "thorough"]
    assert table["brief"].other.accuracy == pytest.approx(1 / 3)


def test_a_single_domain_has_no_other():
    assert accuracy_by_condition(by_length, PAIRS[:1], ["brief"])["brief"].other is None


def test_whether_a_response_ended_reaches_the_scorer():
    def finished_first(conversations) -> list[float]:
        return [float(item.finished) for item in conversations]

    assert correct(finished_first, [pair("a", "b", "brief", finished=False)], None) == [True]


def test_wilson_against_published_values():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(hits / count, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_interval_goes_by_distinct_prompts():
    table = accuracy_by_condition(by_length, PAIRS, ["brief"])
    assert table["brief"].prompts == 1  # three pairs on one question
    assert table["brief"].own.interval == wilson(2 / 3, 1)
