"""Which passes an update goes on from, and in which order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cool_rlhf.protocols import Experience
from cool_rlhf.roles.group import RankShare
from cool_rlhf.roles.kept import KeptPasses


def sequence(number: int) -> Tensor:
    return torch.tensor([number, 7, 7])


def experience(number: int, advantage: float = 0.0) -> Experience:
    zeros = torch.zeros(3)
    return Experience(sequence(number), zeros > 0, zeros, zeros, zeros, zeros + advantage, zeros)


def numbers(groups: list[list[Experience]]) -> list[list[int]]:
    return [[int(one.tokens[0]) for one in group] for group in groups]


FIRST = ([1, 2, 3], [RankShare([[0, 2]]), RankShare([[1]])])  # numbers, and of each rank its micro-batches
SECOND = ([4, 5], [RankShare([[1]]), RankShare([[0]])])


@pytest.mark.parametrize("order", [(FIRST, SECOND), (SECOND, FIRST)], ids=["one", "other"])
def test_ranks_take_up_their_own_passes_in_one_order_whichever_was_asked_for_first(order) -> None:
    kept = KeptPasses()
    assert not kept
    for asked, shares in order:
        kept.add([sequence(number) for number in asked], shares)
    assert kept
    calls, by_rank = kept.take([experience(number) for number in (5, 3, 1, 4, 2)])
    assert [order[call] for call in calls] == [FIRST, SECOND]
    assert [numbers(groups) for groups in by_rank] == [[[1, 3], [5]], [[2], [4]]]
    assert not kept


def test_equal_sequences_each_have_their_experience() -> None:
    kept = KeptPasses()
    kept.add([sequence(1), sequence(1)], [RankShare([[0, 1]])])
    _, ((group,),) = kept.take([experience(1, 0.5), experience(1, -0.5)])
    assert sorted(float(one.advantages[0]) for one in group) == [-0.5, 0.5]


@pytest.mark.parametrize("others", [[1], [1, 2, 3], [1, 3], [1, 1, 2]], ids=str)
def test_an_update_on_other_sequences_is_refused(others: list[int]) -> None:
    kept = KeptPasses()
    kept.add([sequence(1), sequence(2)], [RankShare([[0, 1]])])
    with pytest.raises(ValueError, match="not over the sequences"):
        kept.take([experience(number) for number in others])
