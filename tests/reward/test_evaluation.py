from cool_rlhf.protocols import PreferencePair
from reward.evaluation import accuracy, accuracy_by_condition


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
    table = accuracy_by_condition(by_length, PAIRS, ["brief", "thorough"])
    assert list(table) == ["brief", "thorough"]
    assert table["brief"].pairs == 3
    assert table["brief"].own == 2 / 3
    assert table["brief"].others == {"thorough": 1 / 3}
    assert table["brief"].other == 1 / 3
    assert table["brief"].none == 0.0  # a tie is a miss
    assert table["thorough"].own == 1.0
    assert table["thorough"].other == 0.0


def test_a_single_domain_has_no_other():
    assert accuracy_by_condition(by_length, PAIRS[:1], ["brief"])["brief"].other is None


def test_whether_a_response_ended_reaches_the_scorer():
    def finished_first(conversations) -> list[float]:
        return [float(item.finished) for item in conversations]

    assert accuracy(finished_first, [pair("a", "b", "brief", finished=False)], None) == 1.0
