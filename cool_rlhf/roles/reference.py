"""The reference: a language model that is only asked for log-probabilities; the policy shares that with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cool_rlhf.roles.group import Pending, WorkerGroup, in_order, share_out
from cool_rlhf.roles.worker import Worker

if TYPE_CHECKING:
    from torch import Tensor


class LanguageWorker(Worker):
    """One rank of a language model."""

    trains = False

    def logprobs(self, batches: list[list[Tensor]], temperature: float, begins: list[list[int]] | None) -> list[Tensor]:
        """Of every sequence, in the order of the micro-batches."""
        from cool_rlhf.ppo.update import sequence_logprobs

        return sequence_logprobs(self.engine, batches, temperature, begins)


class RemoteLanguageModel:
    """The LanguageModel protocol over a group of LanguageWorkers."""

    def __init__(self, group: WorkerGroup, budget: int, temperature: float) -> None:
        self.group = group
        self._budget = budget
        self._temperature = temperature

    def logprobs(
        self, sequences: Sequence[Tensor], *, begins: Sequence[int] | None = None, temperature: float | None = None
    ) -> Pending[list[Tensor]]:
        shares = share_out([len(sequence) for sequence in sequences], len(self.group), self._budget)
        used = self._temperature if temperature is None else temperature
        asked = [(share.pick(sequences), used, None if begins is None else share.pick(begins)) for share in shares]
        references = self.group.each("logprobs", asked)
        return Pending(references, lambda results: in_order(shares, results))
