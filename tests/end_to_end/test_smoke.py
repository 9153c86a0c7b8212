"""One run of the smoke experiment through the real command, and what it leaves."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cool_rlhf.compose import compose
from reward import RewardModel

CONVERSATION = [{"role": "user", "content": "How many moons?"}, {"role": "assistant", "content": "Two moons."}]
DOMAINS = tuple(compose(["+experiment=smoke"]).conditions)


@pytest.fixture
def copied_run(smoke_run: Path, tmp_path: Path) -> Path:
    """The run, for a test that goes on with it."""
    shutil.copytree(smoke_run, tmp_path / "run")
    return tmp_path / "run"


def test_the_folder_of_the_contract(smoke_run: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "report.html", "logs/run.log", "state/progress.json"):
        assert (smoke_run / name).stat().st_size > 0, name
    checkpoints = ("sft", "rounds/0/reward_model", "rounds/0/policy", "rounds/0/policy_early", "chat_model")
    for folder in (*checkpoints, "reward_model"):
        names = {path.name for path in (smoke_run / folder).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_internlm2.py"} <= names, folder
        assert "auto_map" in json.loads((smoke_run / folder / "config.json").read_text()), folder
    for folder in ("rounds/0/reward_model", "reward_model"):
        conditions = json.loads((smoke_run / folder / "conditions.json").read_text())
        assert set(conditions) == set(DOMAINS)
    *domains, every = json.loads((smoke_run / "rounds/0/preferences.json").read_text())
    assert {entry["domain"] for entry in domains} <= set(DOMAINS)
    assert every["pairs"] == every["rows"] == sum(entry["pairs"] for entry in domains) > 0
    lines = {path.name: path.read_text().splitlines() for path in (smoke_run / "rounds/0").glob("*_path/*.jsonl")}
    assert len(lines["pairs.jsonl"]) == 12
    assert 0 < len(lines["labels.jsonl"]) <= 12
    assert "patches.jsonl" in lines
    patterns = json.loads((smoke_run / "rounds/0/fast_path/patterns.json").read_text())
    assert patterns["tested"] > 0
    responses = [json.loads(line) for line in (smoke_run / "rounds/0/responses.jsonl").read_text().splitlines()]
    assert [row["policy"] for row in responses] == 12 * ["sft"] + 12 * ["early"] + 12 * ["late"]
    assert {"rule cool_rlhf.demo.gold:score, 5% noise (no person)"} == {
        name.removeprefix("rule: ") for line in lines["labels.jsonl"] for name in json.loads(line)["labelled_by"]
    }
    assert not list(smoke_run.glob("**/*.part"))


def test_metrics_have_their_names(smoke_run: Path, rows: Any, undocumented: Any) -> None:
    table = rows(smoke_run)
    assert not undocumented(name for row in table for name in row)
    assert {row["stage"] for row in table} >= {"sft", "collect", "reward", "ppo", "online"}
    for row in table:
        numbers = [value for key, value in row.items() if key not in ("stage", "warmup")]
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
    seconds = [row["seconds"] for row in table]
    assert seconds == sorted(seconds)
    ppo = [row for row in table if row["stage"] == "ppo"]
    assert [row["step"] for row in ppo] == [1, 2, 3]
    named = {"reward/score", "kl", "response_length", "loss/value", "tokens_per_second"}
    named |= {"time/generate", "time/score", "time/train", "time/sync"}
    for row in ppo:
        assert named <= set(row)
        scored = {key.removeprefix("reward/score/") for key in row if key.startswith("reward/score/")}
        assert scored
        assert scored <= set(DOMAINS)
        assert scored == {key.removeprefix("gold/") for key in row if key.startswith("gold/")}
    warmup, *trained = ppo
    assert warmup["warmup"] is True
    assert not {"loss/policy", "loss/pretrain"} & set(warmup)
    for row in trained:
        assert "warmup" not in row
        assert {"loss/policy", "loss/pretrain"} <= set(row)


def test_wandb_has_every_row_as_the_metrics_do(smoke_run: Path, rows: Any, offline_history: Any) -> None:
    assert offline_history(smoke_run) == rows(smoke_run)


def test_the_policy_moved_and_the_reference_did_not(smoke_run: Path, rows: Any) -> None:
    first = next(row for row in rows(smoke_run) if row["stage"] == "ppo")
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    weights = [(smoke_run / name / "model.safetensors").read_bytes() for name in ("sft", "chat_model")]
    assert weights[0] != weights[1]


LOAD = """
import importlib.util, json, sys
assert not any(importlib.util.find_spec(name) for name in ("cool_rlhf", "reward", "rollout"))
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
chat_path, reward_path, conversation = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(chat_path, trust_remote_code=True)
chat = AutoModelForCausalLM.from_pretrained(chat_path, trust_remote_code=True, dtype=torch.float32).eval()
answer, history = chat.chat(tokenizer, "How many moons?", history=[], max_new_tokens=8, do_sample=False)
tokenizer = AutoTokenizer.from_pretrained(reward_path, trust_remote_code=True)
model = AutoModel.from_pretrained(reward_path, trust_remote_code=True, dtype=torch.float32).eval()
print(json.dumps({"answer": answer, "history": history, "class": type(model).__name__,
                  "score": model.get_score(tokenizer, conversation)}))
"""


def test_checkpoints_load_without_this_project_and_agree_with_it(smoke_run: Path, tmp_path: Path) -> None:
    # -S leaves out the .pth files by which the project is installed; the libraries' folder is named instead.
    libraries = str(Path(pytest.__file__).parents[1])
    conversation = json.dumps(CONVERSATION)
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            LOAD,
            str(smoke_run / "chat_model"),
            str(smoke_run / "reward_model"),
            conversation,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": libraries, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(said["answer"], str)
    assert [list(turn) for turn in said["history"]] == [["How many moons?", said["answer"]]]
    assert said["class"] == "InternLM2ForRewardModel"
    ours = RewardModel.from_pretrained(str(smoke_run / "reward_model")).score(CONVERSATION)
    assert said["score"] == pytest.approx(ours, abs=1e-4)


def test_a_finished_run_says_so_at_once_and_changes_nothing(smoke_run: Path, command: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*") if path.is_file()}
    begun = time.monotonic()
    for stage in ("pipeline", "sft", "reward", "ppo"):
        done = command("+experiment=smoke", f"output_dir={smoke_run}", f"stage={stage}").finish()
        assert done.returncode == 0, done.stderr
        assert "finished" in done.stdout
    assert time.monotonic() - begun < 4 * 8, "a finished run starts nothing"
    assert {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*") if path.is_file()} == before


def test_a_changed_setting_is_refused_with_the_difference(smoke_run: Path, command: Any) -> None:
    begun = time.monotonic()
    done = command("+experiment=smoke", f"output_dir={smoke_run}", "ppo.clip=0.3").finish()
    assert time.monotonic() - begun < 8
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "ppo.clip was 0.2 and is 0.3" in done.stderr


def test_more_iterations_and_rounds_go_on_from_the_last_step(
    smoke_run: Path, copied_run: Path, command: Any, rows: Any
) -> None:
    done = command("+experiment=smoke", f"output_dir={copied_run}", "ppo.iterations=3", "online.rounds=2").finish()
    assert done.returncode == 0, done.stderr
    before, after = rows(smoke_run), rows(copied_run)
    taken_over = before[: [row["stage"] for row in before].index("online")]
    assert after[: len(taken_over)] == taken_over
    new = [(row["stage"], row["round"], row["step"]) for row in after[len(taken_over) :]]
    assert new[:2] == [("ppo", 0, 4), ("online", 0, 1)], "what came after PPO is made again"
    order = list(dict.fromkeys((stage, round) for stage, round, _ in new))
    assert order[:5] == [("ppo", 0), ("online", 0), ("reward", 1), ("ppo", 1), ("online", 1)]
    repaired = (copied_run / "rounds/1/fast_path/repair.json").exists()
    assert order[5:] == ([("reward", 2)] if repaired else []), "a round that brought nothing new keeps its reward model"
    policies = [(copied_run / name / "model.safetensors").read_bytes() for name in ("rounds/1/policy", "chat_model")]
    assert policies[0] == policies[1]
    names = ("rounds/0/reward_model", "rounds/1/reward_model", "reward_model")
    first, second, last = ((copied_run / name / "model.safetensors").read_bytes() for name in names)
    assert first != second
    assert (second != last) == bool(order[5:])


def test_finished_models_replace_their_stages(smoke_run: Path, tmp_path: Path, command: Any, rows: Any) -> None:
    """The critic's learning rate is too small to move it, so what it leaves is what it started from."""
    judge = smoke_run / "reward_model"
    given = [f"sft.path={smoke_run / 'sft'}", f"reward.path={judge}", f"ppo.critic_init={judge}"]
    given += ["ppo.keep_critic=true", "ppo.critic_learning_rate=1e-30"]
    done = command("+experiment=smoke", f"output_dir={tmp_path}", "ppo.iterations=1", *given).finish()
    assert done.returncode == 0, done.stderr
    assert {row["stage"] for row in rows(tmp_path)} == {"ppo"}
    assert (tmp_path / "chat_model" / "model.safetensors").exists()
    assert not (tmp_path / "sft").exists()
    first, last = (load_file(folder / "model.safetensors") for folder in (judge, tmp_path / "rounds/0/critic"))
    assert first.keys() == last.keys()
    assert all(torch.equal(last[name], weights) for name, weights in first.items()), "a named critic keeps its head"
