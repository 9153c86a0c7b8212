"""The policy may be any causal language model of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reward import RewardModel


@pytest.fixture
def llama(smoke_run: Path, tmp_path: Path) -> Path:
    """An untrained Llama with the smoke run's vocabulary."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(smoke_run / "sft")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_llama_goes_through_every_stage(llama: Path, tmp_path: Path, command: Any, rows: Any) -> None:
    folder = tmp_path / "run"
    less = ("ppo.iterations=1", "collect.prompts=0", "model.max_positions=2048")
    reward = ("reward.validation_share=0.2", "reward.lora={rank: 4, targets: [q_proj, v_proj]}")
    # A rate that is too small to move it leaves the critic as it started.
    critic = ("ppo.critic_init=sft", "ppo.keep_critic=true", "ppo.critic_learning_rate=1e-30")
    kept = ("ppo.keep_passes=true", "ppo.entropy_coefficient=0.01")
    changes = (f"model.path={llama}", *less, *reward, *critic, *kept)
    done = command("+experiment=smoke", f"output_dir={folder}", *changes).finish()
    assert done.returncode == 0, done.stderr
    assert [row["stage"] for row in rows(folder) if row["round"] == 0][-3:] == ["ppo", "ppo", "online"]
    first = [row for row in rows(folder) if row["stage"] == "reward" and row["round"] == 0]
    (judged,) = [row for row in first if "validation/accuracy" in row]
    assert [row for row in rows(folder) if row["stage"] == "reward" and row["round"] == 1], "it trains on with labels"
    assert any(name.startswith("validation/loss/") for name in judged)
    assert json.loads((folder / "chat_model" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder / "chat_model"), LlamaForCausalLM)
    policy, judged_by, values = (
        load_file(folder / name / "model.safetensors") for name in ("sft", "reward_model", "rounds/0/critic")
    )
    assert values.keys() == judged_by.keys()
    (head,) = values.keys() - policy.keys()
    assert not torch.equal(values[head], judged_by[head])
    assert all(torch.equal(policy[name], values[name]) for name in values.keys() - {head})
    judge = RewardModel.from_pretrained(str(folder / "reward_model"))
    answers = [[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}] for text in ("So.", "No.")]
    assert not [name for name in judge.model.state_dict() if "lora" in name]
    first, second = (judge.score(answer) for answer in answers)
    assert first != second
