"""The policy: asked for log-probabilities, updated by PPO, and published to the rollout engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import ray
from ray.actor import ActorHandle

from cool_rlhf.config import PPOConfig
from cool_rlhf.protocols import Experience
from cool_rlhf.roles.group import Pending, RankShare, WorkerGroup, add_up, in_order, share_out
from cool_rlhf.roles.kept import KeepingWorker, KeptPasses, deal
from cool_rlhf.roles.reference import LanguageWorker, RemoteLanguageModel

if TYPE_CHECKING:
    from torch import Tensor

    from cool_rlhf.ppo.update import Objective

CHUNK_BYTES = 2**28  # of weights on their way to the engines at a time


class PolicyWorker(LanguageWorker, KeepingWorker):
    """One rank of the policy."""

    trains = True

    def logprobs_kept(self, batches: list[list[Tensor]], begins: list[list[int]], objective: Objective) -> list[Tensor]:
        """As ``logprobs``, from passes that are kept for the update on ``objective``."""
        from cool_rlhf.ppo.update import masks_from, policy_pass

        asked = zip(batches, begins, strict=True)
        return self.keep([policy_pass(self.engine, batch, masks_from(batch, own), objective) for batch, own in asked])

    def update(
        self,
        batches: list[list[Experience]],
        pretrain: list[list[Tensor]],
        objective: Objective,
        counts: tuple[int, int],
        learning_rate: float,
        kept: list[int],
    ) -> dict[str, float]:
        """``counts``: response tokens and predictions in pretraining texts, of the whole batch. ``kept``: the calls
        whose passes are those of ``batches``, if any."""
        from cool_rlhf.ppo.update import policy_update

        return policy_update(
            self.engine,
            batches,
            pretrain,
            objective,
            token_count=counts[0],
            pretrain_token_count=counts[1],
            learning_rate=learning_rate,
            passes=self.take_kept(kept),
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
    ) -> None:
        super().__init__(group, settings.micro_batch_tokens, temperature)
        self._settings = settings
        self._engines = list(engines)
        self._version = 0
        self._kept = KeptPasses()

    def logprobs(
        self,
        sequences: Sequence[Tensor],
        *,
        begins: Sequence[int] | None = None,
        temperature: float | None = None,
        keep: bool = False,
    ) -> Pending[list[Tensor]]:
        if not keep:
            return super().logprobs(sequences, begins=begins, temperature=temperature)
        if begins is None or temperature is not None:
            raise ValueError("passes are kept over responses, at the temperature that they are sampled at")
        shares = share_out([len(sequence) for sequence in sequences], len(self.group), self._budget)
        self._kept.add(sequences, shares)
        objective = self._objective(0.0, self._settings.entropy_coefficient)
        asked = [(share.pick(sequences), share.pick(begins), objective) for share in shares]
        return Pending(self.group.each("logprobs_kept", asked), lambda results: in_order(shares, results))

    def update(
        self,
        batch: Sequence[Experience],
        pretrain: Sequence[Tensor],
        learning_rate: float,
        kl_coefficient: float,
        entropy_coefficient: float,
    ) -> Pending[dict[str, float]]:
        from cool_rlhf.ppo.update import count_predictions, count_response_tokens

        ranks, budget = len(self.group), self._budget
        kept, batches = self._kept.take(batch) if self._kept else ([], deal(batch, ranks, budget))
        # Without texts there is no pass over any, which an empty micro-batch would be, on any rank.
        texts = share_out([len(text) for text in pretrain], ranks, budget) if pretrain else [RankShare([])] * ranks
        objective = self._objective(kl_coefficient, entropy_coefficient)
        counts = count_response_tokens(batch), count_predictions(pretrain)
        arguments = [
            (own, text.pick(pretrain), objective, counts, learning_rate, kept)
            for own, text in zip(batches, texts, strict=True)
        ]
        return Pending(self.group.each("update", arguments), add_up)

    def _objective(self, kl_coefficient: float, entropy_coefficient: float) -> Objective:
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
            entropy_coefficient=entropy_coefficient,
            pretrain_coefficient=settings.pretrain_coefficient,
        )

    def publish(self) -> int:
        self._version += 1
        self.group.all("publish", self._engines, self._version)
        return self._version
