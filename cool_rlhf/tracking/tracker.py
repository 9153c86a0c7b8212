"""The driver's one place to tell what happened: metrics.jsonl, W&B, the bar and the report follow from it."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

from tqdm import tqdm

from cool_rlhf.config import Config
from cool_rlhf.protocols import Conversation
from cool_rlhf.tracking.between import between_rounds, read_between
from cool_rlhf.tracking.estimate import PlannedStage, TimeLeft
from cool_rlhf.tracking.metrics import MetricsLog
from cool_rlhf.tracking.progress import Progress
from cool_rlhf.tracking.report import write_report
from cool_rlhf.tracking.rows import RowFile
from cool_rlhf.tracking.wandb_run import WandbRun, resolve_mode

REPORT_SECONDS = 10.0
REPORT_SHARE = 0.02  # of the run's time that writing reports may take


class Sample(TypedDict):
    """One sampled response for the report; ``messages`` end before it. ``gold`` is None without a gold rule."""

    domain: str
    messages: Conversation
    response: str
    score: float
    gold: float | None
    finished: bool


class Tracker:
    """Opened by the driver for the length of a run. Whatever ends the run, the bar, the files and W&B's process are
    closed on the way out.

    Steps count from 1: step n is recorded when n steps are done.
    """

    def __init__(self, config: Config, output_dir: Path | str, plan: Sequence[PlannedStage] = ()) -> None:
        self._config = config
        self._output_dir = Path(output_dir)
        self._mode = resolve_mode(config.logging.wandb_mode)
        self._metrics = MetricsLog(self._output_dir / "metrics.jsonl")
        self._samples = RowFile(self._output_dir / "samples.jsonl")
        self._time_left = TimeLeft(plan)
        self._progress = Progress(self._time_left) if config.logging.progress else None
        self._wandb: WandbRun | None = None
        self._stage: StageTracker | None = None
        self._prepared_for: tuple[str, int] | None = None  # the stage that is being prepared
        self._learnt = False
        self._started = False
        self._report_at = time.monotonic() + REPORT_SECONDS

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as closing:
            if self._wandb is not None:
                closing.callback(self._wandb.finish, exit_code=0 if error is None else 1)
            # A full disk has no room for a report either, and its own error must be the one that is seen.
            if self._started and not isinstance(error, OSError):
                closing.callback(self._show_result if error is None else self.report)  # Ctrl-C waits for no upload
            closing.callback(self._samples.close)
            closing.callback(self._metrics.close)
            if self._progress is not None:
                closing.callback(self._progress.close)

    def set_plan(self, plan: Sequence[PlannedStage]) -> None:
        """What the run will go through, for the time left; may be called again as step counts become known."""
        self._time_left.plan = list(plan)

    def resume(self, stage: str, round: int, step: int, finished: Collection[tuple[str, int]] = ()) -> None:
        """Go on after ``step`` (0: from the stage's beginning) of ``stage``: what was recorded later is dropped, which
        is all but this and the ``finished`` stages.

        Raises RuntimeError once a stage has been started.
        """
        if self._started:
            raise RuntimeError("Tracker.resume comes before the first stage")
        self._metrics.truncate_after(stage, round, step, finished)
        kept = {(row["stage"], row["round"], row["step"]) for row in self._metrics.rows}
        later = (i for i, row in enumerate(self._samples.rows) if (row["stage"], row["round"], row["step"]) not in kept)
        self._samples.truncate(next(later, len(self._samples.rows)))

    def prepare(self, name: str, round: int, doing: str) -> None:
        """What has to be done before the first step of a stage, for the bar: ``starting policy, critic``."""
        self._learn()
        if self._prepared_for != (name, round):
            self._prepared_for = (name, round)
            self._time_left.prepare(name, round)
        if self._progress is not None:
            self._progress.prepare(name, round, doing)

    def stage(self, name: str, round: int, total_steps: int) -> StageTracker:
        """A stage begins; steps that metrics.jsonl already holds count as done. To be used as a context."""
        if self._stage is not None:
            raise RuntimeError(f"stage {name} begins while {self._stage.name} is running")
        if not self._started:
            self._started = True
            self._learn()
            if self._mode != "disabled":
                self._wandb = WandbRun(self._config, self._output_dir, self._mode, self._metrics.rows)
        self._show_between()
        done = self._metrics.last_step(name, round) or 0
        self._time_left.start(name, round, total_steps, done)
        if self._progress is not None:
            self._progress.start(name, round, total_steps, done)
        self._prepared_for = None
        self._stage = StageTracker(self, name, round)
        return self._stage

    def show(self, text: str) -> None:
        """Lines for whoever watches the run, above the bar."""
        tqdm.write(text, file=sys.stdout)

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Every row of metrics.jsonl so far."""
        return self._metrics.rows

    def sync(self) -> None:
        """Rows onto the disk; to be called before a checkpoint is declared whole."""
        self._metrics.sync()
        self._samples.sync()

    def report(self) -> Path:
        """Write report.html now. Returns its path."""
        began = time.monotonic()
        path = write_report(self._output_dir)
        now = time.monotonic()
        self._report_at = now + max(REPORT_SECONDS, (now - began) / REPORT_SHARE)
        return path

    def _show_result(self) -> None:
        path = self.report()
        self._show_between()
        if self._wandb is not None:
            self._wandb.show_report(path)

    def _show_between(self) -> None:
        """What was found and mended so far, in W&B."""
        if self._wandb is not None:
            self._wandb.show_between(between_rounds(read_between(self._output_dir), self._metrics.rows))

    def _learn(self) -> None:
        """Step times of the run that is gone on with, once."""
        if not self._learnt:
            self._learnt = True
            self._time_left.learn(self._metrics.rows)

    def _phase(self, name: str) -> None:
        if self._progress is not None:
            self._progress.phase(name)

    def _expect(self, total_steps: int) -> None:
        self._time_left.expect(total_steps)
        if self._progress is not None:
            self._progress.expect(total_steps)

    def _record(
        self, stage: StageTracker, step: int, fields: Mapping[str, float | bool], samples: Sequence[Sample]
    ) -> None:
        row = self._metrics.append(stage.name, stage.round, step, fields)
        for sample in samples:
            self._samples.append({"stage": stage.name, "round": stage.round, "step": step, **sample})
        if self._wandb is not None:
            self._wandb.log(len(self._metrics.rows) - 1, row)
        self._time_left.step_done(step, warmup=bool(fields.get("warmup", False)))
        if self._progress is not None:
            self._progress.advance(step, fields)
        self._report_if_due()

    def _report_if_due(self) -> None:
        if time.monotonic() >= self._report_at:
            self.report()

    def _finish(self) -> None:
        self._time_left.finish()
        if self._progress is not None:
            self._progress.finish()
        self._stage = None
        self.sync()
        self._report_if_due()


class StageTracker:
    """The running stage of a Tracker."""

    def __init__(self, tracker: Tracker, name: str, round: int) -> None:
        self._tracker = tracker
        self._finished = False
        self.name = name
        self.round = round

    def __enter__(self) -> StageTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()

    def phase(self, name: str) -> None:
        """What is being done right now, for the bar."""
        self._tracker._phase(name)

    def expect(self, total_steps: int) -> None:
        """There are as many steps in all: more, or fewer, than was known when the stage began."""
        self._tracker._expect(total_steps)

    @property
    def last_step(self) -> int:
        """The newest one recorded; 0 before there is one."""
        return self._tracker._metrics.last_step(self.name, self.round) or 0

    def record(self, step: int, fields: Mapping[str, float | bool], samples: Sequence[Sample] = ()) -> None:
        """One finished step (see MetricsLog.append for what is refused)."""
        self._tracker._record(self, step, fields, samples)

    def finish(self) -> None:
        """The stage is over: its rows are on disk. A second call does nothing."""
        if not self._finished:
            self._finished = True
            self._tracker._finish()
