"""Rows of data, checked and ready to train on.

``check_sources`` reads every row that a run will use and names the first bad one; it imports neither torch nor
datasets. The ``load_…`` functions keep the checked rows in a memory-mapped Arrow file (through ``datasets``), so a run
holds no more of them in memory than it looks at.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, cast, overload

from cool_rlhf.config import Config
from cool_rlhf.data.identity import pair_key, prompt_key
from cool_rlhf.data.messages import RowError, with_system_turn, without_system_turn
from cool_rlhf.data.room import Room
from cool_rlhf.data.rows import DEFAULT_DOMAIN, PARSERS, Row, RowRules, SameResponseError
from cool_rlhf.data.sources import HubName, Place, UnreadableRow, load_hub, read_rows, resolve, without_split
from cool_rlhf.protocols import Conversation, Message, PreferencePair, Prompt, UserError

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")

logger = logging.getLogger(__name__)

EQUAL = "equal responses"
MALFORMED = "malformed"

# Raised whenever what a checked row holds changes, so that no rows cached by an older version are used.
_FORMAT = 8


class Chat(TypedDict):
    """One conversation to imitate, ending in the assistant's turn."""

    messages: Conversation
    domain: str


@dataclass(frozen=True)
class Reading:
    """How rows are read: the ``domains`` that have a condition (None accepts any), the domain of each source whose
    rows name none, whether the rows hold sampled responses (see ``RowRules``), what becomes of bad rows
    (``data.bad_rows``), the ``system`` turn that prompts without one are asked with, and the ``room`` that they and a
    response have (None: any length will do)."""

    domains: tuple[str, ...] | None = None  # in order, as the cache of checked rows goes by what this looks like
    domain_of_source: tuple[tuple[str, str], ...] = ()
    sampled: bool = False
    bad_rows: str = "refuse"
    system: str | None = None
    room: Room | None = None

    @classmethod
    def of(cls, config: Config, sampled: bool = False) -> Reading:
        """As a run of ``config`` reads its rows."""
        data = config.data
        return cls(
            domains=tuple(sorted(config.conditions)),
            domain_of_source=tuple(sorted(data.domains.items())),
            sampled=sampled,
            bad_rows=data.bad_rows,
            system=config.sampling.system_prompt,
            room=Room.of(config),
        )

    def rules(self, source: str) -> RowRules:
        domains = None if self.domains is None else frozenset(self.domains)
        named = dict(self.domain_of_source)
        domain = named.get(source) or named.get(without_split(source), DEFAULT_DOMAIN)
        return RowRules(domains, domain, self.sampled, self._full)

    def _full(self, messages: Conversation) -> str | None:
        return None if self.room is None else self.room.problem(with_system_turn(messages, self.system))

    def drops_bad(self, part: Path | HubName) -> bool:
        """Whether bad rows of a file or set are left out."""
        return self.bad_rows == "drop" or (self.bad_rows == "drop_hub" and isinstance(part, HubName))


@dataclass
class Faults:
    """Bad rows as they are told of: the first one, and how many there are."""

    first: str = ""
    count: int = 0

    def add(self, sentence: str) -> None:
        self.first = self.first or sentence
        self.count += 1

    def __str__(self) -> str:
        others = self.count - 1
        return f"{self.first} ({others} more bad {'row' if others == 1 else 'rows'})" if others else self.first


@dataclass(frozen=True)
class CheckedRow:
    """A row with where it stands; ``row`` is None where it is left out, for ``reason``."""

    source: str
    place: Place
    domain: str
    row: Row | None
    reason: str


class Records(Sequence[T], Generic[T]):
    """Checked rows on disk, read as records when they are looked at."""

    def __init__(self, rows: datasets.Dataset, record: Callable[[Row], T]) -> None:
        self.rows = rows
        self._record = record

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._record(self.rows[index])

    def __iter__(self) -> Iterator[T]:
        for table in self.rows.with_format("arrow").iter(batch_size=1000):
            for row in table.to_pylist():
                yield self._record(row)


def check_sources(kind: str, sources: Sequence[str], reading: Reading | None = None, key: str | None = None) -> int:
    """Read every row of the sources of ``kind`` (sft, preferences, prompts, pretrain); returns how many are good.

    Raises UserError naming the file, row and field of the first bad row, and how many more are bad; where they are to
    be left out that is a warning, unless a file holds no others. ``key`` is the setting that the sources come from.
    """
    return sum(1 for _ in good_rows(kind, sources, reading or Reading(), key or f"data.{kind}"))


def good_rows(kind: str, sources: Sequence[str], reading: Reading, key: str) -> Iterator[Row]:
    """The rows of ``kind`` as its parser gives them, but for those that are left out; raises UserError as
    ``check_sources`` does."""
    return (item.row for item in _checked_rows(kind, sources, reading, key) if item.row is not None)


def left_out(kind: str, sources: Sequence[str], reading: Reading, key: str) -> Counter[str]:
    """Why rows of ``kind`` are left out → how many; raises UserError as ``check_sources`` does."""
    return Counter(item.reason for item in _checked_rows(kind, sources, reading, key) if item.reason)


def load_chats(sources: Sequence[str], reading: Reading | None = None) -> Sequence[Chat]:
    """Rows of ``messages``, optional ``domain``. Raises UserError as ``check_sources`` does."""
    return _load(
        "sft", sources, reading, lambda row: Chat(messages=_conversation(row["messages"]), domain=row["domain"])
    )


def load_preferences(sources: Sequence[str], reading: Reading | None = None) -> Sequence[PreferencePair]:
    """Rows of ``prompt``, ``chosen``, ``rejected``, optional ``domain``, ``margin`` and ``subset``; and, where
    responses were sampled, optional ``chosen_finished`` and ``rejected_finished``. Raises UserError as
    ``check_sources`` does."""
    rows = preference_rows(sources, reading or Reading())
    return preference_records(rows, [index for index, reason in enumerate(rows["reason"]) if not reason])


def preference_rows(sources: Sequence[str], reading: Reading, key: str = "data.preferences") -> datasets.Dataset:
    """As ``load_preferences``, but with the pairs that are left out and the ``reason``, and for each pair its
    ``source``, its ``place``, who it says it was ``labelled_by``, the keys of its ``prompt`` and ``pair`` (see
    ``cool_rlhf.data.identity``) and whether it is ``swapped``."""
    return _rows("preferences", sources, reading, key)


def preference_records(rows: datasets.Dataset, indices: Sequence[int]) -> Records[PreferencePair]:
    """Those of ``preference_rows`` that ``indices`` names, in this order and as often as it names them."""
    names = [field.name for field in fields(PreferencePair)]
    chosen = rows.select_columns(names)
    if list(indices) != list(range(len(rows))):
        chosen = chosen.select(indices)

    def record(row: Row) -> PreferencePair:
        return PreferencePair(**{**row, **{side: _conversation(row[side]) for side in ("chosen", "rejected")}})

    return Records(chosen, record)


def load_prompts(sources: Sequence[str], reading: Reading | None = None) -> Sequence[Prompt]:
    """Rows of ``prompt``, optional ``domain`` and ``answer``; prompts without a system turn get that of ``reading``.
    Raises UserError as ``check_sources`` does."""
    reading = reading or Reading()

    def record(row: Row) -> Prompt:
        messages = with_system_turn(_conversation(row["messages"]), reading.system)
        return Prompt(row["id"], messages, row["domain"], row["answer"])

    return _load("prompts", sources, reading, record)


def load_pretrain(sources: Sequence[str], reading: Reading | None = None) -> Sequence[str]:
    """Rows of ``text``. Raises UserError as ``check_sources`` does."""
    return _load("pretrain", sources, reading, lambda row: str(row["text"]))


def _checked_rows(kind: str, sources: Sequence[str], reading: Reading, key: str) -> Iterator[CheckedRow]:
    """All rows of all sources; raises UserError at the end if there were bad ones, unless those are left out.

    A pair of two equal responses is left out, unless its file holds nothing else.
    """
    parse = PARSERS[kind]
    refused = Faults()
    for source, part in [(name, part) for name in sources for part in resolve(name, key)]:
        rules, drop, excuse, used = reading.rules(source), reading.drops_bad(part), "", False
        faults = Faults() if drop else refused
        for place, row in read_rows(part, key):
            try:
                parsed = parse(_as_object(row), rules)
                checked = CheckedRow(source, place, str(parsed.get("domain", "")), parsed, "")
                used = True
            except SameResponseError as error:
                excuse = excuse or _sentence(key, place, error)
                checked = CheckedRow(source, place, error.domain, None, EQUAL)
            except RowError as error:
                sentence = _sentence(key, place, error)
                faults.add(sentence)
                excuse, used = excuse or sentence, used or not drop
                checked = CheckedRow(source, place, rules.domain, None, MALFORMED)
            yield checked
        if not used:
            raise UserError(excuse or f"{key}: {part} holds no rows; fill it or leave it out")
        if drop and faults.count:
            logger.warning("left out: %s", faults)
    if refused.count:
        raise UserError(f"{refused}; data.bad_rows=drop leaves such rows out")


def _sentence(key: str, place: Place, error: RowError) -> str:
    return f"{key}: {place}: {error}" if error.field else f"{key}: {place} {error.problem}"


def _as_object(row: Any) -> Mapping[str, Any]:
    if isinstance(row, UnreadableRow):
        raise RowError("", str(row))
    if not isinstance(row, Mapping):
        raise RowError("", f"is not a JSON object but a {type(row).__name__}")
    return row


def _load(kind: str, sources: Sequence[str], reading: Reading | None, record: Callable[[Row], T]) -> Records[T]:
    return Records(_rows(kind, sources, reading or Reading(), f"data.{kind}"), record)


def _rows(kind: str, sources: Sequence[str], reading: Reading, key: str) -> datasets.Dataset:
    import datasets

    stamps = [_stamp(part, key) for source in sources for part in resolve(source, key)]
    features = datasets.Features(_features()[kind])
    if not sources:
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    arguments = {"kind": kind, "sources": tuple(sources), "reading": reading, "stamps": (*stamps, _FORMAT), "key": key}
    _check_cache(Path(datasets.config.HF_DATASETS_CACHE))
    with _quiet(datasets):
        try:
            return datasets.Dataset.from_generator(_generate, features=features, gen_kwargs=arguments)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise


def _check_cache(folder: Path) -> None:
    """``datasets`` keeps the rows there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"checked rows are kept in {folder}, which takes no files ({error.strerror}): set HF_DATASETS_CACHE, or "
            "HF_HOME, to a folder that does"
        ) from error


def _generate(
    kind: str, sources: tuple[str, ...], reading: Reading, stamps: tuple[str | int, ...], key: str
) -> Iterator[Row]:
    """``stamps`` is only part of the cache's key: files that changed are read again."""
    for item in _checked_rows(kind, sources, reading, key):
        if kind == "preferences":
            yield _traced(item, reading.system)
        elif item.row is not None:
            yield item.row


def _traced(item: CheckedRow, system: str | None) -> Row:
    """A pair with where it stands and what it is compared by; one that was left out without its conversations."""
    known = {"domain": item.domain, "source": item.source, "place": str(item.place), "reason": item.reason}
    pair = item.row
    if pair is None:
        nothing: Row = {
            "chosen": [],
            "rejected": [],
            "margin": None,
            "chosen_finished": True,
            "rejected_finished": True,
            "subset": None,
            "labelled_by": [],
        }
        return {**nothing, **known, "prompt": "", "pair": "", "swapped": False}
    key, swapped = pair_key(pair["chosen"], pair["rejected"], pair["chosen_finished"], pair["rejected_finished"])
    asked = without_system_turn(pair["chosen"][:-1], system)
    return {**pair, **known, "prompt": prompt_key(asked), "pair": key, "swapped": swapped}


def _stamp(part: Path | HubName, key: str) -> str:
    if isinstance(part, HubName):
        return f"{part} {load_hub(part, key)._fingerprint}"  # another one for another revision
    status = part.stat()
    return f"{part.resolve()} {status.st_size} {status.st_mtime_ns}"


def _conversation(turns: Sequence[Mapping[str, Any]]) -> Conversation:
    """``turns`` as they were before Arrow gave each of them a name and a weight, None where it has none."""
    return [cast(Message, {key: value for key, value in turn.items() if value is not None}) for turn in turns]


def _features() -> dict[str, dict[str, Any]]:
    from datasets import List, Value

    text, flag = Value("string"), Value("bool")
    turn = {"role": text, "content": text, "name": text}
    messages = List(turn)
    finished = {"chosen_finished": flag, "rejected_finished": flag}
    traced = {**dict.fromkeys(("source", "place", "prompt", "pair", "reason"), text), "swapped": flag}
    return {
        "sft": {"messages": List({**turn, "weight": Value("int8")}), "domain": text},
        "preferences": {
            "chosen": messages, "rejected": messages, "domain": text, "margin": Value("float64"), **finished, **traced,
            "subset": text, "labelled_by": List(text),
        },
        "prompts": {"id": text, "messages": messages, "domain": text, "answer": text},
        "pretrain": {"text": text},
    }  # fmt: skip


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Hide the library's own progress bars: the run has one."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
