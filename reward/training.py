"""Training of the conditional reward model (report, section 4.2.1): batches hold tokens, not pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from cool_rlhf.accumulation import Totals
from cool_rlhf.config import RewardConfig
from cool_rlhf.data.mixing import mixed_order
from cool_rlhf.data.packing import pack_pairs
from cool_rlhf.models.forward import token_values
from cool_rlhf.protocols import Future, StepObserver, TrainEngine
from cool_rlhf.supervised import train_steps
from reward.losses import focal_ranking_per_pair, log_barrier_per_score, reward_loss
from reward.pairs import EncodedPair

GLIMPSE = 1000  # held-out pairs, at most, that are judged on the way


class RewardTrainer(Protocol):
    """The model under training, wherever it runs."""

    def update(self, batch: Sequence[EncodedPair], learning_rate: float) -> Future[dict[str, float]]:
        """One optimiser step over all of ``batch``; the batch's mean metrics."""
        ...

    def scores(self, pairs: Sequence[EncodedPair]) -> Future[list[tuple[float, float]]]:
        """The chosen's and the rejected's score of each pair, in order."""
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
    use_margin: bool,
    learning_rate: float,
) -> dict[str, float]:
    """One step on L = L_rank + λ · L_pen: ranking averaged over the whole batch's pairs, the barrier over all of its
    scores, chosen and rejected alike; one rank's part.

    Args:
        batches: this rank's micro-batches of whole pairs; as many on every rank, some may be empty.
        pair_count: pairs of the whole batch, over all ranks.
        penalty_weight: λ.
        use_margin: by how much the rows want the chosen one to lead counts.

    Returns: this rank's shares; added over the ranks they are the batch's means.
    """
    totals = Totals(engine)
    for index, batch in enumerate(batches):
        scores = _scores(engine, batch)
        chosen, rejected = scores[: len(batch)], scores[len(batch) :]
        margin = torch.tensor([pair.margin for pair in batch], device=engine.device) if use_margin else None
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


def _scores(engine: TrainEngine, pairs: Sequence[EncodedPair]) -> Tensor:
    """(2 N,) float32: the chosen ones' scores, then the rejected ones'."""
    packed = pack_pairs([(pair.chosen, pair.rejected) for pair in pairs]).to(engine.device)
    return engine.forward(token_values, packed)[packed.ends]


@torch.no_grad()
def pair_scores(engine: TrainEngine, batches: Sequence[Sequence[EncodedPair]]) -> list[tuple[float, float]]:
    """Both scores of each pair in the order of this rank's micro-batches; as many on every rank, some may be empty."""
    found: list[tuple[float, float]] = []
    training = engine.module.training
    engine.module.eval()  # as the model is used: without dropout
    try:
        for batch in batches:
            scores = _scores(engine, batch).tolist()
            found += zip(scores[: len(batch)], scores[len(batch) :], strict=True)
    finally:
        engine.module.train(training)
    return found


def validation_metrics(
    pairs: Sequence[EncodedPair], scores: Sequence[tuple[float, float]], settings: RewardConfig
) -> dict[str, float]:
    """Accuracy (an equal score is a miss) and loss of held-out pairs, over all and by domain."""
    found: dict[str, float] = {}
    groups: dict[str, list[int]] = {"": list(range(len(pairs)))}
    for index, pair in enumerate(pairs):
        groups.setdefault(f"/{pair.domain}", []).append(index)
    for name, members in sorted(groups.items()):
        chosen, rejected = torch.tensor([scores[index] for index in members]).T
        margin = torch.tensor([pairs[index].margin for index in members]) if settings.margin else None
        loss = reward_loss(
            chosen,
            rejected,
            settings.gamma,
            settings.penalty_weight,
            settings.bound,
            margin,
            settings.detach_focal,
        )
        found[f"validation/accuracy{name}"] = (chosen > rejected).float().mean().item()
        found[f"validation/loss{name}"] = loss.item()
    return found


def train_reward(
    trainer: RewardTrainer,
    pairs: Sequence[EncodedPair],
    settings: RewardConfig,
    *,
    seed: int,
    observer: StepObserver,
    start: int = 0,
    validation: Sequence[EncodedPair] = (),
) -> None:
    """Every epoch over the pairs in batches of ``batch_tokens``, from step ``start`` on; see :func:`train_steps`.

    ``validation`` is judged every ``evaluate_every`` steps, at most ``GLIMPSE`` pairs of it, and as a whole after the
    last; the numbers stand in that step's row.
    """
    order = mixed_order([pair.domain for pair in validation], seed)
    glimpse = [validation[place] for place in sorted(order[:GLIMPSE])]

    def is_judged(step: int, steps: int) -> bool:
        return bool(validation) and (step % settings.evaluate_every == 0 or step == steps)

    def is_saved(step: int, steps: int) -> bool:
        return step % settings.save_every == 0 and step < steps

    for step in train_steps(
        trainer.update,
        pairs,
        [len(pair) for pair in pairs],
        settings,
        seed=seed,
        start=start,
        pauses_after=lambda *at: is_judged(*at) or is_saved(*at),
    ):
        metrics = {**step.metrics, "pairs": len(step.batch), "tokens": sum(len(pair) for pair in step.batch)}
        if is_judged(step.number, step.of):
            judged = validation if step.number == step.of else glimpse
            metrics |= validation_metrics(judged, trainer.scores(judged).result(), settings)
        observer.record(step.number, step.of, metrics)
        if is_saved(step.number, step.of):
            observer.save(step.number)
