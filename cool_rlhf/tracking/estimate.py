"""How long a run will still take, from what has been measured so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

RECENT_STEPS = 20


@dataclass(frozen=True)
class PlannedStage:
    """One stage that the run will go through.

    ``steps`` counts all of them, the first ``warmup_steps`` being of another, cheaper kind (critic warm-up).
    ``seconds_per_step`` is what to expect before anything is measured; None where nobody can say.
    """

    name: str
    round: int
    steps: int
    warmup_steps: int = 0
    seconds_per_step: float | None = None


@dataclass(frozen=True)
class Left:
    """Seconds still to go. Not ``complete``: some part has never been measured, so it is the least it will take."""

    seconds: float
    complete: bool


class TimeLeft:
    """Measures each kind of stage and adds up what is left of the plan.

    A step's time is the mean over the last ``RECENT_STEPS`` (a mean, so that validation every few steps counts), the
    first one left out once there are others: it pays for compiling and warming up. A later round of a stage is taken
    to go like the earlier one.
    """

    def __init__(self, plan: Sequence[PlannedStage], clock: Callable[[], float] = time.monotonic) -> None:
        self.plan = list(plan)
        self._clock = clock
        self._recent: dict[tuple[str, bool], tuple[float, ...]] = {}
        self._finished: set[tuple[str, int]] = set()
        self._current: PlannedStage | None = None
        self._done = 0
        self._step_began = clock()

    def learn(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take step times from the rows of an earlier run in the same place."""
        for before, row in pairwise(rows):
            if (before["stage"], before["round"]) == (row["stage"], row["round"]):
                steps = max(row["step"] - before["step"], 1)
                self._measure(row["stage"], bool(row.get("warmup")), (row["seconds"] - before["seconds"]) / steps)

    def start(self, name: str, round: int, steps: int, done: int) -> None:
        """A stage begins, ``done`` of its steps lying behind it. What the plan has before it is over."""
        planned = next((p for p in self.plan if (p.name, p.round) == (name, round)), None)
        if planned is not None:
            self._finished.update((p.name, p.round) for p in self.plan[: self.plan.index(planned)])
        warmup_steps = planned.warmup_steps if planned else 0
        self._current = PlannedStage(name, round, steps, warmup_steps, planned.seconds_per_step if planned else None)
        self._done = done
        self._step_began = self._clock()

    def step_done(self, done: int, warmup: bool) -> None:
        if self._current is None:
            raise ValueError("a step ended outside any stage")
        now = self._clock()
        self._measure(self._current.name, warmup, (now - self._step_began) / max(done - self._done, 1))
        self._done = done
        self._step_began = now

    def finish(self) -> None:
        if self._current is not None:
            self._finished.add((self._current.name, self._current.round))
            self._current = None

    def seconds_per_step(self) -> float | None:
        """Of the stage that is running, for the kind of step it is in."""
        stage, done = self._current, self._done
        return self._rate(stage, done < stage.warmup_steps) if stage else None

    def stage_left(self) -> Left | None:
        """Of the stage that is running; None when nothing is running or nothing is known yet."""
        stage = self._current
        if stage is None:
            return None
        left = self._left(stage, self._done)
        elapsed = min(self._clock() - self._step_began, self.seconds_per_step() or 0.0)
        return _known(Left(max(left.seconds - elapsed, 0.0), left.complete))

    def run_left(self) -> Left | None:
        """Of the whole plan; None without a plan or where nothing is known yet."""
        if not self.plan:
            return None
        stage = self._current
        running = (stage.name, stage.round) if stage else None
        waiting = [p for p in self.plan if (p.name, p.round) not in self._finished and (p.name, p.round) != running]
        parts = [self._left(p, 0) for p in waiting]
        if stage is not None:
            parts.append(self.stage_left() or Left(0.0, False))
        return _known(Left(sum(p.seconds for p in parts), all(p.complete for p in parts)))

    def _left(self, stage: PlannedStage, done: int) -> Left:
        warmup_left = max(stage.warmup_steps - done, 0)
        main_left = max(stage.steps - max(done, stage.warmup_steps), 0)
        seconds, complete = 0.0, True
        for count, warmup in ((warmup_left, True), (main_left, False)):
            rate = self._rate(stage, warmup)
            if count and rate is None:
                complete = False
            seconds += count * (rate or 0.0)
        return Left(seconds, complete)

    def _rate(self, stage: PlannedStage, warmup: bool) -> float | None:
        times = self._recent.get((stage.name, warmup))
        if not times:
            return stage.seconds_per_step
        return sum(times) / len(times)

    def _measure(self, name: str, warmup: bool, seconds: float) -> None:
        # Tuples, replaced whole: the bar's thread reads while the driver's writes.
        times = self._recent.get((name, warmup), ())
        if len(times) == 1 and times[0] > seconds:
            times = ()
        self._recent[name, warmup] = (*times, seconds)[-RECENT_STEPS:]


def _known(left: Left) -> Left | None:
    return left if left.complete or left.seconds > 0 else None


def clock_text(seconds: float) -> str:
    """``1:02:03``, ``2:03``: the way a bar shows time."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def left_text(left: Left | None) -> str:
    if left is None:
        return "unknown"
    return clock_text(left.seconds) if left.complete else f"over {clock_text(left.seconds)}"
