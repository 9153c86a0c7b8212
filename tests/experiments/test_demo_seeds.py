"""The experiment's own arithmetic, and its measurement of memory."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "experiments" / "demo_seeds"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"demo_seeds_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


memory, results = load("memory"), load("results")


def policy(overall: float, brief: float, error: float) -> dict[str, Any]:
    return {
        name: {"prompts": 9, "gold": {"mean": mean, "standard_error": error}}
        for name, mean in (("overall", overall), ("brief", brief))
    }


def accuracy(own: float, other: float) -> dict[str, Any]:
    shares = {"own": own, "other": other, "none": 0.5}
    return {"brief": {"pairs": 9, "prompts": 9, **{kind: {"accuracy": share} for kind, share in shares.items()}}}


GOOD = {
    "sft": policy(0.4, 0.5, 0.01),
    "chat_model": policy(0.6, 0.6, 0.01),
    "sft_best_of_16_by_gold": policy(0.7, 0.7, 0.01),
    "difference": policy(0.2, 0.1, 0.02),
    "reward_accuracy": accuracy(0.9, 0.6),
    "opposed_accuracy": accuracy(0.97, 0.05),
    "usage": {"seconds": 400.0, "peak_gib": 5.0, "processes": 9},
}
FAULTS = {
    "gold up by 0.25": ("sft_best_of_16_by_gold", policy(1.3, 1.3, 0.01)),
    "gold up by 0.10": ("difference", policy(0.09, 0.1, 0.02)),
    "gold up by more": ("difference", policy(0.2, 0.1, 0.07)),
    "no domain down": ("difference", policy(0.2, -0.05, 0.02)),
    "reward model right": ("reward_accuracy", accuracy(0.84, 0.6)),
    "with the own": ("opposed_accuracy", accuracy(0.94, 0.05)),
    "with the other": ("opposed_accuracy", accuracy(0.97, 0.11)),
    "minutes": ("usage", {**GOOD["usage"], "seconds": 901.0}),
    "GiB": ("usage", {**GOOD["usage"], "peak_gib": 8.1}),
}


def test_a_good_run_bears_out_every_claim() -> None:
    assert len(results.verdicts(GOOD)) == len(FAULTS)
    assert all(results.verdicts(GOOD).values())


@pytest.mark.parametrize("claim", FAULTS)
def test_each_fault_is_told_by_its_own_claim(claim: str) -> None:
    key, value = FAULTS[claim]
    failed = [name for name, held in results.verdicts({**GOOD, key: value}).items() if not held]
    assert len(failed) == 1
    assert claim in failed[0]


def test_seeds_are_pooled(tmp_path: Path) -> None:
    folders = {}
    for seed, gain in ((1, 0.1), (2, 0.4)):
        folders[seed] = folder = tmp_path / str(seed)
        folder.mkdir()
        evaluation = copy.deepcopy(GOOD)
        evaluation["difference"]["overall"]["gold"] = {"mean": gain, "standard_error": 0.03}
        usage = evaluation.pop("usage")
        (folder / "evaluation.json").write_text(json.dumps({"seed": seed, "settings": {"top_p": 1}, **evaluation}))
        if seed == 2:
            (folder / "usage.json").write_text(json.dumps(usage))
        settings = {"ppo": {"best_metric": "validation/gold"}, "online": {"rounds": 2}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        rows = [
            {"stage": "ppo", "round": 0, "step": 1, "kl": 9.0, "validation/gold": 9.0, "validation/kl": 9.0},
            {"stage": "ppo", "round": 1, "step": 1, "kl": 0.1, "validation/gold": 0.5, "validation/kl": 0.2},
            {"stage": "ppo", "round": 1, "step": 2, "kl": 0.3},
            {"stage": "online", "round": 0, "step": 1, "gold/late": 0.7},
            {"stage": "online", "round": 1, "step": 1, "gold/late": 0.8},
        ]
        searched = folder / "rounds/1/fast_path"
        searched.mkdir(parents=True)
        findings = [{"pattern": "dots", "payment": {"gold": -0.25}}, {"pattern": "odd", "payment": {"gold": None}}]
        (searched / "patterns.json").write_text(json.dumps({"findings": findings if seed == 2 else []}))
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = results.collect(folders)
    assert found["pooled"]["gain"] == pytest.approx(0.25)
    assert found["pooled"]["standard_error"] == pytest.approx(0.03 / math.sqrt(2))
    assert found["pooled"]["deviation_between_seeds"] == pytest.approx(0.3 / math.sqrt(2))
    assert [found["seeds"]["1"][name] for name in ("best_step", "kl", "kl_last")] == [1, 0.2, 0.3]
    text = results.table(found)
    assert "| gold, overall | 0.400 → 0.600 (+0.100 ± 0.030) | 0.400 → 0.600 (+0.400 ± 0.030) |" in text
    assert "| gold by round, held-out prompts | 0.700, 0.800 | 0.700, 0.800 |" in text
    assert "| findings by round (gold) | 0 + 0 | 0 + 2 (-0.25, –) |" in text
    assert "| wall clock, s | – | 400 |" in text
    assert "| at most 15 minutes | – | yes |" in text
    results.draw(found, tmp_path / "gold.svg")
    assert (tmp_path / "gold.svg").read_text().count("seed ") >= 2


DAEMON = """
import subprocess, sys, time
held = bytearray(b"x") * (64 << 20)
child = "held = bytearray(b'x') * (64 << 20); import time; time.sleep(3)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
time.sleep(2.5)
"""


def test_memory_of_a_daemon_counts(tmp_path: Path) -> None:
    usage = memory.run_measured([sys.executable, "-c", DAEMON], tmp_path / "log")
    assert usage.processes == 2
    assert 0.125 < usage.peak_gib < 0.25
    assert 2.5 < usage.seconds < 60


def test_a_failing_command_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(memory.subprocess.CalledProcessError):
        memory.run_measured([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path / "log")
    assert (tmp_path / "log").read_text() == "why\n"
