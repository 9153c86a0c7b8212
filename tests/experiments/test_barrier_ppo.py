"""What the experiment asks PPO with, and what it makes of its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from cool_rlhf.protocols import Message, PreferencePair


@pytest.fixture(scope="module")
def experiment(load_experiment: Callable[[str, str], ModuleType]) -> ModuleType:
    return load_experiment("conditional_reward", "barrier_ppo")


def test_prompts_of_the_pairs_stand_once_for_each_domain_and_apart(experiment: ModuleType, tmp_path: Path) -> None:
    def pair(number: int, domain: str) -> PreferencePair:
        sides = [
            [Message(role="user", content=f"Why {number}?"), Message(role="assistant", content=text)] for text in "ab"
        ]
        return PreferencePair(sides[0], sides[1], domain, None, True, True)

    pairs = [pair(number % 100, domain) for number in range(200) for domain in ("helpful", "harmless")]
    experiment.write_prompts(tmp_path, pairs)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    }
    assert len(rows["train"]) + len(rows["validation"]) == 200
    assert len(rows["validation"]) >= experiment.VALIDATION
    assert len({row["id"] for part in rows.values() for row in part}) == 200


def test_a_run_is_told_by_its_metrics(experiment: ModuleType, tmp_path: Path) -> None:
    rows = []
    for step in range(1, 26):
        trained = {} if step <= 5 else {"policy/clipped": 0.5}
        warm = {"warmup": True} if step <= 5 else {}
        rows.append(
            {
                "stage": "ppo", "step": step, "reward/score": float(step), "kl": 2.0 * step, "loss/value": 0.25,
                "critic/gradient_norm": 30.0 - step, "response_length": 8.0, **trained, **warm,
            }
        )  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = experiment.one_run(tmp_path)
    assert (found["score, start"], found["score, last 10"], found["KL, last 10"]) == (3.0, 20.5, 41.0)
    assert (found["critic's gradient norm, highest"], found["tokens clipped, mean"]) == (29.0, 0.5)
    results = {arm: {"1": found, "2": found} for arm in experiment.ARMS}
    assert "| score, last 10 | 20.500 ± 0.000 | 20.500 ± 0.000 |" in experiment.table(results)
    experiment.draw(results, tmp_path / "scores.svg")
    assert (tmp_path / "scores.svg").stat().st_size > 1000
