"""How much memory a rank needs, estimated from the model's shape alone.

What an InternLM2 or Llama holds is counted exactly (weights, gradients, optimiser states under ZeRO), families without
a gated feed-forward layer hold less; activations are counted roughly, for gradient checkpointing where it is on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cool_rlhf.config import Config, ModelConfig, RoleConfig
from cool_rlhf.data.hub import prepare_hub
from cool_rlhf.models.fields import check_there, config_fields, has_experts, size_of
from cool_rlhf.protocols import UserError
from rollout.settings import CPU_CACHE_GIB

# Bytes a parameter: (weights, gradients, optimiser). Mixed precision keeps fp32 gradients, a master copy, two moments.
_TRAINED = {"bfloat16": (2, 4, 12), "float32": (4, 4, 8)}
_WEIGHTS = {"bfloat16": 2, "float16": 2, "float32": 4}
_KEPT_PER_LAYER = (
    34  # values a token and hidden unit that a layer keeps for its backward pass, without attention scores
)


# Fields of a config.json that hold a size, as families call them.
_NAMES = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "ffn_size": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with grouped-query attention and a gated feed-forward layer, without biases."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    ffn_size: int
    source: str = field(default="", compare=False)  # where the sizes stand, in words

    @classmethod
    def of(cls, config: Config) -> ModelShape:
        """Of the SFT model or base that is given: from its config.json, which the Hub is asked for once. As ``model``
        has it for fresh weights, and where the Hub's file cannot be had. Raises UserError where there is no checkpoint
        in a folder, or its config.json lacks a size."""
        path = config.sft.path or config.model.path
        if path is None:
            return cls._as_set(config.model, "model.hidden_size and its like, since the weights are fresh")
        key = "model.path" if path == config.model.path else "sft.path"
        check_there(key, path)
        fields = config_fields(path) or _fields_from_hub(path)
        if not fields:
            missing = f"the config.json of {path} is not at hand"
            return cls._as_set(config.model, f"model.hidden_size and its like, since {missing}")
        return cls._as_written(fields, key, path)

    @classmethod
    def _as_set(cls, model: ModelConfig, source: str) -> ModelShape:
        sizes = (model.vocab_size, model.hidden_size, model.layers, model.heads, model.kv_heads, model.ffn_size)
        return cls(*sizes, source=source)

    @classmethod
    def _as_written(cls, fields: dict[str, Any], key: str, path: str) -> ModelShape:
        def size(name: str) -> int:
            found = size_of(fields, _NAMES[name])
            if not found:
                raise UserError(
                    f"{key}: the config.json of {path} gives no {' or '.join(_NAMES[name])}, by which memory is "
                    "estimated: complete it, or give a checkpoint that has it"
                )
            return found

        hidden, heads = size("hidden_size"), size("heads")
        wide = 4 * hidden if fields.keys() & {"n_embd", "n_embed"} else None  # GPT-2 and its like may leave it open
        return cls(
            size("vocab_size"),
            hidden,
            size("layers"),
            heads,
            size_of(fields, _NAMES["kv_heads"]) or heads,
            size_of(fields, _NAMES["ffn_size"]) or wide or size("ffn_size"),
            f"the config.json of {path}" + ("; its experts, counted as one, take more" if has_experts(fields) else ""),
        )

    def __str__(self) -> str:
        count = self.parameters()
        rounded = f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
        return (
            f"hidden size {self.hidden_size}, {self.layers} layers, {self.heads} heads ({self.kv_heads} of keys and "
            f"values), feed-forward size {self.ffn_size}, vocabulary {self.vocab_size}: about {rounded} parameters"
        )

    def parameters(self, output_layer: bool = True) -> int:
        """How many; a reward model or critic has no output layer (and one vector in its place)."""
        hidden = self.hidden_size
        attention = 2 * hidden * hidden + 2 * hidden * (hidden // self.heads) * self.kv_heads
        layer = attention + 3 * hidden * self.ffn_size + 2 * hidden
        head = self.vocab_size * hidden if output_layer else hidden
        return self.vocab_size * hidden + self.layers * layer + hidden + head

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA beside every linear layer of the backbone; fewer layers may be named."""
        hidden, kv = self.hidden_size, self.hidden_size // self.heads * self.kv_heads
        attention = 2 * (hidden + hidden) + 2 * (hidden + kv)
        return self.layers * rank * (attention + 3 * (hidden + self.ffn_size))


def _fields_from_hub(name: str) -> dict[str, Any]:
    """Of the config.json of a model on the Hub, which then stands in the cache; none where it cannot be had."""
    if not prepare_hub():
        return {}

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(name, "config.json", etag_timeout=5)
    except (HfHubHTTPError, OSError, ValueError):
        return {}
    return config_fields(name)


def rank_bytes(config: Config, role: str, shape: ModelShape) -> float:
    """Estimated bytes of one rank of ``role``; for a rollout engine those of one tensor-parallel rank, without keys and
    values where these fill what is left of a share of the GPU."""
    scalar = role in ("critic", "scorer")
    parameters = shape.parameters(output_layer=not scalar)
    if role == "rollout":
        rollout = config.cluster.rollout
        weights = parameters * _WEIGHTS[rollout.dtype or config.model.dtype] / rollout.tensor_parallel_size
        cache_gib = rollout.cache_gib or (0.0 if rollout.gpus else CPU_CACHE_GIB)
        return weights + cache_gib * 2**30
    if role in ("reference", "scorer"):
        return parameters * _WEIGHTS[config.model.dtype] + _forward_bytes(config, shape, scalar)
    section: RoleConfig = getattr(config.cluster, role)
    trained, frozen = parameters, 0
    if role == "trainer" and (rank := _adapted(config)):
        trained, frozen = shape.adapters(rank), parameters
    return _trained_bytes(config, section, trained, frozen) + _activation_bytes(config, role, shape, scalar)


def _adapted(config: Config) -> int:
    """The rank of the adapters that the trainer trains at most; 0 where one of its stages trains all weights."""
    stages = [(config.sft.path, config.sft.lora.rank), (config.reward.path, config.reward.lora.rank)]
    ranks = [rank for path, rank in stages if path is None]
    return 0 if 0 in ranks else max(ranks, default=0)


def _trained_bytes(config: Config, section: RoleConfig, trained: int, frozen: int) -> float:
    """ZeRO 1 shards the optimiser's states over the ranks, 2 also the gradients, 3 also the weights, those that are
    ``frozen`` too. In bfloat16 there is no ZeRO 0 (:class:`cool_rlhf.engine.DeepSpeedEngine`)."""
    weights, gradients, optimiser = _TRAINED[config.model.dtype]
    stage = max(section.zero_stage, 1) if config.model.dtype == "bfloat16" else section.zero_stage
    shards = [section.ranks if stage >= least else 1 for least in (3, 2, 1)]
    return (trained + frozen) * weights / shards[0] + trained * (gradients / shards[1] + optimiser / shards[2])


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
    return float(max(tokens, config.ppo.responses_per_iteration * longest / ranks))


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
