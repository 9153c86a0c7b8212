"""Whether a family reads packed sequences apart, tried on a small random model of the checkpoint's own config.

What a config says of its layers is not enough: families compute masks of their own, bias attention by position, or
leave the attention that is asked for aside.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cool_rlhf.data.packing import pack
from cool_rlhf.models import attention
from cool_rlhf.models.fields import size_of
from cool_rlhf.models.forward import token_states
from cool_rlhf.models.loading import read_config
from cool_rlhf.protocols import UserError

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
_INNER = ("intermediate", "ffn", "n_inner")  # parts of names
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")

HEADS = 4
INNER_SIZE = 64
VOCABULARY = 128
WINDOW = 4  # less than a sequence, so that it counts
MOST_LAYERS = 8
LARGEST = 10**8  # parameters: a config that stays larger is not one of a language model alone
TOLERANCE = 1e-4  # of the largest hidden state; attention in another order is 1e-6 off, a neighbour that is read 1e-3


def check_packs(path: str | Path) -> None:
    """Raise UserError where a model like the one at ``path`` reads one sequence of a pack while it computes another,
    attends otherwise than its family does, or fails. Only its config.json is read."""
    name = str(path)
    config = read_config(name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # InternLM2, whose classes are ours, or no language model
        return
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if family._is_stateful:
        _refuse(name, config, "carries a state from token to token, through which packed sequences reach each other")
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            error = _packing_error(_small_model(config))
    except Exception as found:  # whatever a family's own code stumbles over
        reason = str(found).strip().split("\n")[0]
        _refuse(name, config, f"fails in a small trial of packed attention ({type(found).__name__}: {reason})", found)
    if not error <= TOLERANCE:
        _refuse(name, config, f"computes other numbers for packed sequences than for each alone ({error:.0e} off)")


def _refuse(name: str, config: PreTrainedConfig, reason: str, cause: Exception | None = None) -> None:
    raise UserError(
        f"{name} is of the family {config.model_type}, which {reason}: give a model of another family, such as llama "
        "or qwen3"
    ) from cause


def _packing_error(model: PreTrainedModel) -> float:
    """How far hidden states of packed sequences are from those of each alone in the family's own attention, as a share
    of the largest."""
    sequences = [torch.arange(3, 10), torch.arange(60, 80)]
    packed = pack(sequences)
    mine = packed.split(token_states(model, packed))
    model.set_attn_implementation("eager")
    alone: list[Tensor] = [model.base_model(tokens[None], use_cache=False).last_hidden_state[0] for tokens in sequences]
    distance = max((own - other).abs().max().item() for own, other in zip(mine, alone, strict=True))
    return distance / max(states.abs().max().item() for states in alone)


def _small_model(config: PreTrainedConfig) -> PreTrainedModel:
    small = _small_config(config)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in _model(small).parameters())
    if size > LARGEST:
        raise ValueError(f"a small one still has {size:.0e} parameters")
    return _model(small).eval()


def _model(config: PreTrainedConfig) -> PreTrainedModel:
    # A copy, for making a model writes into its config.
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation=attention.NAME, dtype=torch.float32
    )
    return model


def _small_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Few heads of the same size, one layer of each kind, a window that a short sequence leaves."""
    fields = config.to_dict()
    heads, layers = size_of(fields, _HEADS), size_of(fields, _LAYERS)
    if heads is None or layers is None:
        raise ValueError("its config.json does not say how many heads and layers it has")
    of_layers = [name for name, value in fields.items() if isinstance(value, list) and len(value) == layers]
    kinds = [str([fields[name][layer] for name in of_layers]) for layer in range(layers)]
    kept = sorted({kinds.index(kind) for kind in kinds})[:MOST_LAYERS]
    small = {name: _small(name, value, heads, len(kept)) for name, value in fields.items()}
    small |= {name: [fields[name][layer] for layer in kept] for name in of_layers}
    return type(config).from_dict(small)


def _small(name: str, value: Any, heads: int, layers: int) -> Any:
    if name.endswith("token_id"):
        return None if value is None else 0
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if name in _KEY_HEADS:
        return HEADS if value == heads else min(value, HEADS // 2)
    if name in _WIDTHS:
        return HEADS * (value // heads)
    sizes = dict.fromkeys(_HEADS, HEADS) | dict.fromkeys(_LAYERS, layers) | dict.fromkeys(_WINDOWS, WINDOW)
    sizes |= {"vocab_size": VOCABULARY}
    return INNER_SIZE if any(part in name for part in _INNER) else sizes.get(name, value)
