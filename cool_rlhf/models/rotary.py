"""Rotary frequencies that stay float32 when a model is cast, for transformers' families as for InternLM2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cool_rlhf.models.internlm2.layers_internlm2 import InternLM2RotaryEmbedding


def keep_rotary_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Guard every module of ``model`` that holds rotary frequencies; returns the same model.

    Training engines cast whole modules to bfloat16, buffers included. There the frequencies are so coarse that distant
    positions blur, and the trainer would see another model than the rollout engine, which computes them in float32.
    """
    for module in model.modules():
        kind = type(module)
        if isinstance(module, InternLM2RotaryEmbedding):
            continue  # it guards its own, also inside checkpoints
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)):
            module.__class__ = type(kind.__name__, (_ExactFrequencies, kind), {"__module__": kind.__module__})
    return model


class _ExactFrequencies(nn.Module):
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self
