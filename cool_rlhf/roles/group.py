"""The ranks of one role, and how work is shared out among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.actor import ActorHandle

from cool_rlhf.config import RoleConfig
from cool_rlhf.data.packing import balance, micro_batches
from cool_rlhf.protocols import StaleWeightsError, UserError
from cool_rlhf.roles.worker import ModelSpec, TrainSpec, Worker

T = TypeVar("T")


class Pending(Generic[T]):
    """The Future of a call to several ranks."""

    def __init__(self, references: Sequence[Any], combine: Callable[[list[Any]], T]) -> None:
        self._references = list(references)
        self._combine = combine

    def result(self) -> T:
        return self._combine(fetch(self._references))


def fetch(references: Sequence[Any]) -> list[Any]:
    """The values behind Ray references, in order.

    Whichever fails first is raised at once, though others go on: where one rank is dead, its peers wait for it in vain.

    Raises:
        UserError, StaleWeightsError: as an actor raised it.
        ray.exceptions.RayError: any other failure, with the actor's traceback, or the end of its process.
    """
    values: dict[Any, Any] = {}
    waiting = list(dict.fromkeys(references))
    while waiting:
        (done,), waiting = ray.wait(waiting, num_returns=1)
        try:
            values[done] = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (UserError, StaleWeightsError)):
                raise error.cause from error
            raise
    return [values[reference] for reference in references]


class WorkerGroup:
    """Handles of a role's ranks, in order."""

    def __init__(self, actors: Sequence[ActorHandle]) -> None:
        self._actors = list(actors)

    def __len__(self) -> int:
        return len(self._actors)

    def all(self, method: str, *arguments: Any) -> list[Any]:
        """Call every rank with the same arguments and wait."""
        return fetch([getattr(actor, method).remote(*arguments) for actor in self._actors])

    def each(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """Call rank k with ``arguments[k]``; Ray references, in order."""
        return [getattr(actor, method).remote(*own) for actor, own in zip(self._actors, arguments, strict=True)]

    @property
    def actors(self) -> list[ActorHandle]:
        return list(self._actors)

    def stop(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


def create_workers(worker: type[Worker], role: RoleConfig) -> list[ActorHandle]:
    """A role's processes, as soon as there are resources for them."""
    environment = {"OMP_NUM_THREADS": str(role.threads)}
    if not role.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides GPUs from those alone that were given others
    options: dict[str, Any] = {
        "num_cpus": role.cpus,
        "num_gpus": role.gpus,
        "runtime_env": {"env_vars": environment},
    }
    remote: Any = ray.remote(worker).options(**options)
    actors = [remote.remote(rank, role.ranks, role.threads) for rank in range(role.ranks)]
    if not role.gpus:
        for actor in actors:
            actor.stand_back.remote()
    return actors


def start_group(actors: Sequence[ActorHandle], model: ModelSpec, train: TrainSpec | None) -> StartingGroup:
    """Hand a role's processes ``model``; :func:`build_all` has them load it."""
    return StartingGroup(list(actors), actors[0].address.remote(), model, train)


class StartingGroup:
    """Several roles are started first and waited for afterwards, so that they load side by side."""

    def __init__(self, actors: list[ActorHandle], address: Any, model: ModelSpec, train: TrainSpec | None) -> None:
        self._actors = actors
        self._address = address
        self._model = model
        self._train = train

    def build(self) -> list[Any]:
        """References to each rank's loading."""
        (address,) = fetch([self._address])
        connected = [actor.connect.remote(*address) for actor in self._actors]
        built = [actor.build.remote(self._model, self._train) for actor in self._actors]
        return connected + built + [actor.settle.remote() for actor in self._actors]

    def group(self) -> WorkerGroup:
        return WorkerGroup(self._actors)


def build_all(starting: Sequence[StartingGroup]) -> list[WorkerGroup]:
    """Have every group load its model, side by side, and wait for all."""
    fetch([reference for group in starting for reference in group.build()])
    return [group.group() for group in starting]


@dataclass(frozen=True)
class RankShare:
    """One rank's micro-batches, as indices into the whole batch. Every rank has equally many; some may be empty."""

    groups: list[list[int]]

    def pick(self, items: Sequence[T]) -> list[list[T]]:
        return [[items[index] for index in group] for group in self.groups]


def share_out(lengths: Sequence[int], ranks: int, budget: int) -> list[RankShare]:
    """Deal a batch to ranks by tokens, and cut each rank's part into micro-batches of at most ``budget`` tokens."""
    dealt = balance(lengths, ranks)
    cut = [
        [[part[place] for place in group] for group in micro_batches([lengths[index] for index in part], budget)]
        for part in dealt
    ]
    count = max(1, *(len(groups) for groups in cut))
    return [RankShare(groups + [[] for _ in range(count - len(groups))]) for groups in cut]


def in_order(shares: Sequence[RankShare], results: Sequence[Sequence[T]]) -> list[T]:
    """Undo ``share_out``: each rank's results, one for each of its items in the order of its micro-batches."""
    placed = {
        index: value
        for share, values in zip(shares, results, strict=True)
        for index, value in zip((index for group in share.groups for index in group), values, strict=True)
    }
    return [placed[index] for index in range(len(placed))]


def add_up(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Ranks return shares of the whole batch's means: their sum is the mean."""
    return {name: sum(row[name] for row in rows) for name in rows[0]}
