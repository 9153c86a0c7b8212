"""stage=evaluate on a finished run: real reward model, real engines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from cool_rlhf.demo.registry import DOMAINS
from cool_rlhf.demo.world import TEST_PAIRS
from reward import RewardModel


@pytest.fixture(scope="module")
def evaluated(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the run after stage=evaluate with another seed, and what was printed."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(smoke_run, folder)
    command = ["+experiment=smoke", "stage=evaluate", f"output_dir={folder}", "seed=5", "evaluate.best_of=2"]
    done = subprocess.run(
        [sys.executable, "-m", "cool_rlhf.run", *command], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_every_table_is_there(evaluated: tuple[Path, str]) -> None:
    folder, printed = evaluated
    result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert set(result["reward_accuracy"]) == {"overall", *DOMAINS}
    assert set(result["reward_accuracy_under_others"]) == set(DOMAINS)
    for domain, row in result["reward_accuracy"].items():
        assert row["pairs"] == (TEST_PAIRS * len(DOMAINS) if domain == "overall" else TEST_PAIRS)
        for kind in ("own", "none", "other"):
            low, high = row[kind]["interval"]
            assert 0 <= low <= row[kind]["accuracy"] <= high <= 1
    assert set(result["opposed_accuracy"]) == {"overall", "brief", "thorough"}
    assert set(result["baselines"]) == {"longer_wins", "ngram"}
    assert list(result["best_of_n"]["by_gold"]) == ["1", "2"]
    for name in ("sft", "chat_model", "difference", "sft_best_of_2_by_score", "sft_best_of_2_by_gold"):
        assert set(result[name]) == {"overall", *DOMAINS}
        assert result[name]["overall"]["prompts"] == 24
        assert f" {name} " in f" {' '.join(printed.split())} "
    for measure in ("score", "gold", "response_length", "finished"):
        before, after = (result[name]["overall"][measure]["mean"] for name in ("sft", "chat_model"))
        assert result["difference"]["overall"][measure]["mean"] == pytest.approx(after - before, abs=1e-9)
    by_score, by_gold = (result[f"sft_best_of_2_by_{kind}"]["overall"] for kind in ("score", "gold"))
    assert by_score["score"]["mean"] >= by_gold["score"]["mean"]
    assert by_gold["gold"]["mean"] >= by_score["gold"]["mean"]


def test_the_run_itself_is_as_it_was(smoke_run: Path, evaluated: tuple[Path, str]) -> None:
    folder, _ = evaluated
    for name in ("config.yaml", "metrics.jsonl", "state/progress.json", "chat_model/model.safetensors"):
        assert (folder / name).read_bytes() == (smoke_run / name).read_bytes(), name
    assert "opposed_accuracy" in (folder / "report.html").read_text(encoding="utf-8")


def test_models_that_were_taken_away_are_made_again_first(
    smoke_run: Path, tmp_path: Path, command: Any, rows: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(smoke_run, folder)
    for name in ("rounds/0/reward_model", "reward_model"):
        shutil.rmtree(folder / name)
    reward_alone = "evaluate.samples_per_prompt=0"  # no engine has to start for that
    done = command("+experiment=smoke", "stage=evaluate", f"output_dir={folder}", reward_alone).finish()
    assert done.returncode == 0, done.stderr
    assert [(row["stage"], row["step"]) for row in rows(folder)] == [
        (row["stage"], row["step"]) for row in rows(smoke_run)
    ]
    for name in ("rounds/0/reward_model", "reward_model", "chat_model"):
        weights = [run / name / "model.safetensors" for run in (folder, smoke_run)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), name
    result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert result["models"]["reward_model"] == str(folder / "reward_model")


def test_a_reward_model_alone(smoke_run: Path, tmp_path: Path, command: Any, ctrl_c: Any) -> None:
    """No experiment, no SFT model: scores of the user's own pairs are those of the Python API. Stopped on the way it
    leaves nothing behind, and the same command does it all."""
    pairs = [
        {"prompt": f"Say {k} in words.", "chosen": "a " * (1 + k % 5), "rejected": "b " * (1 + k % 7), "domain": domain}
        for k in range(12)
        for domain in ("brief", "thorough")
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    model = smoke_run / "reward_model"
    settings = [f"reward.path={model}", f"data.test_preferences=[{file}]", f"output_dir={tmp_path / 'out'}"]
    log = tmp_path / "out" / "logs" / "run.log"
    stopped = command("stage=evaluate", *settings).disturb(
        lambda: log.exists() and "scoring" in log.read_text(), ctrl_c
    )
    assert (stopped.status, stopped.left) == (1, [])
    assert stopped.seconds < 10
    assert not (tmp_path / "out" / "evaluation.json").exists()
    done = command("stage=evaluate", *settings).finish()
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"evaluation.json", "evaluation.html", "logs"}
    assert not (tmp_path / "out" / "sft").exists()
    reward_model = RewardModel.from_pretrained(model)
    for domain in ("brief", "thorough"):
        own = [pair for pair in pairs if pair["domain"] == domain]
        means = [fmean(reward_model.scores([dialogue(pair, side) for pair in own], domain)) for side in SIDES]
        assert result["reward_scores"]["domains"][domain]["mean"] == pytest.approx(means, abs=1e-4)


SIDES = ("chosen", "rejected")


def dialogue(pair: dict[str, str], side: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]
