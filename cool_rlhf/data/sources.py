"""From a source named in the config to its rows, each with its place: JSONL and Parquet files, globs, Hub names.

A Hub source is ``OWNER/NAME``, with ``@CONFIGURATION``, or ``@FOLDER/``, and ``:SPLIT`` behind it where the set has
several; a split may be cut as ``datasets`` cuts it, ``:train[:1000]``.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cool_rlhf.data.hub import cached_set, prepare_hub
from cool_rlhf.data.messages import RowError
from cool_rlhf.files import check_reachable
from cool_rlhf.protocols import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow

_HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@((?P<folder>[\w./-]+)/|(?P<configuration>[\w.-]+)))?"
    r"(:(?P<split>[\w.-]+(\[[\w%:+-]*\])?))?$"
)
_FILE_SUFFIX = re.compile(
    r"\.(jsonl?|parquet|csv|tsv|txt|ya?ml|gz|zst|zip|bz2|xz|arrow|pickle|pkl|md|html)$", re.IGNORECASE
)
_READABLE = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Place:
    """Where a row stands. ``row`` counts from 1; in JSONL files it is the line."""

    source: str
    row: int

    def __str__(self) -> str:
        return f"{self.source}, row {self.row}"


class UnreadableRow(ValueError):
    """A row that could not even be read; reading goes on behind it."""


@dataclass(frozen=True)
class HubName:
    name: str
    folder: str | None  # of the set's files that its rows lie in: ``data_dir`` of ``datasets``
    configuration: str | None
    split: str

    def __str__(self) -> str:
        folder = f"@{self.folder}/" if self.folder else ""
        configuration = f"@{self.configuration}" if self.configuration else ""
        return f"{self.name}{folder}{configuration}:{self.split}"


def without_split(source: str) -> str:
    """A Hub source as it is named where all of its splits are meant; files are named whole."""
    return source if _FILE_SUFFIX.search(source) else source.partition(":")[0]


def resolve(source: str, key: str) -> list[Path | HubName]:
    """The files that ``source`` (an entry of the config's ``key``) stands for, or the Hub's data set.

    Raises UserError for a missing file, a glob without a match, a folder, a path that may not be looked at, or a kind
    of file that is not read.
    """
    if not source.strip():
        raise UserError(f"{key} holds an empty name: give JSONL or Parquet files, globs or Hub names")
    check_reachable(source, key)
    path = Path(source)
    if path.is_file():
        return [_readable(path, key)]
    if path.is_dir():
        raise UserError(f"{key}: {source} is a folder; name its files, for example {source.rstrip('/')}/*.jsonl")
    hub = _HUB_NAME.match(source)
    if hub and not _FILE_SUFFIX.search(source):
        return [HubName(hub["name"], hub["folder"], hub["configuration"], hub["split"] or "train")]
    if glob.has_magic(source):
        matches = glob.glob(str(path), recursive=True)
        for match in matches:
            check_reachable(match, key)
        files = sorted(Path(match) for match in matches if Path(match).is_file())
        if not files:
            raise UserError(f"{key}: no file matches {source}")
        return [_readable(file, key) for file in files]
    raise UserError(f"{key}: there is no file {source}")


def read_rows(part: Path | HubName, key: str) -> Iterator[tuple[Place, Any]]:
    """Every row of a file or set with its place; a row that cannot be read is given as an UnreadableRow.

    Raises UserError where the whole file or set cannot be read.
    """
    if isinstance(part, HubName):
        yield from _read_hub(part, key)
    elif part.suffix.lower() == ".jsonl":
        yield from _read_jsonl(part, key)
    else:
        yield from _read_parquet(part, key)


def _readable(path: Path, key: str) -> Path:
    if path.suffix.lower() not in _READABLE:
        raise UserError(f"{key}: {path} is neither JSON lines (.jsonl) nor Parquet (.parquet); convert it")
    return path


def _read_jsonl(path: Path, key: str) -> Iterator[tuple[Place, Any]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield Place(str(path), number), _decode(line, complete=line.endswith(b"\n"))
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror})") from error


class _RepeatedKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that stands there twice JSON's readers take the last, and nothing says that it is the one meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKey(next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index])))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _decode(line: bytes, complete: bool) -> Any:
    try:
        return _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError:
        return UnreadableRow("is not UTF-8 text")
    except json.JSONDecodeError as error:
        cut = "" if complete else " (the file may have been cut off)"
        return UnreadableRow(f"is not valid JSON: {error.msg} at character {error.pos + 1}{cut}")
    except RecursionError:
        return UnreadableRow("is not valid JSON: it is nested too deeply")
    except _RepeatedKey as error:
        return UnreadableRow(f"has the key {str(error)[:60]!r} twice in one object: leave one of the two out")
    except ValueError:  # Python reads no number of more than a few thousand digits
        return UnreadableRow("holds a number with too many digits")


class _Columns(dict[str, list[Any]]):
    """The values of a batch by column, each read when it is first asked for: a column that nobody asks for may hold
    anything. In the place of a value that cannot be read stands the RowError that says so."""

    def __init__(self, batch: pyarrow.RecordBatch) -> None:
        super().__init__()
        self.names = batch.schema.names
        self.column = batch.column

    def __missing__(self, name: str) -> list[Any]:
        if name not in self.names:
            raise KeyError(name)
        column = self.column(name)
        try:
            self[name] = column.to_pylist()
        except (ValueError, OverflowError):
            self[name] = [_read_cell(cell, name) for cell in column]
        return self[name]


def _read_cell(cell: pyarrow.Scalar, name: str) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return RowError(name, "is not UTF-8 text")
    except (ValueError, OverflowError) as error:  # as a date that Python has no year for
        return RowError(name, f"cannot be read ({error})")


class _ParquetRow(Mapping[str, Any]):
    """Raises RowError for a field that cannot be read, once it is asked for."""

    def __init__(self, columns: _Columns, index: int) -> None:
        self._columns = columns
        self._index = index

    def __getitem__(self, name: str) -> Any:
        value = self._columns[name][self._index]
        if isinstance(value, RowError):
            raise value
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._columns.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.names)

    def __len__(self) -> int:
        return len(self._columns.names)


def _read_parquet(path: Path, key: str) -> Iterator[tuple[Place, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                columns = _Columns(batch)
                for index in range(len(batch)):
                    number += 1
                    yield Place(str(path), number), _ParquetRow(columns, index)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{key}: {path} cannot be read as Parquet ({reason})") from error


def _read_hub(hub: HubName, key: str) -> Iterator[tuple[Place, Any]]:
    for number, row in enumerate(load_hub(hub, key), start=1):
        yield Place(str(hub), number), row


def load_hub(hub: HubName, key: str) -> datasets.Dataset:
    """The rows of a set, fetched if they are not in the cache. Raises UserError where they cannot be had."""
    reachable = prepare_hub()
    unreachable = "it is out of reach and there is no copy in the cache"
    if not reachable and not cached_set(hub.name):
        raise UserError(f"{key}: {hub} cannot be had from the Hub ({unreachable}): point {key} at a local copy")

    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return datasets.load_dataset(hub.name, hub.configuration, data_dir=hub.folder, split=hub.split)
    # A RuntimeError says that the set is a script, which `datasets` runs no longer.
    except (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        reason = said if reachable else unreachable
        raise UserError(f"{key}: {hub} cannot be had from the Hub ({reason}): point {key} at a local copy") from error
