"""From the loops to the tracker, the snapshots and the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from cool_rlhf.checkpoint import RunState
from cool_rlhf.ppo.loop import PPOState
from cool_rlhf.roles.group import WorkerGroup
from cool_rlhf.tracking import StageTracker, Tracker


class SupervisedObserver:
    """Records the steps of SFT or reward training."""

    def __init__(self, stage: StageTracker) -> None:
        self._stage = stage

    def record(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        self._stage.record(step, metrics)


class PPOObserver:
    """Records PPO's steps, saves what resuming needs, and keeps the early and the best policy."""

    def __init__(
        self,
        tracker: Tracker,
        stage: StageTracker,
        state: RunState,
        name: str,
        groups: Mapping[str, WorkerGroup],
        keep: Callable[[Path], None],
        folder: Path,
    ) -> None:
        self._tracker = tracker
        self._stage = stage
        self._state = state
        self._name = name
        self._groups = groups
        self._keep = keep
        self._folder = folder

    def phase(self, name: str, step: int, steps: int) -> None:
        self._stage.phase(name)

    def record(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        self._stage.record(step, metrics)

    def save(self, state: PPOState) -> None:
        def save(folder: Path) -> None:
            for role, group in self._groups.items():
                group.all("save", str(folder / role))

        self._tracker.sync()
        self._state.save_snapshot(self._name, state.step, asdict(state), save)

    def keep_best(self, step: int, value: float) -> None:
        self._keep(self._folder / "policy")

    def keep_early(self, step: int) -> None:
        self._keep(self._folder / "policy_early")
