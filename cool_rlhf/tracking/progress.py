"""The progress bar on standard error; plain lines where that is not a terminal."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm

from cool_rlhf.tracking.estimate import TimeLeft, clock_text, left_text

LINE_SECONDS = 15.0
REFRESH_SECONDS = 1.0

# What a stage's bar shows of its metrics, the first few that are there.
_SHOWN = {
    "reward/score": "score",
    "kl": "KL",
    "loss/value": "value loss",
    "loss": "loss",
    "loss/sft": "loss",
    "loss/reward": "loss",
    "accuracy": "accuracy",
}
_SHOWN_AT_ONCE = 3


class Progress:
    """Shows the running stage and phase, steps done, a few newest numbers, and the time left of stage and run.

    A thread of its own keeps the clock moving while a step takes long; ``close`` ends it.
    """

    def __init__(self, time_left: TimeLeft, stream: TextIO | None = None, line_seconds: float = LINE_SECONDS) -> None:
        self._time_left = time_left
        self._stream = stream or sys.stderr
        self._line_seconds = line_seconds
        self._lock = threading.RLock()
        self._bar: tqdm | None = None
        self._terminal = self._stream.isatty()
        self._stage = ""
        self._phase = ""
        self._numbers = ""
        self._done = 0
        self._total: int | None = None  # not known while the stage is prepared
        self._began = 0.0
        self._took: float | None = None  # seconds, once the stage is over
        self._line_at = time.monotonic() - line_seconds
        self._closed = threading.Event()
        self._ticker: threading.Thread | None = None

    def prepare(self, stage: str, round: int, doing: str) -> None:
        """A stage's first step is being prepared, at present by ``doing``."""
        with self._lock:
            self._open(f"{stage} · round {round}", None, 0)
            self._phase = doing
            self._show()

    def start(self, stage: str, round: int, total: int, done: int) -> None:
        with self._lock:
            self._open(f"{stage} · round {round}", total, done)
            self._phase = ""
            self._show()

    def expect(self, total: int) -> None:
        with self._lock:
            self._total = total
            self._show()

    def phase(self, name: str) -> None:
        """What the step is doing now (generate, score, train, …)."""
        with self._lock:
            self._phase = name
            self._show()

    def advance(self, done: int, fields: Mapping[str, float | bool]) -> None:
        with self._lock:
            self._done = done
            shown = [f"{label} {fields[name]:.3g}" for name, label in _SHOWN.items() if name in fields]
            self._numbers = " · ".join(shown[:_SHOWN_AT_ONCE])
            self._show()

    def finish(self) -> None:
        """The running stage is over: leave its last line standing."""
        with self._lock:
            if not self._stage:
                return
            self._phase = ""
            self._took = time.monotonic() - self._began
            if self._bar is not None:
                self._show()
                self._bar.close()
                self._bar = None
            else:
                self._write_line()
            self._stage = ""

    def close(self) -> None:
        self._closed.set()
        if self._ticker is not None:
            self._ticker.join()
            self._ticker = None
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
            self._stage = ""

    def _open(self, stage: str, total: int | None, done: int) -> None:
        self._done, self._total = done, total
        if self._stage != stage:
            self._stage, self._numbers = stage, ""
            self._began, self._took = time.monotonic(), None
            self._line_at = time.monotonic() - self._line_seconds
            if self._terminal:
                self._bar = tqdm(file=self._stream, dynamic_ncols=True, leave=True, bar_format=stage)
        if self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
            self._ticker.start()

    def _tick(self) -> None:
        while not self._closed.wait(REFRESH_SECONDS):
            with self._lock:
                if self._stage:
                    self._show()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.n, self._bar.total = self._done, self._total or math.inf
            self._bar.bar_format = f"{self._title()} |{{bar:12}}| {self._rest()}"
            self._bar.refresh()
        elif not self._terminal and time.monotonic() - self._line_at >= self._line_seconds:
            self._write_line()

    def _write_line(self) -> None:
        self._line_at = time.monotonic()
        print(f"{self._title()} · {self._rest()}", file=self._stream, flush=True)

    def _title(self) -> str:
        return f"{self._stage} · {self._phase}" if self._phase else self._stage

    def _rest(self) -> str:
        parts = [f"{self._done}/{self._total}"] if self._total is not None else []
        parts += [self._numbers] if self._numbers else []
        rate = self._time_left.seconds_per_step()
        if rate:
            parts.append(f"{rate:.1f} s/step" if rate >= 0.1 else f"{1 / rate:.0f} steps/s")
        if self._took is None:
            parts.append(f"stage {left_text(self._time_left.stage_left())} left")
        else:
            parts.append(f"took {clock_text(self._took)}")
        if self._time_left.plan:
            parts.append(f"run {left_text(self._time_left.run_left())} left")
        return " · ".join(parts)
