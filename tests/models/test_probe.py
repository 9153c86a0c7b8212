"""Families that do not keep packed sequences apart, or do not run at all here, are refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedTokenizerFast

from cool_rlhf.compose import compose
from cool_rlhf.model_checks import check_models
from cool_rlhf.models.probe import check_packs
from cool_rlhf.protocols import UserError

STATEFUL = "carries a state from token to token"
DIFFERS = "computes other numbers for packed sequences than for each alone"


def write_config(folder: Path, family: str, fields: dict[str, Any]) -> None:
    config = AutoConfig.for_model(family, **fields).to_dict()
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["SomeForCausalLM"]}))


@pytest.mark.parametrize(
    ("family", "told"),
    [
        *((family, STATEFUL) for family in ("falcon_h1", "mamba2", "recurrent_gemma", "rwkv", "xlstm")),
        ("bloom", DIFFERS),  # attends by distance, which it takes from its own mask
        ("xglm", DIFFERS),  # attends in a way of its own
        ("doge", DIFFERS),  # hands a mask of its own to the attention
        ("gptj", "fails in a small trial of packed attention .*packed"),
        ("llama4_text", "fails in a small trial of packed attention"),  # where its attention inside chunks was ignored
        ("gemma2", "does not support softcap"),
        ("gpt_oss", "does not support s_aux"),
    ],
)
def test_a_family_that_cannot_be_packed_is_refused(
    family: str, told: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    write_config(tmp_path, family, {"num_hidden_layers": 2})
    with pytest.raises(UserError, match=rf"^{tmp_path} is of the family {family}, which .*{told}.*: give a model of a"):
        check_packs(tmp_path)


@pytest.mark.parametrize("family", ["gptj", "mamba2"])
def test_it_is_told_before_anything_starts(family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    write_config(tmp_path, family, {})
    # As older configs are: what kind each layer is follows from the family alone.
    fields = json.loads((tmp_path / "config.json").read_text())
    fields.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file({}, tmp_path / "model.safetensors")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"^model\.path: {tmp_path} is of the family {family}, which "):
        check_models(compose(["+experiment=smoke", "stage=sft", f"model.path={tmp_path}"]))


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"eos_token_id": [128001, 128008], "num_key_value_heads": 8}),
        ("phi3", {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 4096}}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 20, "sliding_window": 4096}),
        ("gemma3_text", {}),
        ("glm", {}),
        ("stablelm", {}),
    ],
)
def test_published_sizes_are_tried_small(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    write_config(tmp_path, family, fields)
    check_packs(tmp_path)
