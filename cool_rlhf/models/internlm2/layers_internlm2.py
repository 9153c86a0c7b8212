"""The layers of InternLM2. Self-contained: this file travels inside checkpoints.

The rows of ``wqkv`` are grouped by key-value head, as in the released weights: each group holds its query heads, then
its key, then its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_internlm2 import InternLM2Config


class InternLM2RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 whatever the model's dtype."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.is_cuda:  # the same in one kernel
            return self.weight * functional.rms_norm(hidden_states, self.weight.shape, eps=self.variance_epsilon)
        exact = hidden_states.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * exact.to(hidden_states.dtype)


class InternLM2RotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary position embedding.

    Dynamic-NTK scaling goes by each sequence's own length, so that neither what lies beside it in a pack or batch nor
    what came before it in time changes a sequence. (transformers' own version takes the longest position of the call,
    and keeps it.)

    The names of the class and of its two buffers are what transformers looks for when it rebuilds them after a load
    through the meta device.
    """

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.config = config
        assert config.rope_parameters is not None
        self.rope_type = config.rope_parameters["rope_type"]
        initialise = (
            self.compute_default_rope_parameters if self.rope_type == "default" else ROPE_INIT_FUNCTIONS[self.rope_type]
        )
        inv_freq, self.attention_scaling = initialise(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: InternLM2Config, **_: Any) -> tuple[Tensor, float]:
        assert config.rope_parameters is not None
        return 1.0 / config.rope_parameters["rope_theta"] ** _exponents(config), 1.0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InternLM2RotaryEmbedding:
        """Follow the model to another device but not to another dtype: in bfloat16 the frequencies are so coarse that
        positions some hundreds apart already blur."""
        exact = {name: getattr(self, name) for name in ("inv_freq", "original_inv_freq")}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

    @torch.no_grad()
    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """``position_ids`` (B, L) to cosines and sines (B, L, head_dim) in the dtype of ``hidden_states``."""
        frequencies = self.inv_freq.to(hidden_states.device, torch.float)
        if self.rope_type == "dynamic" and int(position_ids.max()) >= self.config.max_position_embeddings:
            frequencies = self._scaled_frequencies(position_ids)
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)

    def _scaled_frequencies(self, position_ids: Tensor) -> Tensor:
        """(B, L, head_dim / 2). The base of a sequence of n > N tokens is θ · (f · n / N − (f − 1))^(d / (d − 2)), with
        N = ``max_position_embeddings``, f the factor and d the head's dimension; up to N tokens it is θ."""
        rope = self.config.rope_parameters
        assert rope is not None
        longest = self.config.max_position_embeddings
        lengths = sequence_lengths(position_ids).clamp(min=longest).float()
        dim = self.config.hidden_size // self.config.num_attention_heads
        stretch = rope["factor"] * lengths / longest - (rope["factor"] - 1)
        base = rope["rope_theta"] * stretch ** (dim / (dim - 2))
        return 1.0 / base[..., None] ** _exponents(self.config).to(position_ids.device)


def _exponents(config: InternLM2Config) -> Tensor:
    dim = config.hidden_size // config.num_attention_heads
    return torch.arange(0, dim, 2, dtype=torch.float) / dim


def sequence_lengths(position_ids: Tensor) -> Tensor:
    """(B, L): how many tokens the sequence of each token has up to its last one here, counted from position 0.

    A sequence goes on as long as positions grow by one, so padding of a single position ends it.
    """
    length = position_ids.shape[1]
    index = torch.arange(length, device=position_ids.device)
    is_last = torch.ones_like(position_ids, dtype=torch.bool)
    is_last[:, :-1] = position_ids.diff(dim=1) != 1
    last = torch.where(is_last, index, length).flip(1).cummin(dim=1).values.flip(1)
    return position_ids.gather(1, last) + 1


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to ``states`` (B, heads, L, head_dim)."""
    first, second = states.chunk(2, dim=-1)
    return states * cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(1)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention spelled out, which also returns its weights; all else goes through transformers' interface."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class InternLM2Attention(nn.Module):
    def __init__(self, config: InternLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_key_value_heads = config.num_key_value_heads or config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // self.num_key_value_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        rows = (config.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.wqkv = nn.Linear(config.hidden_size, rows, bias=config.bias)
        self.wo = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=config.bias)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        batch, length, _ = hidden_states.shape
        grouped = self.wqkv(hidden_states).view(
            batch, length, self.num_key_value_heads, self.num_key_value_groups + 2, self.head_dim
        )
        query, key, value = grouped.split([self.num_key_value_groups, 1, 1], dim=3)
        query = rotate(query.flatten(2, 3).transpose(1, 2), *position_embeddings)
        key = rotate(key.squeeze(3).transpose(1, 2), *position_embeddings)
        value = value.squeeze(3).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.wo(attended.reshape(batch, length, -1)), weights


class InternLM2MLP(nn.Module):
    """``w2(act(w1 x) * w3 x)``."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.w2(self.act_fn(self.w1(hidden_states)) * self.w3(hidden_states))


class InternLM2DecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: InternLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.attention = InternLM2Attention(config, layer_idx)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended, _ = self.attention(self.attention_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.feed_forward(self.ffn_norm(hidden_states))
