"""Checkpoints: whole or absent, and usable where this project cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cool_rlhf.models import export
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.internlm2 import InternLM2ForRewardModel
from cool_rlhf.models.loading import load_causal_lm, load_tokenizer

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cool_rlhf", "reward", "rollout"):
            raise ImportError(f"{name} is out of reach here")

sys.meta_path.insert(0, Blocked())
"""

FOREIGN = (
    BLOCKED
    + """
import json, torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

chat, reward = sys.argv[1:]
tokens = torch.arange(3, 40)[None]
tokenizer = AutoTokenizer.from_pretrained(chat, trust_remote_code=True)
policy = AutoModelForCausalLM.from_pretrained(chat, trust_remote_code=True)
scorer = AutoModel.from_pretrained(reward, trust_remote_code=True)
narrow = AutoModel.from_pretrained(reward, trust_remote_code=True, dtype=torch.bfloat16)
conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
with torch.no_grad():
    print(json.dumps({
        "logits": policy(tokens).logits[0].tolist(),
        "chat": policy.chat(tokenizer, "Hi", max_new_tokens=4, do_sample=False),
        "stream": list(policy.stream_chat(tokenizer, "Hi", max_new_tokens=4, do_sample=False))[-1],
        "score": scorer.get_score(tokenizer, conversation),
        "ranks": scorer.rank(tokenizer, [conversation, conversation[:1]]),
        "head": str(narrow.v_head.weight.dtype),
        "ends": policy.generation_config.eos_token_id,
        "attention": policy.config._attn_implementation,
    }))
"""
)


def test_both_kinds_work_where_the_project_cannot_be_imported(
    chat_folder, reward_folder, policy, tokenizer, tmp_path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(chat_folder), str(reward_folder)],
        cwd=tmp_path,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    with torch.no_grad():
        expected = policy(torch.arange(3, 40)[None]).logits[0]
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, atol=1e-5, rtol=0)
    reward = InternLM2ForRewardModel.from_pretrained(reward_folder)
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert found["score"] == pytest.approx(reward.get_score(tokenizer, conversation), abs=1e-5)
    assert sorted(found["ranks"]) == [0, 1]
    assert found["head"] == "torch.float32"
    assert found["ends"] == [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert found["attention"] == "sdpa"
    response = policy.chat(tokenizer, "Hi", max_new_tokens=4, do_sample=False)[0]
    assert found["chat"] == found["stream"] == [response, [["Hi", response]]]


def test_reward_folder_says_what_it_was_trained_with(reward_folder, tokenizer) -> None:
    assert json.loads((reward_folder / "conditions.json").read_text()) == {
        "helpful": "Prefer the helpful answer.",
        "default": "",
    }
    config = json.loads((reward_folder / "config.json").read_text())
    assert (config["condition_join"], config["score_bound"]) == ("separate_system_turn", 4.0)
    assert config["architectures"] == ["InternLM2ForRewardModel"]
    assert config["auto_map"] == {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModel": "modeling_internlm2.InternLM2ForRewardModel",
    }
    assert config["reward_token_id"] == tokenizer.convert_tokens_to_ids("<|reward|>")
    template = (reward_folder / "chat_template.jinja").read_text()
    assert template.endswith("<|reward|>")
    assert "<|reward|>" not in tokenizer.chat_template


def test_weights_are_sharded_as_hugging_face_does(policy, tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export, "SHARD_BYTES", 300_000)
    arguments = {"architecture": "InternLM2ForCausalLM", "dtype": torch.float32}
    save_checkpoint(tmp_path / "chat", policy.config, policy.named_parameters(), tokenizer, **arguments)
    index = json.loads((tmp_path / "chat" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in policy.parameters())
    loaded = load_causal_lm(tmp_path / "chat", torch.float32)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, policy.get_parameter(name))


def test_a_save_that_fails_leaves_the_earlier_checkpoint(chat_folder, policy, tokenizer) -> None:
    def broken():
        yield next(policy.named_parameters())
        raise RuntimeError("a rank is gone")

    before = {path.name: path.stat().st_mtime_ns for path in chat_folder.iterdir()}
    with pytest.raises(RuntimeError, match="a rank is gone"):
        save_checkpoint(
            chat_folder, policy.config, broken(), tokenizer, architecture="InternLM2ForCausalLM", dtype=torch.float32
        )
    assert {path.name: path.stat().st_mtime_ns for path in chat_folder.iterdir()} == before
    assert [path.name for path in chat_folder.parent.iterdir()] == ["chat"]


def save_again(folder: Path, policy, tokenizer, dtype: torch.dtype) -> None:
    weights = policy.named_parameters()
    save_checkpoint(folder, policy.config, weights, tokenizer, architecture="InternLM2ForCausalLM", dtype=dtype)


def test_a_save_replaces_the_earlier_checkpoint_whole(chat_folder, policy, tokenizer) -> None:
    (chat_folder / "stale.txt").write_text("of the earlier one")
    with torch.no_grad():
        policy.output.weight.zero_()
    save_again(chat_folder, policy, tokenizer, torch.bfloat16)
    assert not (chat_folder / "stale.txt").exists()
    assert [path.name for path in chat_folder.parent.iterdir()] == ["chat"]
    assert json.loads((chat_folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert not load_causal_lm(chat_folder, torch.float32).output.weight.any()


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(chat_folder, policy, tokenizer, monkeypatch) -> None:
    done: list[str] = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append(f"to {new}"), replace(old, new)))
    save_again(chat_folder, policy, tokenizer, torch.float32)
    named = done.index(f"to {chat_folder}")
    synced = {Path(path).name for path in done[:named]}
    assert {path.name for path in chat_folder.iterdir()} <= synced
    assert done[named + 1 :] == [str(chat_folder.parent)]


def test_other_families_are_plain_folders(tokenizer, tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
    )
    model = LlamaForCausalLM(config)
    save_checkpoint(
        tmp_path / "llama",
        model.config,
        model.named_parameters(),
        tokenizer,
        architecture="LlamaForCausalLM",
        dtype=torch.float32,
    )
    assert not list((tmp_path / "llama").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "llama" / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert type(loaded) is LlamaForCausalLM
    tokens = torch.arange(3, 20)[None]
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, atol=1e-6, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "llama").chat_template == tokenizer.chat_template


def test_code_of_the_folder_a_family_came_from_is_not_asked_for(tokenizer, tmp_path: Path) -> None:
    came_from = tmp_path / "came from"
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(tokenizer))).save_pretrained(came_from)
    tokenizer.save_pretrained(came_from)
    for name, auto_map in {
        "config.json": {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"},
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    }.items():
        fields = json.loads((came_from / name).read_text())
        (came_from / name).write_text(json.dumps(fields | {"auto_map": auto_map}))
    model, own = load_causal_lm(came_from, torch.float32), load_tokenizer(came_from)
    folder, weights = tmp_path / "exported", model.named_parameters()
    save_checkpoint(folder, model.config, weights, own, architecture="LlamaForCausalLM", dtype=torch.float32)
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((folder / name).read_text())
    assert type(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)) is LlamaForCausalLM
    assert len(AutoTokenizer.from_pretrained(folder, trust_remote_code=True)) == len(own)
