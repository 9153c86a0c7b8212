"""Families whose weights would not come through training are refused before anything starts: mixtures of experts under
names that vLLM does not read, and those with weights that are no parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedTokenizerFast

from cool_rlhf.compose import compose
from cool_rlhf.model_checks import check_models
from cool_rlhf.models.forward import PLAIN_HEADS
from cool_rlhf.models.internlm2 import InternLM2Config
from cool_rlhf.models.loading import check_parameters
from cool_rlhf.models.probe import check_packs
from cool_rlhf.protocols import UserError

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}


@pytest.mark.parametrize("family", ["mixtral", "phimoe", "llama", "qwen2", "internlm2", "qwen3_moe", "granitemoe"])
def test_families_whose_weights_vllm_would_not_find_are_refused(
    family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = InternLM2Config() if family == "internlm2" else AutoConfig.for_model(family)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["SomeForCausalLM"]}))
    save_file({}, tmp_path / "model.safetensors")
    tokenizer.save_pretrained(tmp_path)
    given = compose(["+experiment=smoke", "stage=sft", f"model.path={tmp_path}"])
    if family not in ("mixtral", "phimoe"):
        check_models(given)
        return
    with pytest.raises(UserError, match=rf"^model.path: {tmp_path} is of the family {family}, whose weights"):
        check_models(given)


@pytest.mark.parametrize(
    ("family", "weight"),
    [
        *((name, "e_score_correction_bias") for name in ("deepseek_v3", "glm4_moe", "glm4_moe_lite", "dots1")),
        ("solar_open", "e_score_correction_bias"),
        ("gemma4_text", "layer_scalar"),
    ],
)
def test_families_with_weights_that_are_no_parameters_are_refused(
    family: str, weight: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A checkpoint of them would lack those, and be refused by the stage that comes next."""
    config = AutoConfig.for_model(family, **SIZES)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["SomeForCausalLM"]}))
    save_file({}, tmp_path / "model.safetensors")
    tokenizer.save_pretrained(tmp_path)
    told = rf"^model\.path: {tmp_path} is of the family {family}, which keeps weights such as .*{weight} that are no"
    with pytest.raises(UserError, match=told):
        check_models(compose(["+experiment=smoke", "stage=sft", f"model.path={tmp_path}"]))


@pytest.mark.parametrize("family", [*sorted(PLAIN_HEADS), "gpt2", "opt", "gemma3_text", "granite", "granitemoe"])
def test_families_of_parameters_alone_that_keep_packed_sequences_apart_are_taken(family: str, tmp_path: Path) -> None:
    sizes = SIZES | {"pad_token_id": 0, "head_dim": 16}
    config = InternLM2Config() if family == "internlm2" else AutoConfig.for_model(family, **sizes)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    check_parameters(tmp_path)
    check_packs(tmp_path)
