"""A tensor that was sent is the one that arrives, with memory of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rollout.transport import INLINE_BYTES, from_parts, to_parts

LARGE = INLINE_BYTES // 4 + 3  # float32 numbers


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(2.5),
        torch.empty(0, 3, dtype=torch.int64),
        torch.tensor([True, False, True]),
        torch.arange(12).reshape(3, 4).t(),
        torch.randn(5, 7)[1:4, ::2],
        torch.randn(9).to(torch.bfloat16),
        torch.randn(LARGE),
        torch.randn(2, LARGE).to(torch.float16),
        torch.tensor([float("nan"), float("inf"), -0.0]),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_dtype_shape_and_numbers_arrive(tensor: Tensor) -> None:
    arrived = from_parts(to_parts(tensor))
    assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(arrived.nan_to_num(), tensor.nan_to_num())
    assert torch.equal(arrived.isnan(), tensor.isnan())


@pytest.mark.parametrize("size", [4, LARGE])
def test_writing_to_what_arrived_changes_nothing_else(size: int) -> None:
    tensor = torch.zeros(size, requires_grad=True)
    parts = to_parts(tensor)
    first, second = from_parts(parts), from_parts(parts)
    first += 1
    assert not first.requires_grad
    assert torch.equal(tensor.detach(), torch.zeros(size))
    assert torch.equal(second, torch.zeros(size))


def test_a_view_of_a_large_tensor_is_sent_without_the_rest() -> None:
    _, _, data = to_parts(torch.randn(LARGE)[:3])
    assert len(data) == 12
