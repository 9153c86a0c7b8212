"""Mixtures of experts: those whose weights go by names that vLLM does not read are refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from cool_rlhf.compose import compose
from cool_rlhf.model_checks import check_models
from cool_rlhf.models.internlm2 import InternLM2Config
from cool_rlhf.protocols import UserError


@pytest.mark.parametrize("family", ["mixtral", "phimoe", "llama", "qwen2", "internlm2", "qwen3_moe", "granitemoe"])
def test_families_whose_weights_vllm_would_not_find_are_refused(family: str, tmp_path: Path) -> None:
    config = InternLM2Config() if family == "internlm2" else AutoConfig.for_model(family)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["SomeForCausalLM"]}))
    (tmp_path / "model.safetensors").touch()
    given = compose(["+experiment=smoke", "stage=sft", f"model.path={tmp_path}"])
    if family not in ("mixtral", "phimoe"):
        check_models(given)
        return
    with pytest.raises(UserError, match=rf"^model.path: {tmp_path} is of the family {family}, whose weights"):
        check_models(given)
