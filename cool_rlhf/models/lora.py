"""Low-rank adaptation (LoRA, arXiv 2106.09685) through peft: W + (alpha / rank) · B A, where only A and B are trained.

peft takes seconds to import, so only what adds adapters does so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cool_rlhf.config import LoRAConfig
from cool_rlhf.models.linear import use_onednn
from cool_rlhf.models.loading import scalar_head
from cool_rlhf.models.rows import train_rows
from cool_rlhf.models.tokenizer import added_tokens
from cool_rlhf.protocols import UserError

ADAPTER = "default"


def add_lora(model: PreTrainedModel, settings: LoRAConfig) -> None:
    """Freeze ``model`` and put trained matrices beside the linear layers of its backbone, in place. A scalar head is
    fresh or small, so it stays trained as a whole. An output layer is frozen with the rest, but for the rows of chat
    tokens that the checkpoint's tokenizer lacks: nothing else could teach the model to end its turn.

    A is drawn from torch's global generator, which has to stand equally on every rank; B is 0, so nothing changes at
    first.

    Raises UserError where no linear layer of the backbone has one of the names in ``settings.targets``.
    """
    from peft import LoraConfig, inject_adapter_in_model

    backbone = model.base_model
    known = [name for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)]
    wanted = [name for name in known if not settings.targets or name.split(".")[-1] in settings.targets]
    unknown = set(settings.targets) - {name.split(".")[-1] for name in known}
    if unknown:
        names = ", ".join(sorted({name.split(".")[-1] for name in known}))
        raise UserError(f"lora.targets names {sorted(unknown)[0]!r}, but the model's linear layers are called {names}")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(map(re.escape, wanted)),
    )
    model.requires_grad_(False)  # peft freezes the backbone alone, and no output layer
    inject_adapter_in_model(config, backbone)
    for layer in _adapted(backbone).values():
        # peft makes them float32; DeepSpeed keeps masters in float32 in any case, and the model computes in its own.
        layer.lora_A.to(layer.weight.dtype)
        layer.lora_B.to(layer.weight.dtype)
    use_onednn(backbone)
    if model.name_or_path and (added := added_tokens(model.name_or_path)):
        train_rows(model, added)
    if hasattr(model, "v_head") or hasattr(model, "score"):
        scalar_head(model).weight.requires_grad_(True)


def exported_weights(model: nn.Module) -> Iterator[tuple[str, list[nn.Parameter], Callable[[], Tensor]]]:
    """Every weight as a checkpoint has it: its name, the parameters it is made of, and how; adapted ones are merged.

    The third must be called while the parameters are whole, where an engine shards them.
    """
    adapted = _adapted(model)
    grown = {f"{name}.weight": layer for name, layer in model.named_modules() if hasattr(layer, "row_indices")}
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name or name.endswith(".rows"):
            continue
        plain = name.replace(".base_layer.", ".")
        layer = adapted.get(plain.removesuffix(".weight"))
        if name in grown:
            rows: Any = grown[name].rows
            yield plain, [parameter, rows], _with_rows(parameter, rows, grown[name].row_indices)
        elif layer is None:
            yield plain, [parameter], parameter.detach
        else:
            a, b = (matrices[ADAPTER].weight for matrices in (layer.lora_A, layer.lora_B))
            yield plain, [parameter, a, b], _merge(parameter, a, b, layer.scaling[ADAPTER])


def _merge(weight: nn.Parameter, a: nn.Parameter, b: nn.Parameter, scaling: float) -> Callable[[], Tensor]:
    def merged() -> Tensor:
        with torch.no_grad():
            return (weight.float() + scaling * (b.float() @ a.float())).to(weight.dtype)

    return merged


def _with_rows(weight: nn.Parameter, rows: nn.Parameter, indices: Any) -> Callable[[], Tensor]:
    return lambda: weight.detach().index_copy(0, indices, rows.detach())


def _adapted(model: nn.Module) -> dict[str, Any]:
    """peft's layers around the linear ones, by name."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
