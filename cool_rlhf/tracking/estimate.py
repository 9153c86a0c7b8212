"""How long a run will still take, from what has been measured so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

RECENT_STEPS = 20


@dataclass(frozen=True)
class PlannedStage:
    """One stage that the run will go through.

    ``steps`` counts all of them, the first ``warmup_steps`` being of another, cheaper kind (critic warm-up).
    ``work`` of a step is comparable between stages: the time of a kind of step that has not been measured is taken from
    what work took so far; 0 where nobody can say. ``startup_seconds`` and ``ending_seconds`` are what to expect before
    the first step (processes start, models load) and after the last (weights are exported).
    """

    name: str
    round: int
    steps: int
    warmup_steps: int = 0
    work: float = 0.0
    startup_seconds: float = 0.0
    ending_seconds: float = 0.0


@dataclass(frozen=True)
class Left:
    """Seconds still to go. Not ``complete``: of some part nothing is known, so it is the least it will take. Not
    ``measured``: some part has never been measured, only reckoned from the others."""

    seconds: float
    complete: bool
    measured: bool = True


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
        self._seconds_per_work: float | None = None
        self._around: dict[tuple[str, str], float] = {}  # (stage, "startup" or "ending") -> seconds
        self._current: PlannedStage | None = None
        self._preparing = False
        self._done = 0
        self._step_began = clock()

    def learn(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take step times from the rows of an earlier run in the same place."""
        for before, row in pairwise(rows):
            if (before["stage"], before["round"]) == (row["stage"], row["round"]):
                steps = max(row["step"] - before["step"], 1)
                self._measure(row["stage"], bool(row.get("warmup")), (row["seconds"] - before["seconds"]) / steps)

    def prepare(self, name: str, round: int) -> None:
        """What comes before a stage's first step begins. What the plan has before the stage is over."""
        planned = next((p for p in self.plan if (p.name, p.round) == (name, round)), None)
        if planned is not None:
            self._finished.update((p.name, p.round) for p in self.plan[: self.plan.index(planned)])
        self._current = planned or PlannedStage(name, round, 0)
        self._preparing = True
        self._done = 0
        self._step_began = self._clock()

    def start(self, name: str, round: int, steps: int, done: int) -> None:
        """A stage's steps begin, ``done`` of them lying behind it."""
        if self._preparing:
            self._around[name, "startup"] = self._clock() - self._step_began
        else:
            self.prepare(name, round)
        assert self._current is not None
        self._current = replace(self._current, steps=steps)
        self._preparing = False
        self._done = done
        self._step_began = self._clock()

    def expect(self, steps: int) -> None:
        """The running stage has as many steps in all."""
        if self._current is not None:
            self._current = replace(self._current, steps=steps)

    def step_done(self, done: int, warmup: bool) -> None:
        if self._current is None:
            raise ValueError("a step ended outside any stage")
        now = self._clock()
        self._measure(self._current.name, warmup, (now - self._step_began) / max(done - self._done, 1))
        self._done = done
        self._step_began = now

    def finish(self) -> None:
        """The running stage is over, what comes after its last step included."""
        if self._current is not None:
            self._around[self._current.name, "ending"] = self._clock() - self._step_began
            self._finished.add((self._current.name, self._current.round))
            self._current = None

    def seconds_per_step(self) -> float | None:
        """Of the stage that is running, for the kind of step it is in; None before one was measured."""
        stage, done = self._current, self._done
        return _mean(self._recent.get((stage.name, done < stage.warmup_steps), ())) if stage else None

    def stage_left(self) -> Left | None:
        """Of the stage that is running or being prepared; None when none is or nothing is known yet."""
        stage = self._current
        if stage is None:
            return None
        left = self._left(stage, self._done, self._preparing)
        elapsed = self._clock() - self._step_began
        if self._preparing:
            step: float | None = self._seconds_around(stage, "startup")
        elif self._done >= stage.steps:
            step = self._seconds_around(stage, "ending")
        else:
            step = self._rate(stage, self._done < stage.warmup_steps)
        left = replace(left, seconds=max(left.seconds - min(elapsed, step or 0.0), 0.0))
        if self._preparing and elapsed > (step or 0.0):
            left = replace(left, complete=False)  # slower than expected, by how much nobody knows
        return _known(left)

    def run_left(self) -> Left | None:
        """Of the whole plan; None without a plan or where nothing is known yet."""
        if not self.plan:
            return None
        stage = self._current
        running = (stage.name, stage.round) if stage else None
        waiting = [p for p in self.plan if (p.name, p.round) not in self._finished and (p.name, p.round) != running]
        parts = [self._left(p, 0, preparing=True) for p in waiting]
        if stage is not None:
            parts.append(self.stage_left() or Left(0.0, False))
        complete, measured = all(p.complete for p in parts), all(p.measured for p in parts)
        return _known(Left(sum(p.seconds for p in parts), complete, measured))

    def _left(self, stage: PlannedStage, done: int, preparing: bool) -> Left:
        warmup_left = max(stage.warmup_steps - done, 0)
        main_left = max(stage.steps - max(done, stage.warmup_steps), 0)
        seconds, complete, measured = self._seconds_around(stage, "ending"), True, True
        if preparing:
            seconds += self._seconds_around(stage, "startup")
        for count, warmup in ((warmup_left, True), (main_left, False)):
            rate = self._rate(stage, warmup)
            if count:
                complete = complete and rate is not None
                measured = measured and (stage.name, warmup) in self._recent
            seconds += count * (rate or 0.0)
        return Left(seconds, complete, measured)

    def _rate(self, stage: PlannedStage, warmup: bool) -> float | None:
        measured = _mean(self._recent.get((stage.name, warmup), ()))
        if measured is None and stage.work and self._seconds_per_work is not None:
            return stage.work * self._seconds_per_work
        return measured

    def _seconds_around(self, stage: PlannedStage, when: Literal["startup", "ending"]) -> float:
        expected = stage.startup_seconds if when == "startup" else stage.ending_seconds
        return self._around.get((stage.name, when), expected)

    def _measure(self, name: str, warmup: bool, seconds: float) -> None:
        # Tuples, replaced whole: the bar's thread reads while the driver's writes.
        times = self._recent.get((name, warmup), ())
        if len(times) == 1 and times[0] > seconds:
            times = ()
        times = (*times, seconds)[-RECENT_STEPS:]
        self._recent[name, warmup] = times
        work = next((p.work for p in self.plan if p.name == name), 0.0)
        if work and not warmup:
            self._seconds_per_work = sum(times) / len(times) / work


def _mean(times: Sequence[float]) -> float | None:
    return sum(times) / len(times) if times else None


def _known(left: Left) -> Left | None:
    return left if left.complete or left.seconds > 0 else None


def clock_text(seconds: float) -> str:
    """``1:02:03``, ``2:03``: the way a bar shows time."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def left_text(left: Left | None) -> str:
    """``2:03``; ``about 2:03`` where parts of it are reckoned, ``over 2:03`` where of some part nothing is known."""
    if left is None:
        return "unknown"
    text = clock_text(left.seconds)
    if not left.complete:
        return f"over {text}"
    return text if left.measured else f"about {text}"
