"""Training of the conditional reward model (report, section 4.2.1): batches hold tokens, not pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from cool_rlhf.accumulation import Totals
from cool_rlhf.config import RewardConfig
from cool_rlhf.data.packing import pack_pairs
from cool_rlhf.data.streams import token_batches
from cool_rlhf.models.forward import token_values
from cool_rlhf.protocols import Future, StepObserver, TrainEngine
from cool_rlhf.schedule import cosine
from reward.losses import focal_ranking_per_pair, log_barrier_per_score
from reward.pairs import EncodedPair


class RewardTrainer(Protocol):
    """The model under training, wherever it runs."""

    def update(self, batch: Sequence[EncodedPair], learning_rate: float) -> Future[dict[str, float]]:
        """One optimiser step over all of ``batch``; the batch's mean metrics."""
        ...


def reward_update(
    engine: TrainEngine,
    batches: Sequence[Sequence[EncodedPair]],
    *,
    pair_count: int,
    gamma: float,
    penalty_weight: float,
    bound: float,
    detach_focal: bool,
    learning_rate: float,
) -> dict[str, float]:
    """One step on L = L_rank + λ · L_pen: ranking averaged over the whole batch's pairs, the barrier over all of its
    scores, chosen and rejected alike; one rank's part.

    Args:
        batches: this rank's micro-batches of whole pairs; as many on every rank, some may be empty.
        pair_count: pairs of the whole batch, over all ranks.
        penalty_weight: λ.

    Returns: this rank's shares; added over the ranks they are the batch's means.
    """
    totals = Totals(engine)
    for index, batch in enumerate(batches):
        packed = pack_pairs([(pair.chosen, pair.rejected) for pair in batch]).to(engine.device)
        scores = engine.forward(token_values, packed)[packed.ends]
        chosen, rejected = scores[: len(batch)], scores[len(batch) :]
        margin = torch.tensor([pair.margin for pair in batch], device=engine.device)
        ranking = focal_ranking_per_pair(chosen, rejected, gamma, margin, detach_focal).sum() / pair_count
        penalty = log_barrier_per_score(scores, bound).sum() / (2 * pair_count)
        loss = ranking + penalty_weight * penalty
        totals.add("loss/reward", loss)
        totals.add("loss/ranking", ranking)
        totals.add("loss/barrier", penalty)
        totals.add("accuracy", (chosen > rejected).sum() / pair_count)
        totals.add("score/chosen", chosen.sum() / pair_count)
        totals.add("score/rejected", rejected.sum() / pair_count)
        engine.backward(loss, last=index == len(batches) - 1)
    return totals.step(learning_rate, "gradient_norm")


def train_reward(
    trainer: RewardTrainer,
    pairs: Sequence[EncodedPair],
    settings: RewardConfig,
    *,
    seed: int,
    observer: StepObserver,
    start: int = 0,
) -> None:
    """Every epoch over the pairs in an order of its own, in batches of ``batch_tokens``, from step ``start`` on.

    Pairs and order depend on ``seed`` alone, so a run that goes on from a saved step sees what it would have seen.
    """
    batches = token_batches([len(pair) for pair in pairs], settings.batch_tokens, seed, settings.epochs)
    for step in range(start, len(batches)):
        rate = cosine(
            step, len(batches), settings.learning_rate, settings.final_learning_rate, settings.warmup_fraction
        )
        batch = [pairs[index] for index in batches[step]]
        metrics = trainer.update(batch, rate).result()
        counts = {"pairs": len(batch), "tokens": sum(len(pair) for pair in batch)}
        observer.record(step + 1, len(batches), {**metrics, **counts, "learning_rate": rate})
