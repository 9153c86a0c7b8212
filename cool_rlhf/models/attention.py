"""Packed attention for every transformers family, registered under the name ``packed``.

Many sequences lie end to end in one row. The stock implementations build a mask of (row length)² for that; here each
sequence attends to itself only, so cost grows with the squares of the sequences' own lengths.

On CUDA, in half precision, one fused kernel takes the pack as it lies (``varlen``). Elsewhere sequences of similar
length are laid side by side, right-padded to the longest of their group for the duration of the attention call: under a
causal mask no real token looks to its right, so the padding needs no mask and changes no number.

A sequence that shares its beginning with another is laid out whole for the call. Of a token that stands in several
sequences only the first one's output is kept: it is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from cool_rlhf.models import varlen

NAME = "packed"
GROWTH = 1.1  # in a group, no sequence is padded to more than this multiple of its length ...
SHORT = 16  # ... except below this length, where another call costs more than the padding


@dataclass(frozen=True)
class PackedLayout:
    """Which sequences a pack holds. What a way of computing attention needs of that is made once, when asked for."""

    lengths: tuple[int, ...]  # each sequence's own tokens
    prefixes: Mapping[int, tuple[int, int]]  # sequence → (first token, tokens) that it shares with an earlier one
    device: torch.device

    @property
    def spans(self) -> list[list[tuple[int, int]]]:
        """(first token, tokens) of each sequence's parts: the shared one if there is one, then its own."""
        starts = accumulate(self.lengths, initial=0)
        return [
            [*([self.prefixes[index]] if index in self.prefixes else []), (start, length)]
            for index, (start, length) in enumerate(zip(starts, self.lengths, strict=False))
        ]

    @cached_property
    def groups(self) -> Groups:
        return group_by_length(self.spans, self.device)

    @cached_property
    def ranges(self) -> varlen.Ranges:
        return varlen.make_ranges(self.spans, self.device)


@dataclass(frozen=True)
class Groups:
    """Where the tokens of a pack stand once its sequences lie in groups of similar length.

    ``blocks`` holds (sequences, padded length) of each group; slots count through the groups in order.
    """

    blocks: tuple[tuple[int, int], ...]
    slot_of_token: Tensor  # (T,) int64, the first of its slots
    token_of_slot: Tensor  # (S,) int64; a padding slot repeats some real token
    is_contiguous: bool  # every slot is the token of the same index: nothing to move
    further_slots: Tensor  # (R,) int64: second and later slots of tokens that stand in several sequences


def make_layout(
    lengths: Sequence[int], device: torch.device, prefixes: Mapping[int, tuple[int, int]] | None = None
) -> PackedLayout:
    """The layout of sequences of the given lengths.

    Args:
        prefixes: of a sequence that goes on from tokens of an earlier one: the first of those, and how many.
    """
    return PackedLayout(tuple(lengths), prefixes or {}, device)


def group_by_length(spans: Sequence[Sequence[tuple[int, int]]], device: torch.device) -> Groups:
    """Group sequences (longest first) so that padding stays within ``GROWTH``."""
    whole = [sum(count for _, count in span) for span in spans]
    order = sorted((index for index, length in enumerate(whole) if length), key=lambda index: -whole[index])
    groups: list[list[int]] = []
    for index in order:
        longest = whole[groups[-1][0]] if groups else 0
        if groups and longest <= max(SHORT, GROWTH * whole[index]):
            groups[-1].append(index)
        else:
            groups.append([index])
    groups = [sorted(group) for group in groups]
    blocks = tuple((len(group), max(whole[index] for index in group)) for group in groups)

    total = sum(span[-1][1] for span in spans)
    none = torch.empty(0, dtype=torch.int64, device=device)
    if len(groups) <= 1 and len(set(whole)) <= 1 and sum(whole) == total:
        identity = torch.arange(total, device=device)
        return Groups(blocks, identity, identity, True, none)
    slot_of_token = torch.empty(total, dtype=torch.int64)
    token_of_slot = torch.zeros(sum(count * width for count, width in blocks), dtype=torch.int64)
    further: list[Tensor] = []
    row = 0
    for group, (_, width) in zip(groups, blocks, strict=True):
        for index in group:
            slot = row
            for start, count in spans[index]:
                token_of_slot[slot : slot + count] = torch.arange(start, start + count)
                if (start, count) == spans[index][-1]:
                    slot_of_token[start : start + count] = torch.arange(slot, slot + count)
                else:
                    further.append(torch.arange(slot, slot + count))
                slot += count
            row += width
    further_slots = torch.cat(further).to(device) if further else none
    return Groups(blocks, slot_of_token.to(device), token_of_slot.to(device), False, further_slots)


class _Spread(torch.autograd.Function):
    """(T, ...) tokens to (S, ...) slots. Padding takes no gradient, so the backward pass is a gather, and an addition
    for tokens that stand in several sequences."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return tokens.index_select(0, groups.token_of_slot)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        groups = ctx.groups
        tokens = grad.index_select(0, groups.slot_of_token)
        further = groups.further_slots
        if len(further):
            tokens.index_add_(0, groups.token_of_slot[further], grad.index_select(0, further))
        return tokens, None


class _Collect(torch.autograd.Function):
    """(S, ...) slots back to (T, ...) tokens; the gradient of a slot that is not kept is zero."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return slots.index_select(0, groups.slot_of_token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        spread = grad.new_zeros(len(ctx.groups.token_of_slot), *grad.shape[1:])
        return spread.index_copy_(0, ctx.groups.slot_of_token, grad), None


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None, window: int | None
) -> Tensor:
    """Causal attention inside each sequence: (T, heads, d), twice (T, kv heads, d) to (T, heads, d)."""
    if varlen.fits(query, value):
        return varlen.attend_varlen(query, key, value, layout.ranges, scaling, window)
    return attend_grouped(query, key, value, layout.groups, scaling, window)


def attend_grouped(
    query: Tensor, key: Tensor, value: Tensor, groups: Groups, scaling: float | None, window: int | None
) -> Tensor:
    """The same by one call of torch's own attention for each group of sequences of similar length."""
    if not groups.is_contiguous:
        query, key, value = (_Spread.apply(states, groups) for states in (query, key, value))
    outputs = []
    sizes = [count * width for count, width in groups.blocks]
    # One split, not slices: each slice's gradient would be as long as the pack, zeros for the most part.
    parts = zip(groups.blocks, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
    for (count, width), *slots in parts:
        q, k, v = (states.view(count, width, *states.shape[1:]).transpose(1, 2) for states in slots)
        mask = None if window is None or width <= window else _band(width, window, query.device)
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(attended.transpose(1, 2).reshape(count * width, *query.shape[1:-1], value.shape[-1]))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return joined if groups.is_contiguous else _Collect.apply(joined, groups)


def _band(width: int, window: int, device: torch.device) -> Tensor:
    """(width, width) bool, True where a token may look: itself and the ``window - 1`` before it."""
    distance = torch.arange(width, device=device)[:, None] - torch.arange(width, device=device)
    return (distance >= 0) & (distance < window)


def sequence_lengths(position_ids: Tensor) -> list[int]:
    """Lengths of the sequences in (B, L) positions, row after row: one starts wherever the count does not go on."""
    breaks = torch.ones_like(position_ids, dtype=torch.bool)
    breaks[:, 1:] = position_ids.diff(dim=-1) != 1
    starts = breaks.flatten().nonzero().flatten().tolist()
    return [end - start for start, end in pairwise([*starts, position_ids.numel()])]


def _layout_of_call(
    query: Tensor, layout: PackedLayout | None, cu_seq_lens: Tensor | None, position_ids: Tensor | None
) -> PackedLayout:
    if layout is not None:
        return layout
    batch, _, length, _ = query.shape
    if cu_seq_lens is not None:
        lengths = cu_seq_lens.diff().tolist()
    elif position_ids is not None and position_ids.ndim == 2:
        lengths = sequence_lengths(position_ids.expand(batch, length))
    else:
        lengths = [length] * batch
    if sum(lengths) != batch * length:
        raise ValueError(f"sequence lengths add up to {sum(lengths)}, but the call has {batch * length} tokens")
    return make_layout(lengths, query.device)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed_layout: PackedLayout | None = None,
    cu_seq_lens_q: Tensor | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (B, heads, L, d) in, (B, L, heads, d) out.

    Boundaries come from ``packed_layout`` (made once per forward pass), else from ``cu_seq_lens_q`` as for
    FlashAttention, else from ``position_ids``. With a mask (padded batches) or a cache that already holds tokens
    (decoding), transformers' own sdpa takes the call.
    """
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(f"packed attention does not support {name}, which {type(module).__name__} asks for")
    if attention_mask is not None or key.shape[2] != query.shape[2]:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if dropout:
        raise ValueError("packed attention has no dropout: set the config's attention_dropout to 0")
    batch, heads, length, _ = query.shape
    if batch * length == 0:
        return query.new_zeros(batch, length, heads, value.shape[-1]), None
    layout = _layout_of_call(query, packed_layout, cu_seq_lens_q, position_ids)
    rows, key_rows, value_rows = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    attended = attend_packed(rows, key_rows, value_rows, layout, scaling, sliding_window)
    return attended.view(batch, length, heads, -1), None


def packed_mask(
    *,
    q_length: int,
    kv_length: int,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Tensor | None:
    """No mask for whole sequences without padding, where ``packed_attention`` finds the boundaries itself; sdpa's
    otherwise."""
    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    if attention_mask is None and q_length == kv_length and kv_offset == 0:
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        **kwargs,
    )


def register_packed_attention() -> None:
    """Make ``attn_implementation="packed"`` known to transformers in this process; calling it again changes nothing."""
    attend: Callable[..., Any] = packed_attention
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, packed_mask)


register_packed_attention()
