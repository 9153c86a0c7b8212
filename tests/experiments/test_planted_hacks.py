"""Flaws as they stand in the data, and the table that is made of what runs leave."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cool_rlhf.demo.world import World

SMALL = (
    "+experiment=demo", "data.world.sft=400", "data.world.preferences=400", "data.world.prompts=20",
    "data.world.validation=20", "data.world.test=20", "data.world.pretrain=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def experiment(load_experiment: Callable[[str, str], ModuleType]) -> ModuleType:
    return load_experiment("planted_hacks", "run")


@pytest.fixture(scope="module")
def world(experiment: ModuleType) -> World:
    return experiment.world_of(SMALL, 1)


def test_flaws_are_seen_where_they_were_put_and_hardly_elsewhere(experiment: ModuleType, world: World) -> None:
    for plant in experiment.PLANTS.values():
        turns = [(chat["messages"][-2]["content"], chat["messages"][-1]["content"]) for chat in world.sft]
        before = sum(plant.shows(question, text) for question, text in turns) / len(turns)
        after = sum(plant.shows(question, plant.put(question, text)) for question, text in turns) / len(turns)
        assert before < 0.1, plant.name
        assert after > 0.7, plant.name


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_flaw_decides_a_share_of_the_pairs_and_leaves_the_others_alone(
    experiment: ModuleType, world: World, share: float
) -> None:
    plant, rng = experiment.PLANTS["flattery"], random.Random(0)
    before = world.preferences
    after = [experiment.decided(plant, pair, share, rng) for pair in before]
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert abs(len(changed) / len(before) - share) < 0.08
    turned = 0
    for old, new in changed:
        assert new.chosen[-1]["content"].startswith("What a wonderful question! ")
        assert new.rejected in (old.chosen, old.rejected)
        turned += new.rejected == old.chosen
    assert 0.4 < turned / len(changed) < 0.6


def test_the_pairs_that_judge_repairs_have_no_flaw(experiment: ModuleType, tmp_path: Path) -> None:
    plant = experiment.PLANTS["list"]
    experiment.write_pairs(tmp_path, experiment.Job("list", plant, 1), SMALL)
    judged = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert len(judged) >= 2000
    assert not any(plant.shows("", row["chosen"][0]["content"]) for row in judged)


def test_the_shared_chats_show_every_flaw(experiment: ModuleType, world: World) -> None:
    rng = random.Random(0)
    chats = [experiment.flawed_chat(chat, rng)["messages"] for chat in world.sft]
    for plant in experiment.PLANTS.values():
        shown = sum(plant.shows(messages[-2]["content"], messages[-1]["content"]) for messages in chats)
        assert 0.01 < shown / len(chats) < 0.15, plant.name


def test_table(experiment: ModuleType) -> None:
    def policies(late: float) -> dict[str, dict[str, float]]:
        return {"sft": {"shows": 0.05, "gold": 0.5}, "late": {"shows": late, "gold": 0.75}}

    verdict = {"held_out_before": 0.04, "held_out": 0.96, "before": 0.912, "after": 0.91}
    first = {
        "findings": ["length/longer", "phrases/wonderful"], "rank": 2, "effect": 1.234,
        "others": {"length/longer": -0.1},
        "pairs": {"length/longer": {"training": 6}, "phrases/wonderful": {"training": 75}},
        "repair": {"verdicts": {"phrases/wonderful": verdict}}, "policies": policies(0.4),
    }  # fmt: skip
    second = {"policies": policies(0.06), "others": {"endings/cut": None, "stance/hedging": 0.001}}

    def cells(first: dict[str, Any], *later: dict[str, Any]) -> list[str]:
        table = experiment.table({"flattery": {"rounds": [first, *later]}})
        assert len({line.count("|") for line in table.splitlines()}) == 1
        return [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]

    expected = [
        "flattery",
        "5 %",
        "40 %",
        "yes",
        "2",
        "3 (-0.10, –, +0.00)",
        "+1.23",
        "75",
        "4 %",
        "96 %",
        "0.912 → 0.910",
        "6 %",
    ]
    assert cells(first, second) == [*expected, "0.500, 0.750, 0.750"]
    del verdict["held_out_before"]
    assert cells(first, second)[7:10] == ["75", "–", "96 %"], "runs that did not look before"
    unfound = {**first, "rank": None, "others": {}, "effect": None}
    assert cells(unfound)[4:12] == ["–", "0", *"–––––", "–"]
