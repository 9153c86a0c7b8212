"""The critic: values of sequences, and its own updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cool_rlhf.config import PPOConfig
from cool_rlhf.protocols import Experience
from cool_rlhf.roles.group import Pending, WorkerGroup, add_up, in_order, share_out
from cool_rlhf.roles.kept import KeepingWorker, KeptPasses, deal

if TYPE_CHECKING:
    from torch import Tensor


class CriticWorker(KeepingWorker):
    """One rank of the critic."""

    def values(self, batches: list[list[Tensor]]) -> list[Tensor]:
        from cool_rlhf.ppo.update import sequence_values

        return sequence_values(self.engine, batches)

    def values_kept(self, batches: list[list[Tensor]]) -> list[Tensor]:
        """As ``values``, from passes that are kept for the update."""
        from cool_rlhf.ppo.update import critic_pass

        return self.keep([critic_pass(self.engine, batch) for batch in batches])

    def update(
        self, batches: list[list[Experience]], token_count: int, learning_rate: float, clip: float, kept: list[int]
    ) -> dict[str, float]:
        """``kept``: the calls whose passes are those of ``batches``, if any."""
        from cool_rlhf.ppo.update import critic_update

        return critic_update(
            self.engine,
            batches,
            token_count=token_count,
            learning_rate=learning_rate,
            clip=clip,
            passes=self.take_kept(kept),
        )


class RemoteCritic:
    """The Critic protocol over a group of CriticWorkers."""

    def __init__(self, group: WorkerGroup, settings: PPOConfig) -> None:
        self.group = group
        self._budget = settings.micro_batch_tokens
        self._clip = settings.value_clip
        self._kept = KeptPasses()

    def values(self, sequences: Sequence[Tensor], *, keep: bool = False) -> Pending[list[Tensor]]:
        shares = share_out([len(sequence) for sequence in sequences], len(self.group), self._budget)
        if keep:
            self._kept.add(sequences, shares)
        method = "values_kept" if keep else "values"
        references = self.group.each(method, [(share.pick(sequences),) for share in shares])
        return Pending(references, lambda results: in_order(shares, results))

    def update(self, batch: Sequence[Experience], learning_rate: float) -> Pending[dict[str, float]]:
        from cool_rlhf.ppo.update import count_response_tokens

        ranks, budget = len(self.group), self._budget
        kept, batches = self._kept.take(batch) if self._kept else ([], deal(batch, ranks, budget))
        count = count_response_tokens(batch)
        arguments = [(own, count, learning_rate, self._clip, kept) for own in batches]
        return Pending(self.group.each("update", arguments), add_up)
