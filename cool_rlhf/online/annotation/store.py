"""Items, annotators and their labels in one SQLite file, shared by the page, the labellers and the rounds.

Every change is a transaction of its own in a write-ahead log that is flushed to the disk (``synchronous=FULL``) before
the call returns: what a caller was told is kept, whatever ends the process or the machine then.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cool_rlhf.online.annotation.agreement import Agreement, agreement
from cool_rlhf.online.annotation.items import PEOPLE, Item, Kind, Label, Winner, item_row, parse_item
from cool_rlhf.protocols import UserError

FILE_NAME = "annotations.sqlite"
NAME_LIMIT = 60  # characters of an annotator's name
NO_PERSON = "(no person)"  # the end of a rule's or judge's name

_WAIT_SECONDS = 60.0  # for another process that writes


class AlreadyLabelledError(Exception):
    """This annotator has judged the item otherwise before; taking that back comes first."""


@dataclass(frozen=True)
class Progress:
    """Of one annotator, and of all: ``mine`` answers given (skips too); ``finished`` of ``items`` have as many labels
    as they need."""

    mine: int
    finished: int
    items: int
    labels: int


class Store:
    """Safe for threads; other processes may have the same file open."""

    def __init__(
        self, path: Path, *, overlap: int = 1, lease_seconds: float = 1800.0, now: Callable[[], float] = time.time
    ):
        """``overlap``: how many people are asked about each item. An item that somebody has had before their eyes for
        ``lease_seconds`` without answering is given to others too. Raises UserError where the file is no store
        and cannot become one."""
        self.path = path
        self._overlap = overlap
        self._lease = lease_seconds
        self._now = now
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _connected(path)
        except (OSError, sqlite3.DatabaseError) as error:
            raise UserError(
                f"{path} cannot be used as a store of labels ({error}): move away what stands there, and see that its "
                "folder takes files"
            ) from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_items(self, items: Iterable[Item]) -> int:
        """Add those that are not there yet, the most wanted label first; returns how many were new."""
        rows = [(item.id, item.round, place, json.dumps(item_row(item))) for place, item in enumerate(items)]
        with self._writing() as connection:
            before = connection.total_changes
            connection.executemany("INSERT OR IGNORE INTO items (id, round, place, body) VALUES (?, ?, ?, ?)", rows)
            return connection.total_changes - before

    def withdraw(self, round: int) -> int:
        """Take back the items of ``round`` that nobody has ever labelled: they ask about policies that are gone.
        Returns how many."""
        with self._writing() as connection:
            unlabelled = "SELECT id FROM items WHERE round = ? AND id NOT IN (SELECT item FROM labels)"
            connection.execute(f"DELETE FROM shown WHERE item IN ({unlabelled})", (round,))
            return connection.execute(f"DELETE FROM items WHERE id IN ({unlabelled})", (round,)).rowcount

    def annotator(self, name: str, kind: Kind = "person") -> int:
        """The number of the annotator ``name``, who is added if need be. Raises UserError for an unfit name, and for
        one that stands for another kind of annotator."""
        number, known = self._called(name, kind)
        if known != kind:
            raise UserError(f"the name {name!r} is taken by a {known}: choose another")
        return number

    def called(self, name: str, kind: Kind) -> int:
        """The number of whoever is called ``name``; where nobody is, an annotator of ``kind`` is added. Raises
        UserError for an unfit name."""
        return self._called(name, kind)[0]

    def _called(self, name: str, kind: Kind) -> tuple[int, Kind]:
        name = _visible(name)
        if not name or (kind == "person" and len(name) > NAME_LIMIT):
            raise UserError(f"an annotator's name has 1 to {NAME_LIMIT} characters")
        if kind in PEOPLE and name.casefold().endswith(NO_PERSON):
            raise UserError(f"a person's name must not end in {NO_PERSON}, as a rule's or judge's does: choose another")
        with self._writing() as connection:
            standing = connection.execute(_CALLED, (name,)).fetchone()
            if standing is not None:
                return standing[0], standing[1]
            return connection.execute(
                "INSERT INTO annotators (name, kind, joined_at) VALUES (?, ?, ?) RETURNING id, kind",
                (name, kind, self._now()),
            ).fetchone()

    def name(self, annotator: int) -> str | None:
        """The name of a person; None where there is no such person."""
        with self._lock:
            row = self._connection.execute(
                "SELECT name FROM annotators WHERE id = ? AND kind = 'person'", (annotator,)
            ).fetchone()
        return row and str(row[0])

    def person(self, name: str) -> tuple[int, str] | None:
        """Number and name, as it was first given, of the person who is called so; None where nobody is."""
        with self._lock:
            row = self._connection.execute(_CALLED, (_visible(name),)).fetchone()
        return (row[0], row[2]) if row is not None and row[1] == "person" else None

    def said(self, item: str, name: str) -> Winner | None:
        """The label of ``item`` that stands of whoever is called ``name``; None where there is none."""
        with self._lock:
            known = self._connection.execute(_CALLED, (_visible(name),)).fetchone()
            standing = known and self._connection.execute(_STANDING, (item, known[0])).fetchone()
        return standing and standing[1]

    def next_item(self, annotator: int) -> Item | None:
        """What the annotator should judge now: what they were shown last and have not answered, else the most wanted
        item of the newest round that needs more people and that they have not judged. None where there is none."""
        with self._writing() as connection:
            open_item = connection.execute(
                "SELECT item FROM shown WHERE annotator = ? ORDER BY id DESC LIMIT 1", (annotator,)
            ).fetchone()
            chosen = open_item or connection.execute(_WANTED, self._wanted(annotator)).fetchone()
            if chosen is None:
                return None
            if open_item is None:
                connection.execute(
                    "INSERT INTO shown (item, annotator, at) VALUES (?, ?, ?)", (chosen[0], annotator, self._now())
                )
            return self._item(chosen[0])

    def _wanted(self, annotator: int) -> Mapping[str, float]:
        return {"annotator": annotator, "overlap": self._overlap, "stale": self._now() - self._lease}

    def record(
        self, item: str, annotator: int, winner: Winner, comment: str = "", seconds: float | None = None
    ) -> None:
        """Keep a label; the same one again changes nothing, so a request may be repeated. ``seconds`` is measured from
        when the item was shown where it is not given.

        Raises AlreadyLabelledError where this annotator has answered otherwise, KeyError for an unknown item.
        """
        with self._writing() as connection:
            if connection.execute("SELECT 1 FROM items WHERE id = ?", (item,)).fetchone() is None:
                raise KeyError(item)
            standing = connection.execute(_STANDING, (item, annotator)).fetchone()
            if standing is not None:
                if standing[1] != winner:
                    raise AlreadyLabelledError(item)
                return
            shown = connection.execute(
                "DELETE FROM shown WHERE item = ? AND annotator = ? RETURNING at", (item, annotator)
            ).fetchone()
            if seconds is None:
                seconds = max(self._now() - shown[0], 0.0) if shown else 0.0
            connection.execute(
                "INSERT INTO labels (item, annotator, winner, comment, seconds, made_at) VALUES (?, ?, ?, ?, ?, ?)",
                (item, annotator, winner, comment, seconds, self._now()),
            )
            connection.execute(_COUNT_VOTE, (winner != "skip", annotator, item))

    def last_label(self, annotator: int) -> tuple[str, Winner] | None:
        """Item and winner of the annotator's latest label that stands: what undo takes back."""
        with self._lock:
            row = self._connection.execute(
                "SELECT item, winner FROM labels WHERE annotator = ? AND undone_at IS NULL ORDER BY id DESC LIMIT 1",
                (annotator,),
            ).fetchone()
        return row and (row[0], row[1])

    def undo(self, item: str, annotator: int) -> bool:
        """Take the annotator's label of ``item`` back and show them the item again; False where none stands, so a
        request may be repeated."""
        with self._writing() as connection:
            standing = connection.execute(_STANDING, (item, annotator)).fetchone()
            if standing is None:
                return False
            number, winner = standing
            connection.execute("UPDATE labels SET undone_at = ? WHERE id = ?", (self._now(), number))
            connection.execute(_COUNT_VOTE, (-(winner != "skip"), annotator, item))
            connection.execute(
                "INSERT OR REPLACE INTO shown (item, annotator, at) VALUES (?, ?, ?)", (item, annotator, self._now())
            )
            return True

    def mark(self) -> tuple[int, int]:
        """Changes with every label that is given or taken back, and with nothing else."""
        with self._lock:
            return self._connection.execute("SELECT COUNT(*), COUNT(undone_at) FROM labels").fetchone()

    def items(self, since_round: int = 0) -> list[Item]:
        """The items of ``since_round`` and later, by round and place."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT body, round FROM items WHERE round >= ? ORDER BY round, place, id", (since_round,)
            ).fetchall()
        return [parse_item(json.loads(body), round, {}) for body, round in rows]

    def labels(self, since_round: int = 0) -> list[Label]:
        """The labels that stand of items of ``since_round`` and later, in the order they were given."""
        with self._lock:
            rows = self._connection.execute(_LABELS, (since_round,)).fetchall()
        return [Label(*row) for row in rows]

    def unlabelled(self, annotator: int, round: int | None = None) -> Sequence[Item]:
        """The items (of one round) that ``annotator`` has not judged, whoever else has."""
        with self._lock:
            judged = {
                row[0]
                for row in self._connection.execute(
                    "SELECT item FROM labels WHERE annotator = ? AND undone_at IS NULL", (annotator,)
                )
            }
        return [item for item in self.items() if round in (None, item.round) and item.id not in judged]

    def progress(self, annotator: int) -> Progress:
        with self._lock:
            finished, items, labels = self._connection.execute(
                "SELECT COALESCE(SUM(votes >= ?), 0), COUNT(*), COALESCE(SUM(votes), 0) FROM items", (self._overlap,)
            ).fetchone()
            (mine,) = self._connection.execute(
                "SELECT COUNT(*) FROM labels WHERE annotator = ? AND undone_at IS NULL", (annotator,)
            ).fetchone()
        return Progress(mine, finished, items, labels)

    def agreement(self) -> Agreement:
        """Of people, over all items; a skip is no judgement."""
        counts: dict[str, Counter[str]] = {}
        with self._lock:
            for item, winner, count in self._connection.execute(_COUNTS):
                counts.setdefault(item, Counter())[winner] = count
        return agreement(counts.values())

    def _item(self, number: str) -> Item:
        body, round = self._connection.execute("SELECT body, round FROM items WHERE id = ?", (number,)).fetchone()
        return parse_item(json.loads(body), round, {})

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """All changes within are one: an error undoes them all."""
        with self._writing():
            yield

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone in the file from its beginning; within another one a part of that."""
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have ended it already
                    self._connection.execute("ROLLBACK")
                raise


def _visible(name: str) -> str:
    """``name`` without characters that nobody sees (Unicode's category C), its words one blank apart, composed."""
    seen = (character for character in " ".join(name.split()) if unicodedata.category(character)[0] != "C")
    return unicodedata.normalize("NFC", " ".join("".join(seen).split()))


def _folded(name: str) -> str:
    """What is the same for two spellings of one name: capitals, and how accents are encoded, make no other person."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.create_function("folded", 1, _folded, deterministic=True)
        connection.executescript(files(__package__).joinpath("schema.sql").read_text(encoding="utf-8"))
    except BaseException:
        connection.close()
        raise
    return connection


_CALLED = "SELECT id, kind, name FROM annotators WHERE folded(name) = folded(?) ORDER BY id LIMIT 1"

_STANDING = "SELECT id, winner FROM labels WHERE item = ? AND annotator = ? AND undone_at IS NULL"

# The labels of rules and judges leave every item to as many people as before.
_COUNT_VOTE = """
UPDATE items SET votes = votes + ? * (SELECT kind IN ('person', 'import') FROM annotators WHERE id = ?) WHERE id = ?
"""

_WANTED = """
SELECT id FROM items
WHERE votes < :overlap
  AND NOT EXISTS (
    SELECT 1 FROM labels WHERE item = items.id AND annotator = :annotator AND undone_at IS NULL)
  AND votes + (SELECT COUNT(*) FROM shown WHERE item = items.id AND at > :stale) < :overlap
ORDER BY round DESC, place, votes, id LIMIT 1
"""

_LABELS = """
SELECT labels.item, annotators.name, annotators.kind, winner, comment, seconds
FROM labels JOIN annotators ON annotators.id = annotator JOIN items ON items.id = item
WHERE undone_at IS NULL AND round >= ? ORDER BY labels.id
"""

_COUNTS = """
SELECT item, winner, COUNT(*) FROM labels JOIN items ON items.id = item JOIN annotators ON annotators.id = annotator
WHERE undone_at IS NULL AND winner != 'skip' AND votes > 1 AND kind IN ('person', 'import') GROUP BY item, winner
"""
