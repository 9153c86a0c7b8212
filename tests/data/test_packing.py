"""Packing: nothing lost, budgets kept, ranks balanced."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cool_rlhf.data.packing import balance, micro_batches, pack, pack_pairs

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


def test_micro_batches_worked_by_hand() -> None:
    assert micro_batches([4, 4, 4, 4], 8) == [[0, 2], [1, 3]]
    assert micro_batches([20, 3, 3], 10) == [[0], [1, 2]]
    assert micro_batches([], 10) == []
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


tokens_of = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(lambda tokens: torch.tensor(tokens))


@given(st.lists(st.tuples(tokens_of, tokens_of), max_size=6))
def test_a_packed_pair_leaves_out_what_its_right_side_shares(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    packed = pack_pairs(pairs)
    rows = packed.split(packed.tokens)
    positions = packed.split(packed.positions)
    for index, sequence in enumerate([*(first for first, _ in pairs), *(second for _, second in pairs)]):
        start, count = packed.prefixes.get(index, (0, 0))
        assert torch.equal(torch.cat([packed.tokens[start : start + count], rows[index]]), sequence)
        assert positions[index].tolist() == list(range(count, len(sequence)))
        assert len(rows[index]) >= 1
        assert packed.tokens[packed.ends[index]] == sequence[-1]


def test_packed_pairs_worked_by_hand() -> None:
    packed = pack_pairs(
        [
            (torch.tensor([7, 8, 1]), torch.tensor([7, 8, 2, 3])),
            (torch.tensor([5]), torch.tensor([6])),
            (torch.tensor([4, 9]), torch.tensor([4, 9])),
        ]
    )
    assert packed.tokens.tolist() == [7, 8, 1, 5, 4, 9, 2, 3, 6, 9]
    assert packed.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 0, 1]
    assert packed.lengths == [3, 1, 2, 2, 1, 1]
    assert packed.prefixes == {3: (0, 2), 5: (4, 1)}
    assert packed.ends.tolist() == [2, 3, 5, 7, 8, 9]
