from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cool_rlhf.online.annotation.items import Item
from cool_rlhf.online.annotation.store import FILE_NAME, AlreadyLabelledError, Store
from cool_rlhf.protocols import UserError


def judge_all(store: Store, annotator: int) -> list[str]:
    """Answer until there is nothing left; the items in the order in which they came."""
    seen = []
    while (given := store.next_item(annotator)) is not None:
        seen.append(given.id)
        store.record(given.id, annotator, "first")
    return seen


def test_newest_round_first_and_no_item_twice(store: Store, item: Callable[..., Item]) -> None:
    old, new = [item(n) for n in range(3)], [item(n, round=1) for n in range(3, 6)]
    assert store.add_items(old) == 3
    assert store.add_items([*new, old[0]]) == 3, "an item that is there already is not added again"
    assert judge_all(store, store.annotator("Ada")) == [entry.id for entry in [*new, *old]]
    assert store.next_item(store.annotator("Ben")) is None, "one person an item are enough"


def test_what_nobody_has_labelled_can_be_taken_back(store: Store, item: Callable[..., Item]) -> None:
    store.add_items([item(n) for n in range(3)])
    store.add_items([item(3, round=1)])
    ada, ben = store.annotator("Ada"), store.annotator("Ben")
    store.record(item(0).id, ada, "tie")
    store.record(item(3).id, ada, "tie")
    assert store.next_item(ben) is not None, "and has it before his eyes"
    assert store.withdraw(0) == 2
    assert [given.id for given in store.items()] == [item(0).id, item(3).id]
    assert store.next_item(ben) is None
    store.add_items([item(4)])
    assert store.next_item(ben) == item(4)


def test_overlap_asks_several_people(tmp_path: Path, item: Callable[..., Item]) -> None:
    with Store(tmp_path / FILE_NAME, overlap=2) as store:
        store.add_items([item(n) for n in range(4)])
        people = [store.annotator(name) for name in ("Ada", "Ben", "Cleo")]
        first = store.next_item(people[0])
        assert store.next_item(people[1]) == first
        assert store.next_item(people[2]) != first, "two have it before their eyes"
        for person in people:
            judge_all(store, person)
        labels = store.labels()
        assert len(labels) == 8
        assert len({(label.item, label.annotator) for label in labels}) == 8


def test_reload_shows_the_same_item_until_it_is_answered(store: Store, item: Callable[..., Item]) -> None:
    store.add_items([item(1), item(2)])
    ada = store.annotator("Ada")
    first = store.next_item(ada)
    assert first is not None
    assert store.next_item(ada) == first
    store.record(first.id, ada, "tie")
    assert store.next_item(ada) != first


def test_an_item_that_is_left_lying_goes_to_others(store: Store, item: Callable[..., Item], clock: object) -> None:
    store.add_items([item(1)])
    ada, ben = store.annotator("Ada"), store.annotator("Ben")
    assert store.next_item(ada) is not None
    assert store.next_item(ben) is None
    clock.time += 61  # type: ignore[attr-defined]
    assert store.next_item(ben) is not None


def test_a_skip_is_no_judgement(store: Store, item: Callable[..., Item]) -> None:
    store.add_items([item(1)])
    ada, ben = store.annotator("Ada"), store.annotator("Ben")
    store.record(item(1).id, ada, "skip")
    assert store.next_item(ada) is None, "nobody sees an item twice"
    assert store.next_item(ben) is not None, "somebody has to judge it"
    assert store.progress(ada) == type(store.progress(ada))(mine=1, finished=0, items=1, labels=0)


def test_seconds_and_comment(store: Store, item: Callable[..., Item], clock: object) -> None:
    store.add_items([item(1)])
    ada = store.annotator("Ada")
    store.next_item(ada)
    clock.time += 12.5  # type: ignore[attr-defined]
    store.record(item(1).id, ada, "second", comment="too long")
    (label,) = store.labels()
    assert (label.annotator, label.kind, label.winner, label.comment) == ("Ada", "person", "second", "too long")
    assert label.seconds == 12.5


def test_undo_goes_back_step_by_step(store: Store, item: Callable[..., Item]) -> None:
    items = [item(n) for n in range(3)]
    store.add_items(items)
    ada = store.annotator("Ada")
    for entry in items[:2]:
        store.next_item(ada)
        store.record(entry.id, ada, "first")
    store.next_item(ada)
    for entry in (items[1], items[0]):
        assert store.last_label(ada) == (entry.id, "first")
        assert store.undo(entry.id, ada)
        assert not store.undo(entry.id, ada), "a repeated request takes nothing more back"
        assert store.next_item(ada) == entry
    assert store.labels() == []
    assert store.last_label(ada) is None
    for entry in items:
        store.record(entry.id, ada, "second")
    assert [label.winner for label in store.labels()] == ["second"] * 3
    assert store.progress(ada).finished == 3


def test_a_repeated_label_counts_once_and_another_is_refused(store: Store, item: Callable[..., Item]) -> None:
    store.add_items([item(1)])
    ada = store.annotator("Ada")
    store.record(item(1).id, ada, "first")
    store.record(item(1).id, ada, "first")
    assert len(store.labels()) == 1
    with pytest.raises(AlreadyLabelledError):
        store.record(item(1).id, ada, "second")
    with pytest.raises(KeyError):
        store.record("unknown", ada, "first")


def test_names(store: Store) -> None:
    assert store.annotator("  Ada   L. ") == store.annotator("ada l.")
    for name in ("", "  ", "x" * 61):
        with pytest.raises(UserError, match="1 to 60 characters"):
            store.annotator(name)
    with pytest.raises(UserError, match="taken by a person"):
        store.annotator("Ada L.", "rule")


def test_spellings_of_one_name(store: Store) -> None:
    number = store.annotator("Élise")
    for spelling in ("élise", "ÉLISE", "E\u0301lise", " e\u0301lise "):
        assert store.annotator(spelling) == number
        assert store.person(spelling) == (number, "Élise")
    assert store.annotator("Elise") != number
    assert store.person("Ada") is None


def test_agreement_of_the_items(tmp_path: Path, item: Callable[..., Item]) -> None:
    """As the example worked by hand in test_agreement: ab, aa, bbb, and a single vote; skips are left out."""
    answers = [["first", "second"], ["first", "first", "skip"], ["second"] * 3, ["first"]]
    with Store(tmp_path / FILE_NAME, overlap=3) as store:
        store.add_items([item(n) for n in range(4)])
        for number, given in enumerate(answers):
            for person, winner in enumerate(given):
                store.record(item(number).id, store.annotator(f"person {person}"), winner)
        assert store.agreement().alpha == pytest.approx(0.5)
        assert store.agreement().items == 3


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("no database, whatever its name says", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be used as a store of labels"):
        Store(tmp_path / FILE_NAME)


def test_a_place_that_takes_no_file(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(UserError, match=rf"{FILE_NAME} cannot be used as a store of labels \(unable to open"):
        Store(tmp_path / FILE_NAME)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="see that its folder takes files"):
        Store(tmp_path / "file" / FILE_NAME)


WRITER = """
import sys
from pathlib import Path
from cool_rlhf.online.annotation.store import Store
store = Store(Path(sys.argv[1]), overlap=10**6)
annotator = store.annotator(sys.argv[2])
while (item := store.next_item(annotator)) is not None:
    store.record(item.id, annotator, "first")
    print(item.id, flush=True)
"""


def test_every_acknowledged_label_survives_kill_9(tmp_path: Path, item: Callable[..., Item]) -> None:
    """Two writers at once, killed in the middle; whatever they said is there, once."""
    path = tmp_path / FILE_NAME
    with Store(path) as store:
        store.add_items([item(n) for n in range(5000)])
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = {name: subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")}
    told = {name: {writer.stdout.readline().strip() for _ in range(60)} for name, writer in writers.items()}  # type: ignore[union-attr]
    for name, writer in writers.items():
        os.kill(writer.pid, signal.SIGKILL)
        assert writer.stdout is not None
        told[name] |= {line.strip() for line in writer.stdout if line.endswith("\n")}
        assert writer.wait() == -signal.SIGKILL
    with Store(path) as store:
        kept = [(label.annotator, label.item) for label in store.labels()]
    assert len(kept) == len(set(kept))
    assert {(name, number) for name, numbers in told.items() for number in numbers} <= set(kept)
    assert len(kept) - sum(len(numbers) for numbers in told.values()) <= 2, "at most one unsaid label each"


class _FullDisk:
    """A connection that cannot commit."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if statement == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return self._connection.execute(statement, *values)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


def test_what_could_not_be_committed_is_undone_and_ends_there(store: Store, item: Callable[..., Item]) -> None:
    connection = store._connection
    store._connection = _FullDisk(connection)  # type: ignore[assignment]
    with pytest.raises(sqlite3.OperationalError):
        store.add_items([item(0)])
    store._connection = connection
    assert store.items() == []
    store.add_items([item(1)])
    with Store(store.path) as other:
        assert other.items() == [item(1)], "a transaction of its own, not a part of the one that failed"


def test_names_of_people_can_be_seen_and_are_none_of_a_machine(store: Store, item: Callable[..., Item]) -> None:
    for name in ("rule mine:score, 5% noise (no person)", "Model X as judge (NO PERSON) ", "a (no per\u200bson)"):
        for call in (store.annotator, lambda name: store.called(name, "import")):
            with pytest.raises(UserError, match=r"a person's name must not end in \(no person\)"):
                call(name)
    for name in ("\u200b", " \u2060\ufeff ", "\x00"):
        with pytest.raises(UserError, match="1 to 60 characters"):
            store.annotator(name)
    assert store.annotator("A\u200bda") == store.annotator("Ada")
    assert store.annotator("rule mine:score, 5% noise (no person)", "rule")
