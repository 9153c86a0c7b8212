"""Forward passes over packed sequences: log-probabilities of their tokens, and a scalar head at each token."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from cool_rlhf.data.packing import Packed
from cool_rlhf.models import attention
from cool_rlhf.models.loading import scalar_head

T = TypeVar("T")
Entropies = Literal["none", "detached", "differentiable"]

CHUNK_ELEMENTS = 9 * 2**20  # logits held at once, in numbers: 36 MiB in float32
# On a GPU: 180 MiB. Each chunk reads the output layer, and its backward pass adds to that layer's gradient, once more.
CUDA_CHUNK_ELEMENTS = 45 * 2**20
CPU_MULTIPLE = 64  # tokens: oneDNN compiles its kernels for each shape anew, which took a fifth of a small step

# Families whose logits are the output layer on the last hidden state and nothing else. Others may scale or cap their
# logits, so they run through their own forward pass, which holds all logits that are asked for at once.
PLAIN_HEADS = frozenset(
    {
        "arcee", "ernie4_5", "exaone4", "gemma", "glm", "glm4",
        "hunyuan_v1_dense", "internlm2", "llama", "ministral", "mistral", "olmo", "olmo2", "olmo3", "olmoe",
        "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm",
        "starcoder2",
    }
)  # fmt: skip


def token_logprobs(
    model: PreTrainedModel,
    packed: Packed,
    temperature: float = 1.0,
    where: Tensor | None = None,
    entropies: Entropies = "detached",
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token given what stands before it in its sequence, and the entropy it was drawn from.

    Args:
        model: any causal language model with packed attention.
        temperature: divides the logits.
        where: (T,) bool; other tokens are left at 0 and cost no output layer. None computes all.
        entropies: whether they carry a gradient, which costs memory and time, only inform, or are left out, all 0.

    Raises: ValueError for sequences that share a prefix.

    Returns:
        Log-probabilities (T,) float32 and entropies (T,) float32 in nats, both 0 at the first token of each sequence.
    """
    if packed.prefixes:
        raise ValueError("log-probabilities need every sequence whole: the pack has sequences that share a prefix")
    packed, device = packed.to(model.device), model.device
    predicted = packed.positions > 0
    if where is not None:
        predicted = predicted & where.to(device)
    targets = predicted.nonzero().flatten()
    run = _hidden_states if model.config.model_type in PLAIN_HEADS else _own_logits
    sources = run(model, packed, targets - 1)
    head = model.get_output_embeddings() if run is _hidden_states else nn.Identity()
    score = partial(_score_chunk, head.forward, temperature=temperature, entropies=entropies)
    chosen, entropy = _call_as(
        head,
        partial(_score_tokens, score, targets=packed.tokens[targets], vocabulary=model.config.vocab_size),
        sources,
    )
    shape = packed.tokens.shape
    logprobs = torch.zeros(shape, dtype=torch.float32, device=device).index_copy(0, targets, chosen)
    return logprobs, torch.zeros(shape, dtype=torch.float32, device=device).index_copy(0, targets, entropy)


def token_states(model: PreTrainedModel, packed: Packed) -> Tensor:
    """The backbone's last hidden state at every token, (T, hidden) float32. Sequences may share prefixes."""
    packed = packed.to(model.device)
    states: Tensor = model.base_model(**_inputs(model, packed)).last_hidden_state[0, : len(packed.tokens)]
    return states.float()


def token_values(model: PreTrainedModel, packed: Packed) -> Tensor:
    """The scalar head at every token, (T,) float32: index t is read off the hidden state of token t itself. Sequences
    may share prefixes."""
    return scalar_head(model)(token_states(model, packed)).squeeze(-1)


def _inputs(model: PreTrainedModel, packed: Packed) -> dict[str, Any]:
    """What marks the sequences, for packed attention and for FlashAttention alike.

    A last sequence of no account fills the pack up: on a CPU to a multiple of ``CPU_MULTIPLE``, so that shapes come
    again, and an empty pack to one token, so that every rank passes through the same modules and every parameter gets
    a gradient of zero.
    """
    device = model.device
    missing = -len(packed.tokens) % (CPU_MULTIPLE if device.type == "cpu" else 1)
    filler = torch.arange(missing if len(packed.tokens) else 1, device=device)
    lengths = [length for length in (*packed.lengths, len(filler)) if length]
    tokens = torch.cat([packed.tokens, torch.zeros_like(filler)])
    positions = torch.cat([packed.positions, filler])
    boundaries = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    inputs: dict[str, Any] = {
        "input_ids": tokens[None],
        "position_ids": positions[None],
        "use_cache": False,
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    if model.config._attn_implementation == attention.NAME:
        inputs["packed_layout"] = attention.make_layout(lengths, device, packed.prefixes)
    elif packed.prefixes:
        raise ValueError(
            f"sequences that share a prefix need {attention.NAME} attention, not {model.config._attn_implementation}"
        )
    return inputs


def _hidden_states(model: PreTrainedModel, packed: Packed, indices: Tensor) -> Tensor:
    """(N, hidden) last hidden states of the backbone at the tokens ``indices``."""
    return model.base_model(**_inputs(model, packed)).last_hidden_state[0].index_select(0, indices)


def _own_logits(model: PreTrainedModel, packed: Packed, indices: Tensor) -> Tensor:
    """(N, vocabulary) logits of the model's own forward pass at the tokens ``indices``. A family whose pass cannot be
    told which it is asked for computes those of the whole pack."""
    inputs = _inputs(model, packed)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(**inputs, logits_to_keep=indices).logits[0]
    return model(**inputs).logits[0].index_select(0, indices)


def _call_as(module: nn.Module, function: Callable[[Tensor], T], input: Tensor) -> T:
    """Call ``module``, hooks and all, with ``function`` in place of its own forward pass.

    ZeRO-3 gathers a layer's weight over the ranks in hooks around its call and around its backward pass. What takes the
    weight more than once goes inside one call: ranks with other numbers of tokens would gather it other numbers of
    times, and wait for each other in vain.
    """
    module.forward = function
    try:
        found: T = module(input)
        return found
    finally:
        del module.forward


def _score_tokens(
    score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], sources: Tensor, targets: Tensor, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Run the output layer and the softmax over chunks of tokens; with gradients, chunks are recomputed in backward."""
    rows = max(1, (CUDA_CHUNK_ELEMENTS if sources.is_cuda else CHUNK_ELEMENTS) // vocabulary)
    if len(sources) <= rows:
        return score(sources, targets)
    pieces = [
        checkpoint(score, source, target, use_reentrant=False) if torch.is_grad_enabled() else score(source, target)
        for source, target in zip(sources.split(rows), targets.split(rows), strict=True)
    ]
    chosen, entropy = zip(*pieces, strict=True)
    return torch.cat(chosen), torch.cat(entropy)


def _score_chunk(
    head: Callable[[Tensor], Tensor], sources: Tensor, targets: Tensor, temperature: float, entropies: Entropies
) -> tuple[Tensor, Tensor]:
    logits = head(sources).float()
    logprobs = torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
    del logits
    if entropies == "none":
        entropy = logprobs.new_zeros(len(targets))
    elif entropies == "differentiable" and torch.is_grad_enabled():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    else:
        with torch.no_grad():
            entropy = -logprobs.exp().mul_(logprobs).sum(-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropy
