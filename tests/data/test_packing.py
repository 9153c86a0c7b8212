"""Packing: nothing lost, budgets kept, ranks balanced."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cool_rlhf.data.packing import balance, micro_batches, pack

lengths_of = st.lists(st.integers(0, 50), max_size=40)


@given(lengths_of)
def test_split_undoes_pack(lengths: list[int]) -> None:
    sequences = [torch.randint(1000, (length,)) for length in lengths]
    packed = pack(sequences)
    assert packed.lengths == lengths
    assert packed.tokens.dtype == packed.positions.dtype == torch.int64
    pieces = packed.split(packed.tokens)
    assert all(torch.equal(a, b) for a, b in zip(pieces, sequences, strict=True))
    for positions, length in zip(packed.split(packed.positions), lengths, strict=True):
        assert positions.tolist() == list(range(length))


def test_split_refuses_values_of_another_length() -> None:
    with pytest.raises(ValueError, match="3 values for 2"):
        pack([torch.tensor([1, 2])]).split(torch.zeros(3))


@given(lengths_of, st.integers(1, 80))
def test_micro_batches_hold_every_index_once_within_budget(lengths: list[int], budget: int) -> None:
    groups = micro_batches(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(group for group in groups)
    for group in groups:
        assert len(group) == 1 or sum(lengths[index] for index in group) <= budget


@given(lengths_of, st.integers(1, 80), st.integers(0, 3))
def test_micro_batches_are_filled_up_to_count(lengths: list[int], budget: int, more: int) -> None:
    needed = micro_batches(lengths, budget)
    groups = micro_batches(lengths, budget, count=len(needed) + more)
    assert groups == needed + [[]] * more


def test_micro_batches_worked_by_hand() -> None:
    assert micro_batches([4, 4, 4, 4], 8) == [[0, 2], [1, 3]]
    assert micro_batches([20, 3, 3], 10) == [[0], [1, 2]]
    assert micro_batches([], 10, count=2) == [[], []]
    with pytest.raises(ValueError, match="only 1"):
        micro_batches([4, 4, 4], 8, count=1)
    with pytest.raises(ValueError, match="at least 1"):
        micro_batches([4], 0)


@given(lengths_of, st.integers(1, 5))
def test_balance_deals_every_index_and_no_rank_exceeds_another_by_more_than_one_sequence(
    lengths: list[int], ranks: int
) -> None:
    groups = balance(lengths, ranks)
    assert len(groups) == ranks
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in group) for group in groups]
    assert max(loads) - min(loads) <= max(lengths, default=0)
