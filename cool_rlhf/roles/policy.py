"""The policy: asked for log-probabilities, updated by PPO, and published to the rollout engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import ray
from ray.actor import ActorHandle

from cool_rlhf.config import PPOConfig
from cool_rlhf.protocols import Experience
from cool_rlhf.roles.group import Pending, WorkerGroup, add_up, share_out
from cool_rlhf.roles.reference import LanguageWorker, RemoteLanguageModel

if TYPE_CHECKING:
    from torch import Tensor

    from cool_rlhf.ppo.update import Objective

CHUNK_BYTES = 2**28  # of weights on their way to the engines at a time


class PolicyWorker(LanguageWorker):
    """One rank of the policy."""

    trains = True

    def update(
        self,
        batches: list[list[Experience]],
        pretrain: list[list[Tensor]],
        objective: Objective,
        counts: tuple[int, int],
        learning_rate: float,
    ) -> dict[str, float]:
        """``counts``: response tokens and predictions in pretraining texts, of the whole batch."""
        from cool_rlhf.ppo.update import policy_update

        return policy_update(
            self.engine,
            batches,
            pretrain,
            objective,
            token_count=counts[0],
            pretrain_token_count=counts[1],
            learning_rate=learning_rate,
        )

    def publish(self, engines: list[ActorHandle], version: int) -> None:
        """Stream the full weights to every engine through Ray's object store, the next chunk while one loads."""
        import torch

        if self.rank > 0:
            for _ in self.engine.named_weights():
                pass
            return
        with torch.no_grad():
            loading = [engine.begin_weights.remote() for engine in engines]
            for chunk in chunks(self.engine.named_weights()):
                reference = ray.put(chunk)
                ray.get(loading)
                loading = [engine.load_weights_chunk.remote(reference) for engine in engines]
            ray.get(loading)
            ray.get([engine.finish_weights.remote(version) for engine in engines])


def chunks(weights: Iterator[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    """Copies of the weights on the CPU, in lists of about ``CHUNK_BYTES``."""
    held: list[tuple[str, Tensor]] = []
    size = 0
    for name, weight in weights:
        held.append((name, weight.detach().to("cpu", copy=True)))
        size += held[-1][1].nbytes
        if size >= CHUNK_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


class RemotePolicy(RemoteLanguageModel):
    """The Policy protocol over a group of PolicyWorkers."""

    def __init__(
        self,
        group: WorkerGroup,
        settings: PPOConfig,
        temperature: float,
        engines: Sequence[ActorHandle],
        version: int,
    ) -> None:
        super().__init__(group, settings.micro_batch_tokens, temperature)
        self._settings = settings
        self._engines = list(engines)
        self._version = version

    def update(
        self, batch: Sequence[Experience], pretrain: Sequence[Tensor], learning_rate: float, kl_coefficient: float
    ) -> Pending[dict[str, float]]:
        from cool_rlhf.ppo.update import count_predictions, count_response_tokens

        ranks, budget = len(self.group), self._budget
        shares = share_out([len(experience.tokens) for experience in batch], ranks, budget)
        texts = share_out([len(text) for text in pretrain], ranks, budget)
        objective = self._objective(kl_coefficient)
        counts = count_response_tokens(batch), count_predictions(pretrain)
        arguments = [
            (share.pick(batch), text.pick(pretrain), objective, counts, learning_rate)
            for share, text in zip(shares, texts, strict=True)
        ]
        return Pending(self.group.each("update", arguments), add_up)

    def _objective(self, kl_coefficient: float) -> Objective:
        from cool_rlhf.ppo.losses import Clip
        from cool_rlhf.ppo.update import Objective

        settings = self._settings
        high = settings.clip if settings.clip_high is None else settings.clip_high
        return Objective(
            clip=Clip(settings.clip, high, settings.dual_clip),
            temperature=self._temperature,
            kl_coefficient=kl_coefficient,
            kl_kind=settings.kl_estimator,
            kl_gradient=settings.kl_gradient,
            entropy_coefficient=settings.entropy_coefficient,
            pretrain_coefficient=settings.pretrain_coefficient,
        )

    def publish(self) -> int:
        self._version += 1
        self.group.all("publish", self._engines, self._version)
        return self._version
