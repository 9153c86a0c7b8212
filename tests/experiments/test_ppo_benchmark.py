"""Both sides of the benchmark start from what is said of it: prompts of one length, responses of a known one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM


@pytest.fixture(scope="module")
def inputs(load_experiment: Callable[[str, str], ModuleType]) -> ModuleType:
    return load_experiment("benchmarks/ppo", "inputs")


@pytest.mark.parametrize("mean", [None, 30.0])
def test_prompts_have_32_tokens_and_responses_end_as_often_as_wanted(
    inputs: ModuleType, mean: float | None, tmp_path: Path
) -> None:
    inputs.make_inputs(tmp_path, 8, mean)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    sequences = torch.tensor([inputs.token_ids(tokenizer, row["prompt"]) for row in rows])
    assert sequences.shape == (8, 32)
    assert len({row["prompt"][0]["content"] for row in rows}) == 8
    policy = LlamaForCausalLM.from_pretrained(tmp_path / "policy")
    with torch.no_grad():
        probabilities = policy(sequences).logits.softmax(-1).mean((0, 1))
    end = tokenizer.convert_tokens_to_ids(inputs.END)
    assert probabilities[tokenizer.eos_token_id] < 1e-9
    if mean is None:
        assert probabilities[end] < 1e-9
    else:
        assert float(probabilities[end]) == pytest.approx(1 / mean, rel=0.1)
