"""From the labels that have arrived to preference pairs. A round takes what is there and never waits."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cool_rlhf.files import write_atomically
from cool_rlhf.folders import RoundFolder
from cool_rlhf.online.annotation.items import PEOPLE, Item, Label
from cool_rlhf.online.annotation.store import Store
from cool_rlhf.protocols import PreferencePair


@dataclass(frozen=True)
class Labelled:
    """An item with the labels that stand."""

    item: Item
    labels: tuple[Label, ...]

    @property
    def winner(self) -> Literal["first", "second"] | None:
        """The response that more than half of those who judged prefer; a tie and "both bad" are votes for neither."""
        votes = Counter(label.winner for label in self.counted)
        for side in ("first", "second"):
            if 2 * votes[side] > votes.total():
                return side
        return None

    @property
    def tied_by_rule(self) -> bool:
        """Whether rules alone have judged, and gave both responses the same."""
        return bool(self.counted) and all((label.kind, label.winner) == ("rule", "tie") for label in self.counted)

    @property
    def counted(self) -> list[Label]:
        """A skip is no judgement; rules and judges count where no person has judged."""
        judged = [label for label in self.labels if label.winner != "skip"]
        return [label for label in judged if label.kind in PEOPLE] or judged


def labelled(store: Store, since_round: int = 0) -> list[Labelled]:
    """Every item of ``since_round`` and later that has a label, in order."""
    of_item: dict[str, list[Label]] = defaultdict(list)
    for label in store.labels(since_round):
        of_item[label.item].append(label)
    return [Labelled(item, tuple(of_item[item.id])) for item in store.items(since_round) if item.id in of_item]


def arrived(store: Store, since_round: int = 0) -> list[PreferencePair]:
    """The pairs that the labels so far make of the items of ``since_round`` and later, by majority."""
    decided = [(entry.item, entry.winner) for entry in labelled(store, since_round)]
    return [item.preference(winner) for item, winner in decided if winner is not None]


def label_row(entry: Labelled, winner: Literal["first", "second"]) -> dict[str, Any]:
    """A preference row in TRL's form, with the votes and whose count: names of rules and judges say what they are."""
    pair = entry.item.preference(winner)
    loser: Literal["first", "second"] = "second" if winner == "first" else "first"
    votes = Counter(label.winner for label in entry.labels)
    named: dict[str, str] = {winner: "chosen", loser: "rejected"}
    return {
        "id": entry.item.id,
        "prompt": entry.item.prompt,
        "chosen": pair.chosen[-1:],
        "rejected": pair.rejected[-1:],
        "domain": pair.domain,
        "chosen_finished": pair.chosen_finished,
        "rejected_finished": pair.rejected_finished,
        "chosen_source": entry.item.response(winner).source,
        "rejected_source": entry.item.response(loser).source,
        "votes": {named.get(answer, answer): count for answer, count in votes.items()},
        "labelled_by": sorted({f"{label.kind}: {label.annotator}" for label in entry.counted}),
    }


def write_labels(store: Store, output_dir: Path) -> dict[int, int]:
    """Write ``rounds/R/slow_path/labels.jsonl`` of every round that has labels: the items on which most agree, as
    preference rows. Returns the rows of each round."""
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in labelled(store):
        if entry.winner is not None:
            rows[entry.item.round].append(label_row(entry, entry.winner))
    for round in {item.round for item in store.items()}:
        _write(RoundFolder(output_dir, round).labels, rows[round])
    return {round: len(found) for round, found in rows.items()}


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)
