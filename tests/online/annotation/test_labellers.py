from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cool_rlhf.demo.gold import score
from cool_rlhf.online.annotation.arrived import arrived, write_labels
from cool_rlhf.online.annotation.items import Item, ShownResponse
from cool_rlhf.online.annotation.labellers import RuleLabeller, label_with
from cool_rlhf.online.annotation.store import Store
from cool_rlhf.protocols import UserError


def by_length(messages: object, response: str, domain: str, answer: str | None, finished: bool) -> float:
    return len(response) / 100


def test_the_rule_decides_and_is_named(store: Store, item: Callable[..., Item], tmp_path: Path) -> None:
    longer, equal = ShownResponse("a longer answer", True, "sft"), ShownResponse("one", True, "late")
    items = [
        item(0, first=longer, answer="x"),
        item(1, second=longer, first=equal, answer="x"),
        item(2, first=equal, second=ShownResponse("two", True, "sft"), answer="x"),
        item(3),
    ]
    store.add_items(items)
    labeller = RuleLabeller(by_length, "length", noise=0.0, seed=1)
    assert label_with(labeller, store) == 4
    assert label_with(labeller, store) == 0, "nothing is judged twice"
    assert [label.winner for label in store.labels()] == ["first", "second", "tie", "tie"]
    assert {(label.kind, label.annotator) for label in store.labels()} == {
        ("rule", "rule length, 0% noise (no person)")
    }
    assert len(arrived(store)) == 2
    write_labels(store, tmp_path)
    written = (tmp_path / "rounds/0/slow_path/labels.jsonl").read_text(encoding="utf-8")
    assert written.count('"labelled_by": ["rule: rule length, 0% noise (no person)"]') == 2


def test_noise_turns_its_share_round_whatever_the_order(item: Callable[..., Item]) -> None:
    items = [item(number, first=ShownResponse("longer", True, ""), answer="x") for number in range(2000)]
    items = [entry for number, entry in enumerate(items) if entry.second.text != "longer"]
    labeller = RuleLabeller(lambda m, response, d, a, f: float(response == "longer"), "x", noise=0.2, seed=3)
    forward = {entry.id: verdict.winner for entry, verdict in labeller.label(items)}
    backward = {entry.id: verdict.winner for entry, verdict in labeller.label(items[::-1])}
    assert forward == backward
    assert 330 <= list(forward.values()).count("second") <= 470
    other = RuleLabeller(lambda m, response, d, a, f: float(response == "longer"), "x", noise=0.2, seed=4)
    assert {entry.id: verdict.winner for entry, verdict in other.label(items)} != forward


def test_gold_of_the_embedded_world(store: Store, item: Callable[..., Item]) -> None:
    right, wrong = ShownResponse("2 + 3 = 5", True, "sft"), ShownResponse("", True, "late")
    store.add_items([item(0, domain="math", answer="2|3|5", first=wrong, second=right)])
    label_with(RuleLabeller(score, "gold", noise=0.0, seed=1), store)
    assert [label.winner for label in store.labels()] == ["second"]


def test_a_rule_judges_prompts_without_an_answer_too(item: Callable[..., Item]) -> None:
    asked: list[str | None] = []

    def by_ending(messages: object, response: str, domain: str, answer: str | None, finished: bool) -> float:
        asked.append(answer)
        return float(finished)

    labeller = RuleLabeller(by_ending, "ending", noise=0.0, seed=1)
    assert [verdict.winner for _, verdict in labeller.label([item(0)])] == ["first"]
    assert asked == [None, None]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "good"])
def test_a_value_that_is_no_finite_number_is_named(store: Store, item: Callable[..., Item], value: object) -> None:
    store.add_items([item(7)])
    labeller = RuleLabeller(lambda m, r, d, a, f: value, "mine:rule", noise=0.0, seed=1)  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match=f"the rule mine:rule gave {value!r} .*'question 7' .*: it must give a finite"):
        label_with(labeller, store)
    assert store.labels() == []


def test_a_rule_that_fails_is_named_with_the_prompt(store: Store, item: Callable[..., Item]) -> None:
    store.add_items([item(7)])
    with pytest.raises(UserError, match=r"the rule gold refuses .*'question 7' of domain 'helpful': .* own questions"):
        label_with(RuleLabeller(score, "gold", noise=0.0, seed=1), store)
    with pytest.raises(
        UserError, match=r"the rule mine fails .*'question 7' of domain 'helpful' .*ZeroDivisionError: "
    ):
        label_with(RuleLabeller(lambda *_: 1 / 0, "mine", noise=0.0, seed=1), store)


def test_of_two_processes_of_one_labeller_the_first_counts(store: Store, item: Callable[..., Item]) -> None:
    store.add_items([item(0, answer="x"), item(1, answer="x")])

    class Meanwhile(RuleLabeller):
        def label(self, items):
            for judged, verdict in super().label(items):
                if judged.id == item(0).id:
                    other = "second" if verdict.winner == "first" else "first"
                    store.record(judged.id, store.annotator(self.name, self.kind), other)
                yield judged, verdict

    longer = Meanwhile(lambda m, response, d, a, f: float(len(response)), "length", noise=0.0, seed=1)
    assert label_with(longer, store) == 1
    assert len(store.labels()) == 2
