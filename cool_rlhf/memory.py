"""How much memory a rank needs, estimated from the model's shape alone.

What an InternLM2 or Llama holds is counted exactly (weights, gradients, optimiser states under ZeRO), families without
a gated feed-forward layer hold less; activations are counted roughly, for gradient checkpointing where it is on.
"""

from __future__ import annotations

from dataclasses import dataclass

from cool_rlhf.config import Config, RoleConfig
from cool_rlhf.models.fields import config_fields, size_of
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

    @classmethod
    def of(cls, config: Config) -> ModelShape:
        """Of the SFT model or base that is given, where its config.json is at hand (from the Hub: in the cache), else
        as ``model`` has it. Raises UserError where that file lacks a size."""
        key, model = "sft.path" if config.sft.path else "model.path", config.model
        path = config.sft.path or model.path
        fields = config_fields(path) if path else {}
        if not fields:
            return cls(
                model.vocab_size, model.hidden_size, model.layers, model.heads, model.kv_heads, model.ffn_size
            )  # fmt: skip

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
