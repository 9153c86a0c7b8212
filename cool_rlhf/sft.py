"""Supervised fine-tuning: cross-entropy on the assistant's tokens of packed chats (report, section 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from cool_rlhf.accumulation import Totals, join
from cool_rlhf.config import SFTConfig
from cool_rlhf.data.chat import encode_chat
from cool_rlhf.data.packing import pack
from cool_rlhf.models.forward import token_logprobs
from cool_rlhf.protocols import Future, Message, StepObserver, TrainEngine, UserError
from cool_rlhf.supervised import train_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedChat:
    """A chat in tokens; ``mask`` is True on what the assistant says, its end-of-turn token included."""

    tokens: Tensor  # (L,) int64
    mask: Tensor  # (L,) bool


class SFTTrainer(Protocol):
    """The model under training, wherever it runs."""

    def update(self, batch: Sequence[EncodedChat], learning_rate: float) -> Future[dict[str, float]]:
        """One optimiser step over all of ``batch``; the batch's mean metrics."""
        ...


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Iterable[Sequence[Message]], max_length: int
) -> list[EncodedChat]:
    """Chats in tokens, cut after ``max_length``; those that have nothing of the assistant left are left out, and a
    warning counts them. Raises UserError where no chat is left."""
    encoded, left_out = [], 0
    for messages in chats:
        tokens, mask = encode_chat(tokenizer, messages)
        if mask[1:max_length].any():
            encoded.append(EncodedChat(tokens[:max_length], mask[:max_length]))
        else:
            left_out += 1
    if not encoded:
        raise UserError(
            f"in no chat of SFT the assistant says anything within the first {max_length} tokens (sft.max_length, "
            "or the model's positions where they are fewer): raise sft.max_length, or give chats with shorter prompts"
        )
    if left_out:
        logger.warning(
            "SFT leaves out %d of %d chats: the assistant says nothing within their first %d tokens (sft.max_length)",
            *(left_out, left_out + len(encoded), max_length),
        )
    return encoded


def count_targets(batch: Sequence[EncodedChat]) -> int:
    """Tokens that are learned: those of the assistant, but for a sequence's first, which nothing predicts."""
    return sum(int(chat.mask[1:].sum()) for chat in batch)


def sft_update(
    engine: TrainEngine, batches: Sequence[Sequence[EncodedChat]], *, token_count: int, learning_rate: float
) -> dict[str, float]:
    """One step on the mean cross-entropy over the assistant's tokens of the whole batch; one rank's part.

    Args:
        batches: this rank's micro-batches; as many on every rank, some may be empty.
        token_count: :func:`count_targets` of the whole batch, over all ranks.

    Returns: this rank's shares; added over the ranks they are the batch's means.
    """
    totals = Totals(engine)
    for index, batch in enumerate(batches):
        packed = pack([chat.tokens for chat in batch]).to(engine.device)
        mask = join([chat.mask for chat in batch], packed, torch.bool)
        logprobs, _ = engine.forward(token_logprobs, packed, 1.0, mask, "none")
        loss = -logprobs.sum() / max(1, token_count)
        totals.add("loss/sft", loss)
        engine.backward(loss, last=index == len(batches) - 1)
    return totals.step(learning_rate, "gradient_norm")


def train_sft(
    trainer: SFTTrainer,
    chats: Sequence[EncodedChat],
    settings: SFTConfig,
    *,
    seed: int,
    observer: StepObserver,
    start: int = 0,
) -> None:
    """Every epoch over the chats in batches of ``batch_tokens``, from step ``start`` on; see :func:`train_steps`."""

    def is_saved(step: int, steps: int) -> bool:
        return step % settings.save_every == 0 and step < steps

    lengths = [len(chat.tokens) for chat in chats]
    for step in train_steps(trainer.update, chats, lengths, settings, seed=seed, start=start, pauses_after=is_saved):
        tokens = sum(len(chat.tokens) for chat in step.batch)
        observer.record(step.number, step.of, {**step.metrics, "tokens": tokens})
        if is_saved(step.number, step.of):
            observer.save(step.number)
