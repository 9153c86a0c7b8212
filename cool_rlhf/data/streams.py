"""What is trained on at which step: pure functions of a seed and a position, so that a resumed run sees the same."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor
from typing import TYPE_CHECKING, Generic, TypeVar

from cool_rlhf.schedule import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@lru_cache(maxsize=64)
def permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order in which an epoch goes through ``count`` items."""
    order = list(range(count))
    random.Random(derive_seed("permutation", seed, epoch)).shuffle(order)
    return tuple(order)


class Stream(ABC, Generic[T]):
    """Endless items. A position counts those taken since the start; what stands there depends on nothing else."""

    @abstractmethod
    def at(self, position: int) -> T: ...

    def take(self, position: int, count: int) -> list[T]:
        """The ``count`` items from ``position`` on; may run over the end of an epoch."""
        return [self.at(position + k) for k in range(count)]


class ShuffledStream(Stream[T]):
    """Endless epochs over ``items``, each in an order of its own."""

    def __init__(self, items: Sequence[T], seed: int) -> None:
        if not items:
            raise ValueError("a stream needs at least one item")
        self._items = items
        self._seed = seed

    def at(self, position: int) -> T:
        epoch, place = divmod(position, len(self._items))
        return self._items[permutation(len(self._items), self._seed, epoch)[place]]


class WeightedStream(Stream[T]):
    """Endless epochs in which an item of a group with weight w comes w times as often as one with weight 1.

    An epoch takes each item of the heaviest group once. Each group is a shuffled stream of its own, of which an epoch
    takes the next w / (greatest w) · size items, and mixes them in an order of its own. What is no whole number is
    evened out over the epochs: at half the greatest weight every item comes once in two of them.
    """

    def __init__(self, items: Sequence[T], groups: Iterable[str], weights: Mapping[str, float], seed: int) -> None:
        """``groups`` names each item's group; those that ``weights`` leaves out have weight 1, and those with weight 0
        never come."""
        members: dict[str, list[int]] = defaultdict(list)
        for index, group in enumerate(groups):
            members[group].append(index)
        weight = {group: Fraction(weights.get(group, 1.0)) for group in members}
        heaviest = max(weight.values(), default=Fraction(0))
        if heaviest == 0:
            raise ValueError("a stream needs at least one item of a weight above 0")
        self._items = items
        self._seed = derive_seed("weighted", seed)
        self._groups = [  # stream, and how many of it an epoch takes
            (ShuffledStream(indices, derive_seed("group", group, seed)), weight[group] / heaviest * len(indices))
            for group, indices in sorted(members.items())
        ]

    def at(self, position: int) -> T:
        epoch = int(position / sum(rate for _, rate in self._groups))
        while self._taken_before(epoch + 1) <= position:  # an epoch has up to an item of each group fewer or more
            epoch += 1
        first = self._taken_before(epoch)
        count = self._taken_before(epoch + 1) - first
        place = permutation(count, self._seed, epoch)[position - first]
        for stream, rate in self._groups:
            taken, until = floor(rate * epoch), floor(rate * (epoch + 1))
            if place < until - taken:
                return self._items[stream.at(taken + place)]
            place -= until - taken
        raise AssertionError("the groups' parts make up the epoch")

    def _taken_before(self, epoch: int) -> int:
        return sum(floor(rate * epoch) for _, rate in self._groups)


@dataclass(frozen=True)
class TextPosition:
    """``item`` of a stream of texts, and how many of its tokens have been taken."""

    item: int = 0
    offset: int = 0


class TextStream:
    """Endless epochs over tokenised texts, handed out in pieces by token count; what is cut off comes next time. One
    without texts has no pieces."""

    def __init__(self, texts: Sequence[Tensor], seed: int) -> None:
        usable = [text for text in texts if len(text) >= 2]
        self._stream = ShuffledStream(usable, derive_seed("texts", seed)) if usable else None

    def take(self, position: TextPosition, tokens: int) -> tuple[list[Tensor], TextPosition]:
        """Pieces of ``tokens`` tokens together, or one fewer where the last piece would be a single token, which has
        nothing to predict; and the position after them."""
        pieces: list[Tensor] = []
        item, offset = position.item, position.offset
        while self._stream is not None and tokens >= 2:
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
