"""The trainer: supervised fine-tuning and reward training, with the same ranks, ZeRO and export as the other roles."""

from __future__ import annotations

from collections.abc import Sequence

from cool_rlhf.config import RewardConfig
from cool_rlhf.roles.group import Pending, WorkerGroup, add_up, in_order, share_out
from cool_rlhf.roles.worker import Worker
from cool_rlhf.sft import EncodedChat, count_targets, sft_update
from reward.pairs import EncodedPair
from reward.training import pair_scores, reward_update


class SFTWorker(Worker):
    """One rank of supervised fine-tuning."""

    def update(self, batches: list[list[EncodedChat]], token_count: int, learning_rate: float) -> dict[str, float]:
        return sft_update(self.engine, batches, token_count=token_count, learning_rate=learning_rate)


class RewardWorker(Worker):
    """One rank of reward training."""

    def update(
        self, batches: list[list[EncodedPair]], pair_count: int, learning_rate: float, settings: RewardConfig
    ) -> dict[str, float]:
        return reward_update(
            self.engine,
            batches,
            pair_count=pair_count,
            gamma=settings.gamma,
            penalty_weight=settings.penalty_weight,
            bound=settings.bound,
            detach_focal=settings.detach_focal,
            use_margin=settings.margin,
            learning_rate=learning_rate,
        )

    def scores(self, batches: list[list[EncodedPair]]) -> list[tuple[float, float]]:
        return pair_scores(self.engine, batches)


class RemoteSFTTrainer:
    """The SFTTrainer protocol over a group of SFTWorkers."""

    def __init__(self, group: WorkerGroup, budget: int) -> None:
        self.group = group
        self._budget = budget

    def update(self, batch: Sequence[EncodedChat], learning_rate: float) -> Pending[dict[str, float]]:
        shares = share_out([len(chat.tokens) for chat in batch], len(self.group), self._budget)
        count = count_targets(batch)
        return Pending(
            self.group.each("update", [(share.pick(batch), count, learning_rate) for share in shares]), add_up
        )


class RemoteRewardTrainer:
    """The RewardTrainer protocol over a group of RewardWorkers."""

    def __init__(self, group: WorkerGroup, settings: RewardConfig) -> None:
        self.group = group
        self._settings = settings

    def update(self, batch: Sequence[EncodedPair], learning_rate: float) -> Pending[dict[str, float]]:
        shares = share_out([len(pair) for pair in batch], len(self.group), self._settings.micro_batch_tokens)
        arguments = [(share.pick(batch), len(batch), learning_rate, self._settings) for share in shares]
        return Pending(self.group.each("update", arguments), add_up)

    def scores(self, pairs: Sequence[EncodedPair]) -> Pending[list[tuple[float, float]]]:
        shares = share_out([len(pair) for pair in pairs], len(self.group), self._settings.micro_batch_tokens)
        references = self.group.each("scores", [(share.pick(pairs),) for share in shares])
        return Pending(references, lambda results: in_order(shares, results))
