"""The scorer: the conditional reward model behind the Scorer protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cool_rlhf.data.packing import balance
from cool_rlhf.protocols import ScoredConversation
from cool_rlhf.roles.group import Pending, RankShare, WorkerGroup, in_order
from cool_rlhf.roles.worker import ModelSpec, TrainSpec, Worker

if TYPE_CHECKING:
    from torch import Tensor

    from reward import RewardModel


class ScorerWorker(Worker):
    """One replica of the reward model, with its own tokenizer and conditions."""

    trains = False

    _reward_model: RewardModel

    def build(self, model: ModelSpec, train: TrainSpec | None) -> None:
        import torch

        from reward import RewardModel

        self._reward_model = RewardModel.from_pretrained(
            model.path, dtype=getattr(torch, model.dtype), micro_batch_tokens=model.micro_batch_tokens
        )

    def score(self, conversations: list[ScoredConversation]) -> list[float]:
        return self._reward_model.score_batch(conversations)

    def scores_and_states(self, conversations: list[ScoredConversation]) -> list[tuple[float, Tensor]]:
        return list(zip(*self._reward_model.scores_and_states(conversations), strict=True))


class RemoteScorer:
    """The Scorer protocol over a group of ScorerWorkers."""

    def __init__(self, group: WorkerGroup) -> None:
        self.group = group

    def score(self, conversations: Sequence[ScoredConversation]) -> Pending[list[float]]:
        return self._ask("score", conversations)

    def scores_and_states(self, conversations: Sequence[ScoredConversation]) -> Pending[list[tuple[float, Tensor]]]:
        """The score of each conversation and (hidden,) float32: see :meth:`reward.RewardModel.scores_and_states`."""
        return self._ask("scores_and_states", conversations)

    def _ask(self, method: str, conversations: Sequence[ScoredConversation]) -> Pending[list[Any]]:
        """Dealt out by letters: tokens are made by the ranks."""
        letters = [sum(len(turn["content"]) for turn in item.messages) for item in conversations]
        shares = [RankShare([part]) for part in balance(letters, len(self.group))]
        references = self.group.each(method, [tuple(share.pick(conversations)) for share in shares])
        return Pending(references, lambda results: in_order(shares, results))
