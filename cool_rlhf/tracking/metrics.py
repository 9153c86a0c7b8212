"""metrics.jsonl: one JSON object a step with ``stage``, ``round``, ``step``, ``seconds`` and flat numbers."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cool_rlhf.files import read_json_lines
from cool_rlhf.tracking.rows import RowFile

KEYS = ("stage", "round", "step", "seconds")


class NonFiniteMetricError(ArithmeticError):
    """A metric is NaN or infinite: training has diverged, and going on would only overwrite what was learnt before."""


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; none where there is no file. A last line cut by a crash is left out.

    Raises ValueError where any other line is not a JSON object.
    """
    return read_json_lines(Path(path))


class MetricsLog:
    """Appends to ``path``, going on where an earlier run stopped.

    ``seconds`` counts the time of the run whose rows the file holds: after a resume it goes on from the last row kept,
    so time that led to dropped rows, and time between runs, is not in it.

    A NaN or infinite value raises NonFiniteMetricError and writes nothing: JSON has no such numbers, a null would not
    be numeric, and a quantity that does not exist at a step (a domain without prompts in the batch) is left out by
    whoever records it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._opened_at = clock()
        self._file = RowFile(path)
        self._seconds_before = self._last_seconds()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, those of earlier runs included. A row's index is its step in W&B."""
        return self._file.rows

    @property
    def seconds(self) -> float:
        return self._seconds_before + self._clock() - self._opened_at

    def last_step(self, stage: str, round: int) -> int | None:
        """The newest step recorded for a stage of a round, or None."""
        own = (row["step"] for row in reversed(self.rows) if (row["stage"], row["round"]) == (stage, round))
        return next(own, None)

    def append(self, stage: str, round: int, step: int, fields: Mapping[str, float | bool]) -> dict[str, Any]:
        """Write one row and return it.

        Raises NonFiniteMetricError; TypeError for a value that is no number; ValueError for a field named like one of
        the row's own keys, or a step that does not come after the stage's last.
        """
        last = self.last_step(stage, round)
        if last is not None and step <= last:
            raise ValueError(f"{stage}, round {round}: step {step} recorded after step {last}")
        row = {"stage": stage, "round": round, "step": step, "seconds": _milliseconds(self.seconds)}
        for name, value in fields.items():
            if name in KEYS:
                raise ValueError(f"{stage}: a metric cannot be named {name!r}")
            row[name] = _plain(value, f"{stage}, round {round}, step {step}: {name}")
        self._file.append(row)
        return row

    def truncate_after(self, stage: str, round: int, step: int, finished: Collection[tuple[str, int]] = ()) -> int:
        """Go back to the moment when ``step`` of ``stage`` in ``round`` was recorded; returns how many rows went.

        The first row that is neither of this stage up to ``step`` nor of one of the ``finished`` (stage and round) is
        dropped with all that stand behind it, since they came later. ``seconds`` goes on from the last row kept.
        """

        def stands(row: Mapping[str, Any]) -> bool:
            place = (row["stage"], row["round"])
            return place in finished or (place == (stage, round) and row["step"] <= step)

        keep = next((i for i, row in enumerate(self.rows) if not stands(row)), len(self.rows))
        dropped = len(self.rows) - keep
        self._file.truncate(keep)
        self._seconds_before = self._last_seconds()
        return dropped

    def sync(self) -> None:
        """Onto the disk (see RowFile.sync)."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()

    def _last_seconds(self) -> float:
        return float(self.rows[-1]["seconds"]) if self.rows else 0.0


def _milliseconds(seconds: float) -> float:
    return round(seconds, 3)


def _plain(value: Any, where: str) -> float | int | bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{where} is {type(value).__name__}, not a number")
    number = float(value)
    if not math.isfinite(number):
        raise NonFiniteMetricError(f"{where} is {number}; training has diverged, the last saved step still stands")
    return number
