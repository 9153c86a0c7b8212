"""One optimiser step of the policy or the critic, and what both are asked without gradients: one rank's part.

Every rank runs equally many micro-batches, some of which may be empty. Losses are divided by the counts of the *whole*
batch, over all ranks, so a token weighs the same however the batch was cut. Metrics come back as this rank's share:
added over the ranks they are the means over the whole batch.

An update's first pass over a micro-batch is the one that told its old log-probabilities or values, if no step lies
between. Either can therefore be made beforehand, asked for its numbers, and handed to the update with its graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cool_rlhf.accumulation import Totals, join
from cool_rlhf.data.packing import Packed, pack
from cool_rlhf.models.forward import token_logprobs, token_values
from cool_rlhf.ppo.kl import kl_estimate, kl_loss
from cool_rlhf.ppo.losses import (
    Clip,
    clipped_tokens,
    clipped_value_loss_per_token,
    policy_loss_per_token,
    value_loss_per_token,
)
from cool_rlhf.protocols import Experience, Forward, TrainEngine


def count_response_tokens(batch: Sequence[Experience]) -> int:
    """Tokens over which policy and value losses are averaged."""
    return sum(int(experience.mask.sum()) for experience in batch)


def count_predictions(texts: Sequence[Tensor]) -> int:
    """Next-token predictions in ``texts``: the first token of each is given, not predicted."""
    return sum(len(text) - 1 for text in texts)


@dataclass(frozen=True)
class Objective:
    """What the policy descends: L = L_policy + β · L_kl − e · H + c · L_pretrain; the report has the first and the last
    term (section 4.2.3). The first three are means over response tokens."""

    clip: Clip
    temperature: float  # that responses are sampled at; pretraining text is read at 1
    kl_coefficient: float  # β; 0 where the divergence stands in the reward
    kl_kind: str  # as in ``kl_loss``
    kl_gradient: str
    entropy_coefficient: float  # e; H is the entropy over the whole vocabulary, in nats
    pretrain_coefficient: float  # c; L_pretrain is the mean over the texts' next-token predictions


@dataclass(frozen=True)
class PolicyPass:
    """A forward pass of the policy over packed sequences, as an objective takes it, with its graph. What was not asked
    for is 0."""

    packed: Packed
    logprobs: Tensor  # (T,) float32
    entropy: Tensor  # (T,) float32, in nats

    def told(self) -> list[Tensor]:
        """(L,) log-probabilities of each sequence, on the CPU."""
        return _told(self.packed, self.logprobs)


@dataclass(frozen=True)
class CriticPass:
    """A forward pass of the critic over packed sequences, with its graph."""

    packed: Packed
    values: Tensor  # (T,) float32, as of :func:`preceding_values`

    def told(self) -> list[Tensor]:
        """(L,) values of each sequence, on the CPU."""
        return _told(self.packed, self.values)


def policy_pass(
    engine: TrainEngine, sequences: Sequence[Tensor], masks: Sequence[Tensor], objective: Objective
) -> PolicyPass:
    """Over the tokens of (L,) ``sequences`` that (L,) ``masks`` ask for."""
    packed = pack(sequences).to(engine.device)
    where = join(masks, packed, torch.bool)
    entropies = "differentiable" if objective.entropy_coefficient > 0 else "detached"
    logprobs, entropy = engine.forward(token_logprobs, packed, objective.temperature, where, entropies)
    return PolicyPass(packed, logprobs, entropy)


def critic_pass(engine: TrainEngine, sequences: Sequence[Tensor]) -> CriticPass:
    packed = pack(sequences).to(engine.device)
    return CriticPass(packed, preceding_values(engine.forward(token_values, packed), packed.positions))


def policy_update(
    engine: TrainEngine,
    batches: Sequence[Sequence[Experience]],
    pretrain: Sequence[Sequence[Tensor]],
    objective: Objective,
    *,
    token_count: int,
    pretrain_token_count: int,
    learning_rate: float,
    passes: Sequence[PolicyPass] = (),
) -> dict[str, float]:
    """One optimiser step on ``objective``, its means taken over the whole batch.

    Args:
        batches: this rank's micro-batches of experience; as many on every rank, some may be empty.
        pretrain: this rank's micro-batches of texts, likewise; a text is (L,) integers with L ≥ 2.
        token_count: response tokens of the whole batch.
        pretrain_token_count: predictions in all of its pretraining texts.
        passes: the forward pass of every one of ``batches``, where that has been made since the last step.
    """
    totals = Totals(engine)
    totals.add("loss/pretrain", torch.zeros((), device=engine.device))
    last = len(batches) + len(pretrain) - 1
    for index, batch in enumerate(batches):
        masks = [experience.mask for experience in batch]
        made = passes[index] if passes else policy_pass(engine, _tokens(batch), masks, objective)
        loss = _experience_loss(made, batch, objective, token_count, totals)
        engine.backward(loss, last=index == last)
    for index, texts in enumerate(pretrain, start=len(batches)):
        logprobs, _ = engine.forward(token_logprobs, pack(texts).to(engine.device), 1.0, None, "none")
        nll = -logprobs.sum() / max(1, pretrain_token_count)
        totals.add("loss/pretrain", nll)
        engine.backward(objective.pretrain_coefficient * nll, last=index == last)
    return totals.step(learning_rate, "policy/gradient_norm")


def _tokens(batch: Sequence[Experience]) -> list[Tensor]:
    return [experience.tokens for experience in batch]


def _experience_loss(
    made: PolicyPass, batch: Sequence[Experience], objective: Objective, token_count: int, totals: Totals
) -> Tensor:
    """This micro-batch's share of all terms but pretraining."""
    mask = join([experience.mask for experience in batch], made.packed, torch.bool)
    old_logprobs = join([experience.old_logprobs for experience in batch], made.packed, torch.float32)
    advantages = join([experience.advantages for experience in batch], made.packed, torch.float32)
    logprobs, entropy = made.logprobs, torch.where(mask, made.entropy, 0.0)
    loss = policy_loss_per_token(logprobs, old_logprobs, advantages, mask, objective.clip).sum() / token_count
    with torch.no_grad():
        clipped = clipped_tokens(logprobs, old_logprobs, advantages, mask, objective.clip)
        moved = torch.where(mask, kl_estimate(old_logprobs, logprobs, "k3"), 0.0)
        totals.add("loss/policy", loss)
        totals.add("policy/clipped", clipped.sum() / token_count)
        totals.add("policy/entropy", entropy.sum() / token_count)
        totals.add("policy/moved", moved.sum() / token_count)
    if objective.kl_coefficient > 0:
        reference = join([experience.reference_logprobs for experience in batch], made.packed, torch.float32)
        kl = kl_loss(logprobs, reference, objective.kl_kind, objective.kl_gradient)
        kl = torch.where(mask, kl, 0.0).sum() / token_count
        totals.add("loss/kl", kl)
        loss = loss + objective.kl_coefficient * kl
    if objective.entropy_coefficient > 0:
        loss = loss - objective.entropy_coefficient * entropy.sum() / token_count
    return loss


def critic_update(
    engine: TrainEngine,
    batches: Sequence[Sequence[Experience]],
    *,
    token_count: int,
    learning_rate: float,
    clip: float = 0.0,
    passes: Sequence[CriticPass] = (),
) -> dict[str, float]:
    """One step on ½ (V_t − R_t)² averaged over the response tokens of the whole batch; arguments as for the policy.
    With a ``clip`` above 0, on the clipped value loss."""
    totals = Totals(engine)
    for index, batch in enumerate(batches):
        made = passes[index] if passes else critic_pass(engine, _tokens(batch))
        mask = join([experience.mask for experience in batch], made.packed, torch.bool)
        returns = join([experience.returns for experience in batch], made.packed, torch.float32)
        if clip > 0:
            old_values = join([experience.values for experience in batch], made.packed, torch.float32)
            per_token = clipped_value_loss_per_token(made.values, old_values, returns, mask, clip)
        else:
            per_token = value_loss_per_token(made.values, returns, mask)
        loss = per_token.sum() / token_count
        totals.add("loss/value", loss)
        engine.backward(loss, last=index == len(batches) - 1)
    return totals.step(learning_rate, "critic/gradient_norm")


def preceding_values(head: Tensor, positions: Tensor) -> Tensor:
    """Values of packed sequences, (T,): ``values[t]`` is the head at t − 1, before token t is chosen; 0 at each
    sequence's first token, before which there is nothing."""
    shifted = torch.cat([head.new_zeros(1), head[:-1]])
    return torch.where(positions > 0, shifted, 0.0)


@torch.no_grad()
def sequence_logprobs(
    engine: Forward,
    batches: Sequence[Sequence[Tensor]],
    temperature: float,
    begins: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:
    """Log-probability of every token of each (L,) sequence, (L,) float32 on the CPU, in the order of the
    micro-batches; index 0 holds 0. Some micro-batches may be empty, where ranks must keep step. ``begins``: by
    micro-batch, of each sequence the first token that is asked for; those before it hold 0."""
    results: list[Tensor] = []
    for place, batch in enumerate(batches):
        packed = pack(batch)
        where = None if begins is None else join(masks_from(batch, begins[place]), packed, torch.bool)
        results += _told(packed, engine.forward(token_logprobs, packed, temperature, where, "none")[0])
    return results


def masks_from(sequences: Sequence[Tensor], begins: Sequence[int]) -> list[Tensor]:
    """(L,) bool of each sequence: true from its ``begins`` on."""
    return [torch.arange(len(each)) >= begin for each, begin in zip(sequences, begins, strict=True)]


@torch.no_grad()
def sequence_values(engine: Forward, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Value of every token of each (L,) sequence, (L,) float32 on the CPU: values[t] is the head at t − 1, index 0
    holds 0. Micro-batches as for :func:`sequence_logprobs`."""
    results: list[Tensor] = []
    for batch in batches:
        packed = pack(batch)
        head = engine.forward(token_values, packed)
        results += _told(packed, preceding_values(head, packed.positions.to(head.device)))
    return results


def _told(packed: Packed, values: Tensor) -> list[Tensor]:
    # Copies, so that a record does not keep its whole micro-batch alive or drag it along when it is sent.
    return [each.clone() for each in packed.split(values.detach().cpu()[: len(packed.tokens)])]
