"""Mixtures of experts, whose weights transformers renames and stacks while it loads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from cool_rlhf.protocols import UserError

# What vLLM takes under either name: experts one by one, which become ``mlp.experts.gate_up_proj`` and its like, and
# those of Granite, which are stacked in checkpoints too.
_EITHER = frozenset(
    {
        *(f"mlp.experts.*.{part}_proj.weight" for part in ("gate", "up", "down")),
        *(rf"block_sparse_moe\.{part}\.weight" for part in ("input_linear", "output_linear", r"router\.layer")),
    }
)


def check_experts(name: str, fields: Mapping[str, Any]) -> None:
    """Raise UserError where the family of the ``config.json`` with ``fields`` is held in memory under names that vLLM
    does not read: what is trained goes to vLLM, and into checkpoints, as it is held."""
    family = str(fields.get("model_type"))
    changes = get_checkpoint_conversion_mapping(family) or []
    if any(not _EITHER.issuperset(change.source_patterns) for change in changes):
        raise UserError(
            f"{name} is of the family {family}, whose weights transformers holds under other names than vLLM reads, so "
            "that nothing trained from it could be sampled: give a model of another family, such as qwen3_moe"
        )
