from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cool_rlhf.data.loading import Reading, load_preferences
from cool_rlhf.online.annotation.arrived import arrived, labelled, write_labels
from cool_rlhf.online.annotation.items import Item
from cool_rlhf.online.annotation.store import Store


def label(store: Store, item: Item, *winners: str) -> None:
    for number, winner in enumerate(winners):
        store.record(item.id, store.annotator(f"person {number}"), winner)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        (["first"], "first"),
        (["second", "skip"], "second"),
        (["first", "second"], None),
        (["first", "tie"], None),
        (["first", "tie", "first"], "first"),
        (["tie"], None),
        (["both_bad", "both_bad", "first"], None),
        (["skip"], None),
    ],
)
def test_majority(store: Store, item: Callable[..., Item], votes: list[str], winner: str | None) -> None:
    store.add_items([item(1)])
    label(store, item(1), *votes)
    expected = [] if winner is None else [item(1).preference(winner)]  # type: ignore[arg-type]
    assert arrived(store) == expected


def test_people_come_before_rules(store: Store, item: Callable[..., Item]) -> None:
    store.add_items([item(1), item(2)])
    for entry in (item(1), item(2)):
        store.record(entry.id, store.annotator("rule", "rule"), "second")
        store.record(entry.id, store.annotator("judge", "judge"), "second")
    assert store.next_item(store.annotator("person 0")) is not None, "people are still asked"
    label(store, item(1), "first")
    assert arrived(store) == [item(1).preference("first"), item(2).preference("second")]
    assert store.agreement().items == 0


@pytest.mark.parametrize(
    ("votes", "tied"),
    [
        ([("rule", "tie")], True),
        ([("rule", "tie"), ("person", "skip")], True),
        ([("rule", "tie"), ("person", "second")], False),
        ([("rule", "tie"), ("judge", "second")], False),
        ([("rule", "first")], False),
        ([("rule", "skip")], False),
        ([("judge", "tie")], False),
        ([("person", "tie")], False),
    ],
)
def test_a_rules_tie_is_told_from_others(
    store: Store, item: Callable[..., Item], votes: list[tuple[str, str]], tied: bool
) -> None:
    store.add_items([item(1)])
    for kind, winner in votes:
        store.record(item(1).id, store.annotator(kind, kind), winner)  # type: ignore[arg-type]
    (entry,) = labelled(store)
    assert entry.tied_by_rule is tied


def test_a_round_takes_what_is_there(store: Store, item: Callable[..., Item]) -> None:
    items = [item(0), item(1, round=1), item(2, round=1)]
    store.add_items(items)
    assert arrived(store) == []
    label(store, items[0], "first")
    label(store, items[2], "second")
    assert arrived(store) == [items[0].preference("first"), items[2].preference("second")]
    assert arrived(store, since_round=1) == [items[2].preference("second")]


def test_labels_file_is_what_reward_training_reads(store: Store, item: Callable[..., Item], tmp_path: Path) -> None:
    items = [item(0, round=1), item(1, round=1), item(2, round=1)]
    store.add_items(items)
    label(store, items[0], "second", "second", "first")
    label(store, items[1], "tie")
    store.record(items[2].id, store.annotator("a rule, no person", "rule"), "first")
    assert write_labels(store, tmp_path) == {1: 2}
    path = tmp_path / "rounds/1/slow_path/labels.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows[0]["votes"] == {"chosen": 2, "rejected": 1}
    assert rows[0]["labelled_by"] == ["person: person 0", "person: person 1", "person: person 2"]
    assert (rows[0]["chosen_source"], rows[0]["rejected_source"]) == ("round 0, late", "sft")
    assert rows[1]["labelled_by"] == ["rule: a rule, no person"]
    assert list(load_preferences([str(path)], Reading(sampled=True))) == arrived(store)


def test_labels_that_were_taken_back_leave_the_file(store: Store, item: Callable[..., Item], tmp_path: Path) -> None:
    store.add_items([item(0)])
    label(store, item(0), "first")
    write_labels(store, tmp_path)
    store.undo(item(0).id, store.annotator("person 0"))
    write_labels(store, tmp_path)
    assert (tmp_path / "rounds/0/slow_path/labels.jsonl").read_text(encoding="utf-8") == ""
