"""Processes that are started before their turn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import ray
from ray.actor import ActorHandle

from cool_rlhf.config import Config, RoleConfig
from cool_rlhf.planning import holds_all_at_once
from cool_rlhf.roles.cluster import resources
from cool_rlhf.roles.critic import CriticWorker
from cool_rlhf.roles.group import WorkerGroup, create_workers, fetch
from cool_rlhf.roles.policy import PolicyWorker
from cool_rlhf.roles.reference import LanguageWorker
from cool_rlhf.roles.sampler import create_engines
from cool_rlhf.roles.scorer import ScorerWorker
from cool_rlhf.roles.trainer import RewardWorker, SFTWorker
from cool_rlhf.roles.worker import Worker
from rollout.actor import RolloutActor

logger = logging.getLogger(__name__)

_ROLES: dict[str, tuple[type[Any], ...]] = {
    "sft": (SFTWorker,),
    "collect": (RolloutActor,),
    "reward": (RewardWorker,),
    "ppo": (RolloutActor, PolicyWorker, CriticWorker, LanguageWorker, ScorerWorker),
    "answers": (RolloutActor, LanguageWorker, ScorerWorker),
}
PATIENCE = 60.0  # seconds after which it is said what a role waits for


class Standby:
    """The processes of every role of a run, by the class that they run.

    A process imports torch, transformers and vLLM or DeepSpeed for 10 to 20 seconds before it can load anything. Those
    of the next stage do so while the stage before still works; where that leaves them no resources, they wait in Ray's
    queue until it ends, as they would anyway.

    Not so those that hold GPUs of a cluster that was joined. It may have several machines: as GPUs come free one by
    one, small processes would take them here and there until a large one fits nowhere. They start when their stage
    begins, the largest first (``place``).
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._waiting: dict[type[Any], list[ActorHandle]] = {}

    def prepare(self, stage: str, *, engines: bool = True) -> None:
        """Start what ``stage`` (one of ``_ROLES``; others need nothing) takes, or all but rollout engines."""
        for worker in self._missing(stage, engines):
            if not self._competes(worker):
                self._waiting[worker] = self._create(worker)
                for actor in self._waiting[worker]:
                    actor.warm_up.remote()  # type: ignore[attr-defined]

    def place(self, stage: str, *, engines: bool = True) -> None:
        """``stage`` (ppo, or the answers after it) begins: start what ``prepare`` has not, each role once the one
        before it has its resources."""
        for worker in sorted(self._missing(stage, engines), key=self._gpus, reverse=True):
            if self._competes(worker):
                self._waiting[worker] = self.take(worker)

    def dismiss(self, stage: str) -> None:
        """What was started for ``stage`` is not needed, and may not keep others from their GPUs."""
        for worker in _ROLES[stage]:
            if not self.keeps(self._gpus(worker)):
                WorkerGroup(self._waiting.pop(worker, [])).stop()

    def give_back(self, worker: type[Worker], group: WorkerGroup) -> None:
        """A role's stage is over. Its processes wait for the next that takes them, without their model, if they hold
        nothing that others wait for; else they end."""
        if not self.keeps(self._role(worker).gpus):
            group.stop()
            return
        group.all("unload")
        self._waiting[worker] = group.actors

    def keeps(self, gpus: float) -> bool:
        """Whether idle processes that hold so many GPUs may stay: without any, where all roles have CPUs at once."""
        return not gpus and self._all_at_once

    @cached_property
    def _all_at_once(self) -> bool:
        return holds_all_at_once(self._config.cluster, resources())

    def holds(self, worker: type[Any]) -> bool:
        """Whether processes of a role are started and not taken."""
        return worker in self._waiting

    def take(self, worker: type[Any]) -> list[ActorHandle]:
        """The processes of a role, in the order of its ranks; started now if they were not prepared."""
        actors = self._waiting.pop(worker, None) or self._create(worker)
        if self._competes(worker):
            self._wait_for(worker, actors)
        return actors

    def _wait_for(self, worker: type[Any], actors: Sequence[ActorHandle]) -> None:
        """Return once all of a role's processes are up."""
        waiting: list[Any] = [actor.warm_up.remote() for actor in actors]  # type: ignore[attr-defined]
        while waiting:
            up, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=PATIENCE)
            fetch(up)
            if waiting:
                logger.warning(
                    "%d processes of %s, of %g GPUs each, wait for the cluster: does something else run there?",
                    *(len(waiting), worker.__name__, self._gpus(worker)),
                )

    def _missing(self, stage: str, engines: bool) -> list[type[Any]]:
        roles = _ROLES.get(stage, ())
        return [role for role in roles if role not in self._waiting and (engines or role is not RolloutActor)]

    def _competes(self, worker: type[Any]) -> bool:
        """Whether a role needs GPUs that lie on several machines or that others may hold."""
        return self._config.cluster.address is not None and self._gpus(worker) > 0

    def _gpus(self, worker: type[Any]) -> float:
        """That each process of a role holds."""
        rollout = self._config.cluster.rollout
        return rollout.gpus * rollout.tensor_parallel_size if worker is RolloutActor else self._role(worker).gpus

    def _create(self, worker: type[Any]) -> list[ActorHandle]:
        if worker is RolloutActor:
            return create_engines(self._config)
        return create_workers(worker, self._role(worker))

    def _role(self, worker: type[Worker]) -> RoleConfig:
        cluster = self._config.cluster
        roles: dict[type[Worker], RoleConfig] = {
            SFTWorker: cluster.trainer,
            RewardWorker: cluster.trainer,
            PolicyWorker: cluster.policy,
            CriticWorker: cluster.critic,
            LanguageWorker: cluster.reference,
            ScorerWorker: cluster.scorer,
        }
        return roles[worker]
