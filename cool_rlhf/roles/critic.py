"""The critic: values of sequences, and its own updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cool_rlhf.config import PPOConfig
from cool_rlhf.protocols import Experience
from cool_rlhf.roles.group import Pending, WorkerGroup, add_up, in_order, share_out
from cool_rlhf.roles.worker import Worker

if TYPE_CHECKING:
    from torch import Tensor


class CriticWorker(Worker):
    """One rank of the critic."""

    def values(self, batches: list[list[Tensor]]) -> list[Tensor]:
        from cool_rlhf.ppo.update import sequence_values

        return sequence_values(self.engine, batches)

    def update(
        self, batches: list[list[Experience]], token_count: int, learning_rate: float, clip: float
    ) -> dict[str, float]:
        from cool_rlhf.ppo.update import critic_update

        return critic_update(self.engine, batches, token_count=token_count, learning_rate=learning_rate, clip=clip)


class RemoteCritic:
    """The Critic protocol over a group of CriticWorkers."""

    def __init__(self, group: WorkerGroup, settings: PPOConfig) -> None:
        self.group = group
        self._budget = settings.micro_batch_tokens
        self._clip = settings.value_clip

    def values(self, sequences: Sequence[Tensor]) -> Pending[list[Tensor]]:
        shares = share_out([len(sequence) for sequence in sequences], len(self.group), self._budget)
        references = self.group.each("values", [(share.pick(sequences),) for share in shares])
        return Pending(references, lambda results: in_order(shares, results))

    def update(self, batch: Sequence[Experience], learning_rate: float) -> Pending[dict[str, float]]:
        from cool_rlhf.ppo.update import count_response_tokens

        shares = share_out([len(experience.tokens) for experience in batch], len(self.group), self._budget)
        count = count_response_tokens(batch)
        arguments = [(share.pick(batch), count, learning_rate, self._clip) for share in shares]
        return Pending(self.group.each("update", arguments), add_up)
