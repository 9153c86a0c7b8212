"""Which stages of a run are begun and finished, and where each is gone on from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cool_rlhf.checkpoint import RunState
from cool_rlhf.checks.settings import schedules_that_end
from cool_rlhf.config import Config, PPOConfig
from cool_rlhf.folders import round_folders
from cool_rlhf.ppo.loop import early_iteration, may_go_ahead, validation_due
from cool_rlhf.provenance import is_lost, made_from, wants_more
from cool_rlhf.stages.online import clear_paths
from cool_rlhf.tracking import Tracker, run_plan

logger = logging.getLogger(__name__)


class Ledger:
    """What has become of a run's stages, as its :class:`RunState` keeps it.

    Args:
        tokens: what :func:`run_plan` asks the data for. The tracker gets its plan where the first stage begins.
    """

    def __init__(self, config: Config, state: RunState, tracker: Tracker, tokens: Callable[[str], float]) -> None:
        self._config = config
        self._state = state
        self._tracker = tracker
        self._tokens = tokens
        self._settings = made_from(config)
        self._tracker_placed = False

    def begin(self, name: str) -> int | None:
        """The step to go on from in ``name``, 0 for its beginning; None where it is finished."""
        if is_lost(self._config, self._state, name):
            logger.info("what %s made is not there any more: it and what follows it are made again", name)
            self._state.discard_from(name)
            self._clear_rounds()
        snapshot = self._state.snapshot(name)
        start = int(snapshot[1]["step"]) if snapshot else 0
        if self._state.is_finished(name):
            if not wants_more(self._config, self._state, name):
                logger.info("%s is finished", name)
                return None
            differing = other_than_whole(self._config.ppo, start)
            if differing:
                logger.warning(
                    "%s goes on behind its end, and not as a run of as many iterations from the start: %s",
                    *(name, "; ".join(differing)),
                )
            self._state.reopen_from(name)
            self._clear_rounds()
        stage, _, round = name.partition("_")
        if not self._tracker_placed:
            finished = self._finished_stages()
            self._tracker.resume(stage, int(round or 0), start, finished)
            self._tracker.set_plan(run_plan(self._config, finished, self._tokens))
            self._tracker_placed = True
        self._state.begin(name, self._settings[name])
        return start

    def is_begun(self, name: str) -> bool:
        """Whether ``name`` goes on from what an earlier call with the same settings has left."""
        return self._state.is_begun_with(name, self._settings[name])

    def _clear_rounds(self) -> None:
        """Take away what stages between rounds have left that are to be made again, and is no checkpoint: reports and
        annotators see only what holds."""
        begun = self._state.begun()
        for folder in round_folders(Path(self._config.output_dir)):
            if f"online_{folder.round}" not in begun:
                clear_paths(folder)
            if f"reward_{folder.round + 1}" not in begun:
                folder.repair.unlink(missing_ok=True)

    def _finished_stages(self) -> set[tuple[str, int]]:
        names = (name.partition("_") for name in self._settings if self._state.is_finished(name))
        return {(stage, int(round or 0)) for stage, _, round in names}


def other_than_whole(ppo: PPOConfig, step: int) -> list[str]:
    """What a round that has ended after ``step``, and now gets ``ppo.iterations`` in all, has otherwise than one that
    had so many from the start."""
    told = []
    if jumping := schedules_that_end(ppo):
        told.append(f"a jump of {' and '.join(jumping)} to where these are over all ppo.iterations")
    if may_go_ahead(step, ppo):
        told.append(f"the responses of step {step + 1} are not sampled ahead (ppo.generate_ahead)")
    kept, due = (early_iteration(replace(ppo, iterations=n)) for n in (step - ppo.critic_warmup, ppo.iterations))
    if kept != due:
        told.append(f"policy_early stays that of iteration {kept}, not {due} (ppo.early_snapshot)")
    if not validation_due(step, ppo):
        told.append(f"step {step} was validated as the last one, and may be the best (ppo.validate_every)")
    return told
