"""Packed attention by torch's fused kernel for sequences of various lengths (FlashAttention), on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

LARGEST_HEAD = 256
OLDEST_CARD = (8, 0)  # compute capability: Ampere


def fits(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes these (T, heads, d) states: half precision, on a card that has it, d a multiple of 8."""
    return query.is_cuda and supports(
        query.dtype, query.shape[-1], value.shape[-1], torch.cuda.get_device_capability(query.device)
    )


def supports(dtype: torch.dtype, head_dim: int, value_dim: int, capability: tuple[int, int]) -> bool:
    return (
        dtype in (torch.float16, torch.bfloat16)
        and head_dim == value_dim <= LARGEST_HEAD
        and head_dim % 8 == 0
        and capability >= OLDEST_CARD
    )


@dataclass(frozen=True)
class Ranges:
    """Where N sequences stand in a pack, as the kernel wants it told."""

    query_bounds: Tensor  # (N + 1,) int32: where each sequence's own tokens begin, and where the last's end
    key_bounds: Tensor  # (N + 1,) int32: the same among the tokens looked at, shared beginnings included
    longest_query: int
    longest_key: int
    key_tokens: Tensor | None  # (K,) int64, the tokens looked at; None for the pack as it lies


def make_ranges(spans: Sequence[Sequence[tuple[int, int]]], device: torch.device) -> Ranges:
    """``spans`` holds (first token, tokens) of each sequence's parts, its own last."""
    own = [span[-1][1] for span in spans]
    whole = [sum(count for _, count in span) for span in spans]
    shared = sum(whole) > sum(own)
    parts = [torch.arange(start, start + count) for span in spans for start, count in span] if shared else []
    return Ranges(
        query_bounds=torch.tensor([0, *accumulate(own)], dtype=torch.int32, device=device),
        key_bounds=torch.tensor([0, *accumulate(whole)], dtype=torch.int32, device=device),
        longest_query=max(own),
        longest_key=max(whole),
        key_tokens=torch.cat(parts).to(device) if shared else None,
    )


def varlen_arguments(ranges: Ranges, scaling: float | None, window: int | None) -> dict[str, Any]:
    """What ``varlen_attn`` is told beside the states.

    Args:
        window: how many tokens each one sees, itself included; None for all before it.
    """
    # The kernel counts the tokens before the own one. It is causal in both cases: nobody sees to the right. Of a
    # sequence with fewer queries than keys, the last query stands at the last key.
    before = -1 if window is None or window >= ranges.longest_key else window - 1
    return {
        "cu_seq_q": ranges.query_bounds,
        "cu_seq_k": ranges.key_bounds,
        "max_q": ranges.longest_query,
        "max_k": ranges.longest_key,
        "scale": scaling,
        "window_size": (before, 0),
        "enable_gqa": True,
    }


def attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, ranges: Ranges, scaling: float | None, window: int | None
) -> Tensor:
    """Causal attention inside each sequence: (T, heads, d), twice (T, kv heads, d) to (T, heads, d)."""
    if ranges.key_tokens is not None:
        key, value = (states.index_select(0, ranges.key_tokens) for states in (key, value))
    attended: Any = varlen_attn(query, key, value, **varlen_arguments(ranges, scaling, window))
    return attended
