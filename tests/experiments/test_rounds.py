"""What the experiment makes of two runs' files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def results(load_experiment: Callable[[str, str], ModuleType]) -> ModuleType:
    return load_experiment("rounds", "results")


def leave(folder: Path, golds: Sequence[float], rounds: int, mean: float) -> None:
    """A run whose validations, one after each iteration, found ``golds`` while the score rose evenly."""
    each = len(golds) // rounds
    rows = []
    for place, gold in enumerate(golds):
        row = {"stage": "ppo", "round": place // each, "validation/score": float(place), "validation/gold": gold}
        if place % each == 0:
            rows.append({**row, "warmup": True, "validation/gold": 0.0})
        rows.append(row)
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    evaluation = {
        "sft": {"overall": {"gold": {"mean": 0.5}}},
        "chat_model": {"overall": {"gold": {"mean": mean, "standard_error": 0.03}}},
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    for round in range(rounds):
        place = folder / f"rounds/{round}/fast_path"
        place.mkdir(parents=True)
        (place / "patterns.json").write_text(json.dumps({"findings": [{}] * round}))


def test_what_two_arms_show(results: ModuleType, tmp_path: Path) -> None:
    leave(tmp_path / "one_7", [0.5, 0.6, 0.7, 0.6, 0.5, 0.4], rounds=1, mean=0.6)
    leave(tmp_path / "three_7", [0.5, 0.6, 0.6, 0.7, 0.7, 0.8], rounds=3, mean=0.8)
    found = results.collect(tmp_path, [7, 8], ["one", "three"], 2)  # nothing is there of seed 8
    assert list(found) == ["7"]
    one, three = found["7"]["one"], found["7"]["three"]
    assert one["correlation"] == pytest.approx(-1)  # score up, gold down in the last two iterations
    assert three["correlation"] == pytest.approx(1)
    assert (one["last"], three["last"]) == pytest.approx((0.45, 0.75))
    assert [point[:2] for point in three["curve"]] == [[1, 0], [2, 0], [3, 1], [4, 1], [5, 2], [6, 2]]
    assert results.gain(found["7"]) == pytest.approx((0.2, 0.03 * 2**0.5))
    row = [cell.strip() for cell in results.table(found).splitlines()[2].strip("|").split("|")]
    assert row == [
        "7", "0.500", "0.600", "0.800", "+0.200 ± 0.042", "0.450 / 0.750", "-1.00 / +1.00", "0 / 0+1+2",
    ]  # fmt: skip
    results.draw(found, tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 1000
