"""How much memory a rank needs, estimated from the model's shape alone.

What a model holds is counted exactly (weights, gradients, optimiser states under ZeRO); activations roughly, for
gradient checkpointing where it is on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cool_rlhf.config import Config, ModelConfig, RoleConfig

# Bytes a parameter: (weights, gradients, optimiser). Mixed precision keeps fp32 gradients, a master copy, two moments.
_TRAINED = {"bfloat16": (2, 4, 12), "float32": (4, 4, 8)}
_WEIGHTS = {"bfloat16": 2, "float16": 2, "float32": 4}
_KEPT_PER_LAYER = (
    34  # values a token and hidden unit that a layer keeps for its backward pass, without attention scores
)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with grouped-query attention and a gated feed-forward layer, without biases."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    ffn_size: int

    @classmethod
    def of(cls, model: ModelConfig) -> ModelShape:
        """Of the checkpoint in a local folder where there is one, else as the config gives it."""
        file = Path(model.path or "", "config.json")
        if model.path and file.is_file():
            return cls._of_checkpoint(json.loads(file.read_text(encoding="utf-8")))
        return cls(
            model.vocab_size, model.hidden_size, model.layers, model.heads, model.kv_heads, model.ffn_size
        )  # fmt: skip

    @classmethod
    def _of_checkpoint(cls, values: Mapping[str, Any]) -> ModelShape:
        return cls(
            values["vocab_size"],
            values["hidden_size"],
            values["num_hidden_layers"],
            values["num_attention_heads"],
            values.get("num_key_value_heads") or values["num_attention_heads"],
            values["intermediate_size"],
        )

    def parameters(self, output_layer: bool = True) -> int:
        """How many; a reward model or critic has no output layer (and one vector in its place)."""
        hidden = self.hidden_size
        attention = 2 * hidden * hidden + 2 * hidden * (hidden // self.heads) * self.kv_heads
        layer = attention + 3 * hidden * self.ffn_size + 2 * hidden
        head = self.vocab_size * hidden if output_layer else hidden
        return self.vocab_size * hidden + self.layers * layer + hidden + head


def rank_bytes(config: Config, role: str, shape: ModelShape) -> float:
    """Estimated bytes of one rank of ``role``; for a rollout engine, of its weights on one tensor-parallel rank."""
    scalar = role in ("critic", "scorer")
    parameters = shape.parameters(output_layer=not scalar)
    if role == "rollout":
        rollout = config.cluster.rollout
        return parameters * _WEIGHTS[rollout.dtype or config.model.dtype] / rollout.tensor_parallel_size
    if role in ("reference", "scorer"):
        return parameters * _WEIGHTS[config.model.dtype] + _forward_bytes(config, shape, scalar)
    section: RoleConfig = getattr(config.cluster, role)
    return _trained_bytes(config, section, parameters) + _activation_bytes(config, role, shape, scalar)


def _trained_bytes(config: Config, section: RoleConfig, parameters: int) -> float:
    """ZeRO 1 shards the optimiser's states over the ranks, 2 also the gradients, 3 also the weights."""
    weights, gradients, optimiser = _TRAINED[config.model.dtype]
    shards = [section.ranks if section.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    return parameters * (weights / shards[0] + gradients / shards[1] + optimiser / shards[2])


def _tokens(config: Config, role: str) -> int:
    if role == "trainer":
        return max(config.sft.micro_batch_tokens, config.reward.micro_batch_tokens)
    return config.ppo.micro_batch_tokens


def _waiting_tokens(config: Config, role: str) -> float:
    """Tokens of forward passes that wait for their backward pass at once: a micro-batch's, or with
    ``ppo.keep_passes`` the rank's share of an iteration, prompts as long as responses at their limit."""
    tokens = _tokens(config, role)
    if role not in ("policy", "critic") or not config.ppo.keep_passes:
        return tokens
    longest = min(config.model.max_positions, 2 * config.sampling.max_new_tokens)
    ranks = getattr(config.cluster, role).ranks
    return float(max(tokens, config.ppo.prompts_per_iteration * longest / ranks))


def _activation_bytes(config: Config, role: str, shape: ModelShape, scalar: bool) -> float:
    tokens, waiting, width = _tokens(config, role), _waiting_tokens(config, role), _WEIGHTS[config.model.dtype]
    by_layer = shape.hidden_size * _KEPT_PER_LAYER * width / 2
    inputs = waiting * shape.hidden_size * shape.layers * width
    checkpointing = config.model.gradient_checkpointing
    stack = inputs + tokens * by_layer if checkpointing else waiting * by_layer * shape.layers
    logits = 0 if scalar else tokens * shape.vocab_size * (width + 8)  # as computed, in fp32, and their gradient
    return stack + logits


def _forward_bytes(config: Config, shape: ModelShape, scalar: bool) -> float:
    tokens, width = config.ppo.micro_batch_tokens, _WEIGHTS[config.model.dtype]
    logits = 0 if scalar else tokens * shape.vocab_size * (width + 4)
    return tokens * (4 * shape.hidden_size + 2 * shape.ffn_size) * width + logits
