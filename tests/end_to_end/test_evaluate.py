"""stage=evaluate on a finished run: real reward model, real engines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cool_rlhf.demo.registry import DOMAINS


@pytest.fixture(scope="module")
def evaluated(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the run after stage=evaluate with another seed, and what was printed."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(smoke_run, folder)
    command = ["+experiment=smoke", "stage=evaluate", f"output_dir={folder}", "seed=5", "evaluate.best_of=2"]
    done = subprocess.run(
        [sys.executable, "-m", "cool_rlhf.run", *command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_every_table_is_there(evaluated: tuple[Path, str]) -> None:
    folder, printed = evaluated
    result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert set(result["reward_accuracy"]) == set(result["reward_accuracy_under_others"]) == set(DOMAINS)
    for row in result["reward_accuracy"].values():
        assert row["pairs"] == 120
        for kind in ("own", "none", "other"):
            low, high = row[kind]["interval"]
            assert 0 <= low <= row[kind]["accuracy"] <= high <= 1
    assert set(result["opposed_accuracy"]) == {"brief", "thorough"}
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
    done = command("+experiment=smoke", "stage=evaluate", f"output_dir={folder}").finish()
    assert done.returncode == 0, done.stderr
    assert [(row["stage"], row["step"]) for row in rows(folder)] == [
        (row["stage"], row["step"]) for row in rows(smoke_run)
    ]
    for name in ("rounds/0/reward_model", "reward_model", "chat_model"):
        weights = [run / name / "model.safetensors" for run in (folder, smoke_run)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), name
    result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert result["models"] == {name: str(folder / name) for name in ("sft", "reward_model", "chat_model")}
