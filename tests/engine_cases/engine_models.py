"""What the cases of the engine's tests share: small models of fixed weights, sequences, and an engine around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cool_rlhf.data.packing import pack
from cool_rlhf.models import attention
from cool_rlhf.models.forward import token_logprobs, token_values
from cool_rlhf.models.internlm2 import InternLM2Config
from cool_rlhf.models.linear import use_onednn

WEIGHT_DECAY, CLIP, BETAS = 0.1, 0.5, (0.9, 0.95)
BUDGETS = {"whole": 10_000, "cut": 40, "single": 1}
LENGTHS = (31, 9, 20, 14, 30, 25, 7)
TOKENS = sum(LENGTHS)


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 40, (length,), generator=generator) for length in LENGTHS]


def model(kind: type[PreTrainedModel], dtype: torch.dtype = torch.float32, vocabulary: int = 40) -> PreTrainedModel:
    config = InternLM2Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    made = kind(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    made.set_attn_implementation(attention.NAME)
    made.to(dtype)
    if hasattr(made, "v_head"):
        made.v_head.float()
    return made


def language_loss(forward: Callable[..., Any], batch: list[Tensor]) -> Tensor:
    return -forward(token_logprobs, pack(batch))[0].sum() / TOKENS


def scalar_loss(forward: Callable[..., Any], batch: list[Tensor]) -> Tensor:
    return forward(token_values, pack(batch)).sum() / TOKENS


def accumulate(engine: Any, budget: int, loss: Callable[..., Tensor] = language_loss) -> None:
    from cool_rlhf.roles.group import share_out

    batches = share_out(LENGTHS, engine.world_size, budget)[engine.rank].pick(sequences())
    for index, batch in enumerate(batches):
        engine.backward(loss(engine.forward, batch), last=index == len(batches) - 1)


def gradients(engine: Any) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_grad

    return {name: safe_get_full_grad(p).float().clone() for name, p in engine.module.named_parameters()}


def weights(engine: Any) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in engine.named_weights()}


def build(
    kind: type[PreTrainedModel],
    stage: int,
    dtype: torch.dtype = torch.float32,
    clip: float = CLIP,
    vocabulary: int = 40,
) -> Any:
    from cool_rlhf.engine import DeepSpeedEngine

    module = model(kind, dtype, vocabulary)
    use_onednn(module)  # as loading does
    return DeepSpeedEngine(module, zero_stage=stage, weight_decay=WEIGHT_DECAY, gradient_clip=clip, betas=BETAS)
