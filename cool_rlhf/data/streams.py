"""What is trained on at which step: pure functions of a seed and a position, so that a resumed run sees the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Generic, TypeVar

from cool_rlhf.schedule import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@lru_cache(maxsize=8)
def permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order in which an epoch goes through ``count`` items."""
    order = list(range(count))
    random.Random(derive_seed("permutation", seed, epoch)).shuffle(order)
    return tuple(order)


class ShuffledStream(Generic[T]):
    """Endless epochs over ``items``, each in an order of its own. A position counts the items taken since the start."""

    def __init__(self, items: Sequence[T], seed: int) -> None:
        if not items:
            raise ValueError("a stream needs at least one item")
        self._items = items
        self._seed = seed

    def at(self, position: int) -> T:
        epoch, place = divmod(position, len(self._items))
        return self._items[permutation(len(self._items), self._seed, epoch)[place]]

    def take(self, position: int, count: int) -> list[T]:
        """The ``count`` items from ``position`` on; may run over the end of an epoch."""
        return [self.at(position + k) for k in range(count)]


@dataclass(frozen=True)
class TextPosition:
    """``item`` of a stream of texts, and how many of its tokens have been taken."""

    item: int = 0
    offset: int = 0


class TextStream:
    """Endless epochs over tokenised texts, handed out in pieces by token count; what is cut off comes next time."""

    def __init__(self, texts: Sequence[Tensor], seed: int) -> None:
        usable = [text for text in texts if len(text) >= 2]
        self._stream = ShuffledStream(usable, derive_seed("texts", seed))

    def take(self, position: TextPosition, tokens: int) -> tuple[list[Tensor], TextPosition]:
        """Pieces of ``tokens`` tokens together, or one fewer where the last piece would be a single token, which has
        nothing to predict; and the position after them."""
        pieces: list[Tensor] = []
        item, offset = position.item, position.offset
        while tokens >= 2:
            text = self._stream.at(item)
            piece = text[offset : offset + tokens]
            if len(piece) >= 2:
                pieces.append(piece)
            tokens -= len(piece)
            offset += len(piece)
            if offset >= len(text):
                item, offset = item + 1, 0
        return pieces, TextPosition(item, offset)


def token_batches(lengths: Sequence[int], budget: int, seed: int, epochs: int) -> list[list[int]]:
    """Every batch of a training: in each epoch a seeded order of all items, cut before the token budget is exceeded.

    An item longer than the budget is a batch of its own. Batches do not run over the end of an epoch.
    """
    batches: list[list[int]] = []
    for epoch in range(epochs):
        batch: list[int] = []
        tokens = 0
        for index in permutation(len(lengths), seed, epoch):
            if batch and tokens + lengths[index] > budget:
                batches.append(batch)
                batch, tokens = [], 0
            batch.append(index)
            tokens += lengths[index]
        if batch:
            batches.append(batch)
    return batches
