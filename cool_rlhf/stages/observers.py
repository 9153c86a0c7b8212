"""From the loops to the tracker, the snapshots and the checkpoints of a run."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from cool_rlhf.checkpoint import RunState
from cool_rlhf.folders import BEST_FILE, RoundFolder, part_of, replace_whole
from cool_rlhf.ppo.state import PPOState, ppo_state
from cool_rlhf.protocols import Rollout
from cool_rlhf.roles.group import WorkerGroup
from cool_rlhf.stages.roles import ask_together
from cool_rlhf.tracking import Sample, StageTracker, Tracker
from cool_rlhf.tracking.distance import Validations, parted, score_beside_gold, trends

logger = logging.getLogger(__name__)

SAMPLES_PER_DOMAIN = 2


class SupervisedObserver:
    """Records the steps of SFT or reward training, and saves what resuming needs."""

    def __init__(self, tracker: Tracker, stage: StageTracker, state: RunState, name: str, group: WorkerGroup) -> None:
        self._tracker = tracker
        self._stage = stage
        self._state = state
        self._name = name
        self._group = group

    def record(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        self._stage.record(step, metrics)

    def save(self, step: int) -> None:
        def save(folder: Path) -> None:
            self._group.all("save", str(folder / "trainer"))

        self._stage.phase("save")
        self._tracker.sync()
        self._state.save_snapshot(self._name, {"step": step}, save)


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
        folder: RoundFolder,
    ) -> None:
        self._tracker = tracker
        self._stage = stage
        self._state = state
        self._name = name
        self._groups = groups
        self._keep = keep
        self._folder = folder
        self._samples: list[Sample] = []  # of the step that is recorded next
        self._score: dict[str, float] = {}  # likewise
        self._parted = False

    def phase(self, name: str, step: int, steps: int) -> None:
        self._stage.phase(name)

    def samples(
        self, step: int, rollouts: Sequence[Rollout], scores: Sequence[float], gold: Sequence[float | None]
    ) -> None:
        self._samples = few_of_each_domain(rollouts, scores, gold)
        self._score = score_beside_gold(scores, gold)

    def record(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        if "validation/gold" in metrics:
            metrics = {**metrics, **self._score}
            metrics |= self._look_for_parting(step, metrics)
        self._stage.record(step, metrics, self._samples)
        self._samples = []

    def has_parted(self) -> bool:
        return self._parted

    def _look_for_parting(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        row = {"stage": "ppo", "round": self._stage.round, "step": step, **metrics}
        rows = [*self._tracker.rows, row]
        found = parted(rows, self._stage.round)
        if found.parted and not self._parted:
            self._parted = True
            best = Validations.of(rows).of_round(self._stage.round).steps[found.best]
            text = (
                "score and gold part: over the last validations the score rises along √KL while gold falls, so the "
                f"policy exploits the reward model; gold was best at step {best} of this round"
            )
            logger.warning(text)
            self._tracker.show(text)
        return trends(found)

    def save(self, state: PPOState) -> None:
        def save(folder: Path) -> None:
            ask_together(self._groups, "save", folder)

        self._stage.phase("save")
        self._tracker.sync()
        self._state.save_snapshot(self._name, asdict(state), save)

    def keep_best(self, step: int, value: float) -> None:
        self._stage.phase("export")
        whole = self._folder.policy
        part = part_of(whole)
        self._keep(part)
        (part / BEST_FILE).write_text(json.dumps({"step": step, "value": value}), encoding="utf-8")
        replace_whole(part, whole)

    def keep_early(self, step: int) -> None:
        self._stage.phase("export")
        self._keep(self._folder.early_policy)


def saved_start(state: RunState, name: str, policy: Path) -> tuple[Path | None, PPOState]:
    """The snapshot that round ``name`` goes on from, and where the loop stood; None and the beginning where there is
    none. ``policy``, the folder of its best, may have been kept after the snapshot, in place of the one that was the
    best by then: what has to be beaten is what is there."""
    snapshot = state.snapshot(name)
    if snapshot is None:
        shutil.rmtree(policy, ignore_errors=True)  # of a round that is now made again
        return None, PPOState()
    folder, position = snapshot
    start, file = ppo_state(position), policy / BEST_FILE
    if not file.exists():
        return folder, start
    return folder, replace(start, best=json.loads(file.read_text(encoding="utf-8"))["value"])


def few_of_each_domain(
    rollouts: Sequence[Rollout], scores: Sequence[float], gold: Sequence[float | None]
) -> list[Sample]:
    """For the report the first ``SAMPLES_PER_DOMAIN`` of each domain: the same prompts at every validation."""
    taken: Counter[str] = Counter()
    samples: list[Sample] = []
    for rollout, score, true_score in zip(rollouts, scores, gold, strict=True):
        prompt = rollout.prompt
        taken[prompt.domain] += 1
        if taken[prompt.domain] <= SAMPLES_PER_DOMAIN:
            samples.append(
                {
                    "domain": prompt.domain,
                    "messages": prompt.messages,
                    "response": rollout.response,
                    "score": score,
                    "gold": true_score,
                    "finished": rollout.finished,
                }
            )
    return samples
