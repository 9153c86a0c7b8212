"""What is labelled, and what a label says: pairs of responses under one domain, and who found which of them better.

A row of ``rounds/R/slow_path/pairs.jsonl`` or ``rounds/R/fast_path/review.jsonl`` is one :class:`Item`: ``prompt``
(messages), ``responses`` (two objects with ``text``, ``finished`` and ``source``), ``domain``, optional ``guideline``
and ``answer``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cool_rlhf.data.identity import judged_pair_key
from cool_rlhf.data.messages import RowError, checked_conversation, checked_text, kind_of
from cool_rlhf.data.rows import DEFAULT_DOMAIN
from cool_rlhf.data.sources import UnreadableRow, read_rows
from cool_rlhf.files import write_atomically
from cool_rlhf.folders import round_folders
from cool_rlhf.protocols import Conversation, Message, PreferencePair, UserError

# Of an item's two responses as they stand in it, whatever order they were shown in.
Winner = Literal["first", "second", "tie", "both_bad", "skip"]
Kind = Literal["person", "rule", "judge", "import"]
PEOPLE: tuple[Kind, ...] = ("person", "import")  # what was imported was labelled elsewhere, by people
MACHINES: tuple[Kind, ...] = ("rule", "judge")


@dataclass(frozen=True)
class ShownResponse:
    """``source`` names the model that gave it, such as ``sft`` or ``round 0, late``; annotators do not see it."""

    text: str
    finished: bool
    source: str


@dataclass(frozen=True)
class Item:
    """Two different responses to one prompt, to be judged under ``domain``.

    ``guideline`` is what annotators are told to judge by, the domain's condition as a rule; ``answer`` is what a rule
    needs to judge a response, never shown. ``round`` is the round that asked.
    """

    prompt: Conversation
    first: ShownResponse
    second: ShownResponse
    domain: str
    guideline: str
    answer: str | None
    round: int

    @property
    def id(self) -> str:
        """The same for the same prompt, domain and two responses, in either order and in any round."""
        first, second = self.conversation("first"), self.conversation("second")
        return judged_pair_key(first, second, *self._finished, self.domain)

    @property
    def _finished(self) -> tuple[bool, bool]:
        return self.first.finished, self.second.finished

    def in_drawn_order(self) -> Item:
        """With its two sides as a coin puts them, which the pair alone decides: where a file or another tool shows the
        first one first, that tells nothing of which is the better."""
        texts = (self.first.text, self.first.finished), (self.second.text, self.second.finished)
        coin = bool(hashlib.sha256(f"order {self.id}".encode()).digest()[0] % 2)
        return replace(self, first=self.second, second=self.first) if coin != (texts[0] > texts[1]) else self

    def response(self, side: Literal["first", "second"]) -> ShownResponse:
        return self.first if side == "first" else self.second

    def conversation(self, side: Literal["first", "second"]) -> Conversation:
        return [*self.prompt, Message(role="assistant", content=self.response(side).text)]

    def preference(self, winner: Literal["first", "second"]) -> PreferencePair:
        """The pair that ``winner`` makes of the item."""
        loser: Literal["first", "second"] = "second" if winner == "first" else "first"
        return PreferencePair(
            chosen=self.conversation(winner),
            rejected=self.conversation(loser),
            domain=self.domain,
            margin=None,
            chosen_finished=self.response(winner).finished,
            rejected_finished=self.response(loser).finished,
        )


@dataclass(frozen=True)
class Label:
    """What one annotator said of one item. ``seconds`` is the time from seeing it to answering."""

    item: str
    annotator: str
    kind: Kind
    winner: Winner
    comment: str
    seconds: float


@dataclass(frozen=True)
class GivenLabel:
    """A label as a file has it, at a ``place``; ``kind`` is of an annotator whom the store does not know, ``winner`` of
    ``item``. ``said_by``: the names of all whose votes it sums up, where it sums some up."""

    annotator: str
    kind: Kind
    item: Item
    winner: Winner
    place: str
    comment: str = ""
    seconds: float = 0.0
    said_by: tuple[str, ...] = ()


def write_pairs_to_label(path: Path, items: Iterable[Item]) -> None:
    """``items`` as rows of a pairs.jsonl; their round is that of the folder they stand in."""
    write_atomically(path, "".join(f"{json.dumps(item_row(item), ensure_ascii=False)}\n" for item in items).encode())


def item_row(item: Item) -> dict[str, Any]:
    row = {
        "id": item.id,
        "prompt": item.prompt,
        "responses": [asdict(item.first), asdict(item.second)],
        "domain": item.domain,
        "guideline": item.guideline,
        "answer": item.answer,
    }
    return {name: value for name, value in row.items() if value is not None}


def pair_files(output_dir: Path) -> list[tuple[int, Path]]:
    """Round and file of all pairs that the run has left to be judged, in order."""
    files = ((folder.round, file) for folder in round_folders(output_dir) for file in (folder.review, folder.pairs))
    return [(round, file) for round, file in files if file.is_file()]


def read_pairs_to_label(path: Path, round: int, guidelines: Mapping[str, str]) -> Iterator[Item]:
    """The items of a pairs.jsonl; a row without a guideline gets its domain's of ``guidelines``.

    Raises UserError naming file, row and field of the first bad row.
    """
    for place, row in read_rows(path, "stage=annotate"):
        if isinstance(row, UnreadableRow):
            raise UserError(f"{place} {row}: mend or remove it")
        try:
            yield parse_item(row, round, guidelines)
        except RowError as error:
            raise UserError(f"{place}: {error}") from error


def parse_item(row: Any, round: int, guidelines: Mapping[str, str]) -> Item:
    """Raises RowError naming the field."""
    if not isinstance(row, Mapping):
        raise RowError("prompt", f"is missing: the row is {kind_of(row)}, not an object")
    prompt = checked_conversation(row.get("prompt"), "prompt")
    if prompt[-1]["role"] == "assistant":
        raise RowError("prompt", "ends in the assistant's turn: it must end before the responses")
    responses = row.get("responses")
    if not isinstance(responses, Sequence) or isinstance(responses, str) or len(responses) != 2:
        raise RowError("responses", "must be a list of two responses")
    first, second = (_response(response, f"responses[{index}]") for index, response in enumerate(responses))
    if (first.text, first.finished) == (second.text, second.finished):
        raise RowError("responses", "are the same: there is nothing to prefer")
    domain = _optional_text(row, "domain") or DEFAULT_DOMAIN
    guideline = _optional_text(row, "guideline")
    guideline = guidelines.get(domain, "") if guideline is None else guideline
    return Item(prompt, first, second, domain, guideline, _optional_text(row, "answer"), round)


def _response(value: Any, field: str) -> ShownResponse:
    if not isinstance(value, Mapping):
        raise RowError(field, f"must be an object with `text`, not {kind_of(value)}")
    finished = value.get("finished", True)
    if not isinstance(finished, bool):
        raise RowError(f"{field}.finished", f"must be true or false, not {kind_of(finished)}")
    text = checked_text(value.get("text"), f"{field}.text", may_be_empty=True)
    return ShownResponse(text, finished, _optional_text(value, "source", f"{field}.source") or "")


def _optional_text(row: Mapping[str, Any], name: str, field: str | None = None) -> str | None:
    value = row.get(name)
    return None if value is None else checked_text(value, field or name, may_be_empty=True)
