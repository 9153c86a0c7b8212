"""The scorer: the conditional reward model behind the Scorer protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cool_rlhf.protocols import ScoredConversation
from cool_rlhf.roles.group import Pending, WorkerGroup
from cool_rlhf.roles.worker import ModelSpec, TrainSpec, Worker

if TYPE_CHECKING:
    from reward import RewardModel


class ScorerWorker(Worker):
    """One replica of the reward model, with its own tokenizer and conditions."""

    trains = False

    _reward_model: RewardModel

    def build(self, model: ModelSpec, train: TrainSpec | None) -> None:
        import torch

        from reward import RewardModel

        self._reward_model = RewardModel.from_pretrained(model.path, dtype=getattr(torch, model.dtype))

    def score(self, conversations: list[ScoredConversation]) -> list[float]:
        return self._reward_model.score_batch(conversations)


class RemoteScorer:
    """The Scorer protocol over a group of ScorerWorkers."""

    def __init__(self, group: WorkerGroup) -> None:
        self.group = group

    def score(self, conversations: Sequence[ScoredConversation]) -> Pending[list[float]]:
        ranks = len(self.group)
        parts = [list(conversations[rank::ranks]) for rank in range(ranks)]

        def interleave(results: list[Any]) -> list[float]:
            scores = [0.0] * len(conversations)
            for rank, part in enumerate(results):
                scores[rank::ranks] = part
            return scores

        return Pending(self.group.each("score", [(part,) for part in parts]), interleave)
