"""The fused path's choice and arguments; its kernel runs on CUDA only, so here a plain one is told the same."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cool_rlhf.models import attention, varlen

LENGTHS = [5, 1, 12, 7]


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What torch documents of ``varlen_attn``, spelt out."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    left, right = window_size
    outputs = []
    for (q0, q1), (k0, k1) in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1])
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        place = torch.arange(q1 - q0) + (k1 - k0) - (q1 - q0)  # the last query at the last key
        ahead = torch.arange(k1 - k0) - place[:, None]
        seen = (ahead <= right) & ((-ahead <= left) | torch.tensor(left < 0))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value[k0:k1]))
    return torch.cat(outputs)


@pytest.mark.parametrize("prefixes", [{}, {2: (0, 4), 3: (5, 1)}], ids=["apart", "shared"])
@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_the_fused_path_is_told_what_the_grouped_one_computes(prefixes, window, scaling, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(LENGTHS), 4, 8), (sum(LENGTHS), 2, 8), (sum(LENGTHS), 2, 8))
    states = [torch.randn(shape, generator=generator) for shape in shapes]

    def outcome() -> list[Tensor]:
        layout = attention.make_layout(LENGTHS, torch.device("cpu"), prefixes)
        leaves = [state.clone().requires_grad_() for state in states]
        out = attention.attend_packed(*leaves, layout, scaling, window)
        out.square().sum().backward()
        return [out, *(leaf.grad for leaf in leaves)]

    expected = outcome()
    monkeypatch.setattr(varlen, "fits", lambda *_: True)
    monkeypatch.setattr(varlen, "varlen_attn", plain_varlen)
    for fused, grouped in zip(outcome(), expected, strict=True):
        torch.testing.assert_close(fused, grouped, atol=1e-5, rtol=1e-5)


def test_boundaries_are_where_sequences_begin_and_end() -> None:
    layout = attention.make_layout([5, 1, 12, 3], torch.device("cpu"), {3: (6, 10)})
    arguments = varlen.varlen_arguments(layout.ranges, 0.5, None)
    assert arguments["cu_seq_q"].tolist() == [0, 5, 6, 18, 21]
    assert arguments["cu_seq_k"].tolist() == [0, 5, 6, 18, 31]
    assert (arguments["max_q"], arguments["max_k"], arguments["scale"]) == (12, 13, 0.5)
    assert arguments["window_size"] == (-1, 0)
    assert layout.ranges.key_tokens.tolist() == [*range(18), *range(6, 16), *range(18, 21)]
    assert varlen.varlen_arguments(layout.ranges, None, 4)["window_size"] == (3, 0)
    plain = attention.make_layout([5, 1], torch.device("cpu")).ranges
    assert plain.key_tokens is None
    assert torch.equal(plain.key_bounds, plain.query_bounds)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "value_dim", "capability", "fits"),
    [
        (torch.bfloat16, 128, 128, (9, 0), True),
        (torch.float16, 64, 64, (8, 0), True),
        (torch.float32, 128, 128, (9, 0), False),
        (torch.bfloat16, 36, 36, (9, 0), False),
        (torch.bfloat16, 512, 512, (9, 0), False),
        (torch.bfloat16, 192, 128, (9, 0), False),
        (torch.bfloat16, 128, 128, (7, 5), False),
    ],
)
def test_the_kernel_is_asked_for_what_it_has_only(dtype, head_dim, value_dim, capability, fits) -> None:
    assert varlen.supports(dtype, head_dim, value_dim, capability) is fits


def test_on_a_cpu_it_is_never_taken() -> None:
    states = torch.zeros(4, 2, 64, dtype=torch.bfloat16)
    assert not varlen.fits(states, states)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the fused kernel needs a CUDA device")
@pytest.mark.parametrize("prefixes", [{}, {3: (0, 80)}], ids=["apart", "shared"])
@pytest.mark.parametrize("window", [None, 40])
def test_on_cuda_values_and_gradients_equal_the_grouped_path(prefixes, window) -> None:
    lengths = [100, 1, 37, 300]
    generator = torch.Generator("cuda").manual_seed(0)
    layout = attention.make_layout(lengths, torch.device("cuda"), prefixes)
    shapes = ((sum(lengths), 8, 64), (sum(lengths), 2, 64), (sum(lengths), 2, 64))
    states = [torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    results = []
    for attend in (
        lambda q, k, v: attention.attend_packed(q, k, v, layout, None, window),
        lambda q, k, v: attention.attend_grouped(q, k, v, layout.groups, None, window),
    ):
        leaves = [state.clone().requires_grad_() for state in states]
        out = attend(*leaves)
        out.float().square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for fused, grouped in zip(*results, strict=True):
        torch.testing.assert_close(fused.float(), grouped.float(), atol=3e-2, rtol=3e-2)
