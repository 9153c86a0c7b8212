"""One optimiser step of the policy or the critic, and what both are asked without gradients: one rank's part.

Every rank runs equally many micro-batches, some of which may be empty. Losses are divided by the counts of the *whole*
batch, over all ranks, so a token weighs the same however the batch was cut. Metrics come back as this rank's share:
added over the ranks they are the means over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cool_rlhf.accumulation import Totals, join
from cool_rlhf.data.packing import Packed, pack
from cool_rlhf.models.forward import token_logprobs, token_values
from cool_rlhf.ppo.kl import kl_estimate
from cool_rlhf.ppo.losses import clipped_tokens, policy_loss_per_token, value_loss_per_token
from cool_rlhf.protocols import Experience, Forward, TrainEngine


def count_response_tokens(batch: Sequence[Experience]) -> int:
    """Tokens over which policy and value losses are averaged."""
    return sum(int(experience.mask.sum()) for experience in batch)


def count_predictions(texts: Sequence[Tensor]) -> int:
    """Next-token predictions in ``texts``: the first token of each is given, not predicted."""
    return sum(len(text) - 1 for text in texts)


def policy_update(
    engine: TrainEngine,
    batches: Sequence[Sequence[Experience]],
    pretrain: Sequence[Sequence[Tensor]],
    *,
    token_count: int,
    pretrain_token_count: int,
    clip: float,
    pretrain_coefficient: float,
    temperature: float,
    learning_rate: float,
) -> dict[str, float]:
    """One step on L = L_policy + c · L_pretrain (report, section 4.2.3).

    L_policy is the clipped loss averaged over response tokens, L_pretrain the cross-entropy of pretraining text
    averaged over its next-token predictions, both over the whole batch.

    Args:
        batches: this rank's micro-batches of experience; as many on every rank, some may be empty.
        pretrain: this rank's micro-batches of texts, likewise; a text is (L,) int64 with L ≥ 2.
        token_count: response tokens of the whole batch.
        pretrain_token_count: predictions in all of its pretraining texts.
        temperature: the one that responses are sampled at; pretraining text is read at 1.
    """
    totals = Totals(engine)
    totals.add("loss/pretrain", torch.zeros((), device=engine.device))
    last = len(batches) + len(pretrain) - 1
    for index, batch in enumerate(batches):
        loss = _policy_loss(engine, batch, token_count, clip, temperature, totals)
        engine.backward(loss, last=index == last)
    for index, texts in enumerate(pretrain, start=len(batches)):
        logprobs, _ = engine.forward(token_logprobs, pack(texts).to(engine.device))
        nll = -logprobs.sum() / max(1, pretrain_token_count)
        totals.add("loss/pretrain", nll)
        engine.backward(pretrain_coefficient * nll, last=index == last)
    return totals.step(learning_rate, "policy/gradient_norm")


def _policy_loss(
    engine: TrainEngine,
    batch: Sequence[Experience],
    token_count: int,
    clip: float,
    temperature: float,
    totals: Totals,
) -> Tensor:
    packed = pack([experience.tokens for experience in batch]).to(engine.device)
    mask = join([experience.mask for experience in batch], packed, torch.bool)
    old_logprobs = join([experience.old_logprobs for experience in batch], packed, torch.float32)
    advantages = join([experience.advantages for experience in batch], packed, torch.float32)
    logprobs, entropy = engine.forward(token_logprobs, packed, temperature, mask)
    loss = policy_loss_per_token(logprobs, old_logprobs, advantages, mask, clip).sum() / token_count
    with torch.no_grad():
        clipped = clipped_tokens(logprobs, old_logprobs, advantages, mask, clip)
        moved = torch.where(mask, kl_estimate(old_logprobs, logprobs, "k3"), 0.0)
        totals.add("loss/policy", loss)
        totals.add("policy/clipped", clipped.sum() / token_count)
        totals.add("policy/entropy", entropy.sum() / token_count)
        totals.add("policy/moved", moved.sum() / token_count)
    return loss


def critic_update(
    engine: TrainEngine, batches: Sequence[Sequence[Experience]], *, token_count: int, learning_rate: float
) -> dict[str, float]:
    """One step on ½ (V_t − R_t)² averaged over the response tokens of the whole batch; arguments as for the policy."""
    totals = Totals(engine)
    for index, batch in enumerate(batches):
        packed = pack([experience.tokens for experience in batch]).to(engine.device)
        mask = join([experience.mask for experience in batch], packed, torch.bool)
        returns = join([experience.returns for experience in batch], packed, torch.float32)
        values = preceding_values(engine.forward(token_values, packed), packed.positions)
        loss = value_loss_per_token(values, returns, mask).sum() / token_count
        totals.add("loss/value", loss)
        engine.backward(loss, last=index == len(batches) - 1)
    return totals.step(learning_rate, "critic/gradient_norm")


def preceding_values(head: Tensor, positions: Tensor) -> Tensor:
    """Values of packed sequences, (T,): ``values[t]`` is the head at t − 1, before token t is chosen; 0 at each
    sequence's first token, before which there is nothing."""
    shifted = torch.cat([head.new_zeros(1), head[:-1]])
    return torch.where(positions > 0, shifted, 0.0)


@torch.no_grad()
def sequence_logprobs(engine: Forward, batches: Sequence[Sequence[Tensor]], temperature: float) -> list[Tensor]:
    """Log-probability of every token of each (L,) sequence, (L,) float32 on the CPU, in the order of the
    micro-batches; index 0 holds 0. Some micro-batches may be empty, where ranks must keep step."""
    return _per_sequence(batches, lambda packed: engine.forward(token_logprobs, packed, temperature)[0])


@torch.no_grad()
def sequence_values(engine: Forward, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Value of every token of each (L,) sequence, (L,) float32 on the CPU: values[t] is the head at t − 1, index 0
    holds 0. Micro-batches as for :func:`sequence_logprobs`."""

    def values(packed: Packed) -> Tensor:
        head = engine.forward(token_values, packed)
        return preceding_values(head, packed.positions.to(head.device))

    return _per_sequence(batches, values)


def _per_sequence(batches: Sequence[Sequence[Tensor]], compute: Callable[[Packed], Tensor]) -> list[Tensor]:
    results: list[Tensor] = []
    for batch in batches:
        packed = pack(batch)
        # Copies, so that a record does not keep its whole micro-batch alive or drag it along when it is sent.
        results += [values.clone() for values in packed.split(compute(packed).cpu()[: len(packed.tokens)])]
    return results
