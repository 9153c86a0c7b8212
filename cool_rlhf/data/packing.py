"""Packing: sequences end to end in one row, and which sequences go together. Nothing is padded."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Sequences laid end to end; T is the sum of ``lengths``.

    A sequence may begin like one before it and leave that beginning out: it then holds the rest only, counts its
    positions on from there, and attends to the tokens named in ``prefixes`` as if they were its own.
    """

    tokens: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64, from 0 in each sequence
    lengths: list[int]
    prefixes: dict[int, tuple[int, int]] = field(default_factory=dict)  # sequence → (first token, tokens) it shares

    @property
    def ends(self) -> Tensor:
        """Where each sequence's last token stands, (N,) int64."""
        return torch.tensor(self.lengths, dtype=torch.int64, device=self.tokens.device).cumsum(0) - 1

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut (T, ...) values into one (L, ...) view per sequence."""
        if len(values) != len(self.tokens):
            raise ValueError(f"{len(values)} values for {len(self.tokens)} packed tokens")
        return list(values.split(self.lengths)) if self.lengths else []

    def to(self, device: torch.device | str) -> Packed:
        return Packed(self.tokens.to(device), self.positions.to(device), self.lengths, self.prefixes)


def pack(sequences: Sequence[Tensor]) -> Packed:
    """Lay (L,) token sequences end to end; an empty list gives an empty pack."""
    lengths = [len(sequence) for sequence in sequences]
    if not sequences:
        empty = torch.empty(0, dtype=torch.int64)
        return Packed(empty, empty, [])
    device = sequences[0].device
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    return Packed(torch.cat(list(sequences)).long(), positions, lengths)


def pack_pairs(pairs: Sequence[tuple[Tensor, Tensor]]) -> Packed:
    """Both sequences of every pair, first those of the left, then those of the right without what they share with
    theirs. Preference pairs share condition and prompt, so most of their tokens need to be computed once only.

    At least the last token of each sequence is its own, so :attr:`Packed.ends` finds all of them.
    """
    left = [first for first, _ in pairs]
    shared = [min(common_prefix(first, second), len(second) - 1) for first, second in pairs]
    whole = pack(left)
    rest = [second[count:] for (_, second), count in zip(pairs, shared, strict=True)]
    starts = [0, *accumulate(whole.lengths)]
    prefixes = {len(pairs) + index: (starts[index], count) for index, count in enumerate(shared) if count}
    positions = [torch.arange(n, n + len(r), device=r.device) for n, r in zip(shared, rest, strict=True)]
    return Packed(
        torch.cat([whole.tokens, *rest]),
        torch.cat([whole.positions, *positions]),
        [*whole.lengths, *(len(tokens) for tokens in rest)],
        prefixes,
    )


def common_prefix(first: Tensor, second: Tensor) -> int:
    """How many tokens (L,) and (M,) sequences begin with alike."""
    count = min(len(first), len(second))
    differs = (first[:count] != second[:count]).nonzero()
    return int(differs[0]) if len(differs) else count


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Spread sequences over micro-batches of at most ``budget`` tokens each, about equally full.

    A sequence longer than the budget gets a micro-batch of its own.

    Returns: one list of indices per micro-batch, ascending; every index stands in exactly one, and none is empty.
    Raises: ValueError for a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"the token budget of a micro-batch must be at least 1, not {budget}")
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    fitting = [index for index in longest_first if lengths[index] <= budget]
    alone = [[index] for index in longest_first if lengths[index] > budget]
    bins = max(1, -(-sum(lengths[index] for index in fitting) // budget))
    while (groups := _fill(lengths, fitting, bins, budget)) is None:
        bins += 1
    return sorted(sorted(group) for group in groups + alone if group)


def balance(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal sequences to ``ranks`` so that each gets about as many tokens.

    Returns: one ascending list of indices per rank; some are empty when there are fewer sequences than ranks.
    """
    if ranks < 1:
        raise ValueError(f"there must be at least one rank, not {ranks}")
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups = _fill(lengths, longest_first, ranks, None)
    assert groups is not None  # without a budget everything fits
    return [sorted(group) for group in groups]


def _fill(lengths: Sequence[int], order: Sequence[int], bins: int, budget: int | None) -> list[list[int]] | None:
    """Each in turn into the emptiest bin; None where that bursts the budget."""
    groups: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, bin_) for bin_ in range(bins)]
    for index in order:
        load, bin_ = heapq.heappop(heap)
        if budget is not None and load + lengths[index] > budget:
            return None
        groups[bin_].append(index)
        heapq.heappush(heap, (load + lengths[index], bin_))
    return groups
