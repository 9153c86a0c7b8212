"""Forward passes that wait for their update, of a role that keeps them (``ppo.keep_passes``).

Before a step a role is asked for log-probabilities or values, and the step's first pass over the same sequences with
the same weights would compute them again. Each rank keeps its own passes; the driver knows which sequences are where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cool_rlhf.roles.group import RankShare, share_out
from cool_rlhf.roles.worker import ModelSpec, TrainSpec, Worker

if TYPE_CHECKING:
    from torch import Tensor

    from cool_rlhf.protocols import Experience


class KeepingWorker(Worker):
    """A rank that can keep passes: a list for every call that made some."""

    def build(self, model: ModelSpec, train: TrainSpec | None) -> None:
        super().build(model, train)
        self._kept: list[list[Any]] = []

    def keep(self, passes: list[Any]) -> list[Tensor]:
        """What ``passes`` told, sequence by sequence."""
        self._kept.append(passes)
        return [told for each in passes for told in each.told()]

    def take_kept(self, calls: Sequence[int]) -> list[Any]:
        """The passes of those calls, counted since the last update. None is kept any longer."""
        kept, self._kept = self._kept, []
        return [each for call in calls for each in kept[call]]


class KeptPasses:
    """Which sequences the passes are over that a role's ranks keep."""

    def __init__(self) -> None:
        self._calls: list[tuple[list[bytes], list[RankShare]]] = []

    def add(self, sequences: Sequence[Tensor], shares: Sequence[RankShare]) -> None:
        """The ranks keep passes over ``sequences``, (L,) each, shared out like this."""
        self._calls.append(([_key(tokens) for tokens in sequences], list(shares)))

    def take(self, batch: Sequence[Experience]) -> tuple[list[int], list[list[list[Experience]]]]:
        """The calls whose passes an update on ``batch`` goes on from, and each rank's experience pass by pass. Nothing
        is kept after that.

        The calls were made as responses were finished; here they stand in an order that is the same in every run, for
        gradients are summed in it.

        Raises: ValueError where the passes are not over just the sequences of ``batch``.
        """
        calls, self._calls = self._calls, []
        waiting: dict[bytes, list[Experience]] = {}
        for experience in batch:
            waiting.setdefault(_key(experience.tokens), []).append(experience)
        if sorted(key for keys, _ in calls for key in keys) != sorted(_key(each.tokens) for each in batch):
            raise ValueError("the passes that were kept are not over the sequences of the update")
        order = sorted(range(len(calls)), key=lambda call: calls[call][0])
        by_rank: list[list[list[Experience]]] = [[] for _ in calls[0][1]]
        for call in order:
            keys, shares = calls[call]
            experiences = [waiting[key].pop(0) for key in keys]
            for groups, share in zip(by_rank, shares, strict=True):
                groups += share.pick(experiences)
        return order, by_rank

    def __bool__(self) -> bool:
        return bool(self._calls)


def deal(batch: Sequence[Experience], ranks: int, budget: int) -> list[list[list[Experience]]]:
    """Each rank's micro-batches of an update that no passes were kept for."""
    return [share.pick(batch) for share in share_out([len(each.tokens) for each in batch], ranks, budget)]


def _key(tokens: Tensor) -> bytes:
    return tokens.numpy().tobytes()
