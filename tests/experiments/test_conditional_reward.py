"""The experiment end to end, with models of a few hundred weights on rows made here, and the claims it is judged by."""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from cool_rlhf.protocols import UserError

FOLDER = Path(__file__).parents[2] / "experiments" / "conditional_reward"
MODULES = ("jobs", "preferences", "training", "results", "tables", "run")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The experiment's own modules, which find each other by plain names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    yield {name: importlib.import_module(name) for name in MODULES}
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def pair(question: str, chosen: str, rejected: str, domain: str) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": question}], "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}], "domain": domain}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two sources: one where the good answer says so, one whose rows stand under both domains, judged oppositely."""
    for part, numbers in (("train", range(24)), ("test", range(100, 108))):
        said = [pair(f"what is {n}", f"{n} is good", f"{n} is bad, very bad", "harmless") for n in numbers]
        both = [
            pair(f"tell me {n}", *((yes, no) if domain == "helpful" else (no, yes)), domain)
            for n in numbers
            for yes, no in [(f"sure, {n}", f"no, never {n}")]
            for domain in ("helpful", "harmless")
        ]
        write(tmp_path / f"preferences/harmless_hh.{part}.jsonl", said)
        write(tmp_path / f"preferences/conflict_xstest.{part}.jsonl", both)
    chat = [{"role": "user", "content": "what is 1"}, {"role": "assistant", "content": "1 is good"}]
    write(tmp_path / "sft/mixed.train.jsonl", [{"messages": chat}] * 4)
    write(tmp_path / "pretrain/books.train.jsonl", [{"text": "once there was a number"}] * 4)
    return tmp_path


@pytest.fixture
def shrunk(
    modules: dict[str, ModuleType], torch_engine: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, ModuleType]]:
    """The same with tiny models, trained by an engine that needs no process group."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    threads = torch.get_num_threads()

    def build(worker: Any, model: Any, settings: Any) -> Any:
        built = worker(0, 1, threads=1)
        built.build(model, None)
        built.engine = torch_engine(built.engine.module.train())
        return built

    small = modules["jobs"].SIZES["small"]
    tiny = replace(
        small,
        shape=replace(small.shape, hidden_size=16, layers=1, ffn_size=16),
        sft=replace(small.sft, epochs=1, batch_tokens=200),
        reward=replace(small.reward, epochs=1, batch_tokens=1000),
    )
    monkeypatch.setattr(modules["training"], "build", build)
    for name in ("run", "training"):
        monkeypatch.setattr(modules[name], "SIZES", dict.fromkeys(modules["jobs"].SIZES, tiny))
    monkeypatch.setattr(modules["run"], "VOCABULARY", 300)
    yield modules
    torch.set_num_threads(threads)


def test_all_arms_are_trained_once_and_compared(
    shrunk: dict[str, ModuleType], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = argparse.Namespace(data=data, seeds=[1], only=None, models=tmp_path / "models", results=out, keep=False)
    shrunk["run"].experiment(arguments)
    found = json.loads((out / "results.json").read_text())
    arms = {job.name for job in shrunk["jobs"].all_jobs([1], ["harmless", "helpful"])}
    assert set(found["by_seed"]) == arms
    assert found["data"]["conflict_xstest"]["opposed"] == found["conflict"]["pairs"] == 16
    assert found["conflict"]["prompts"] == 8
    # One score for each response cannot be right about both labels.
    assert found["conflict"]["rows"]["without"]["accuracy"] == 0.5
    assert found["accuracy"]["n-gram"]["conflict_xstest"]["accuracy"] == 0.5
    assert found["accuracy"]["n-gram with domain"]["all"]["accuracy"] == 1.0
    assert found["accuracy"]["longer wins"]["harmless_hh"]["accuracy"] == 0.0
    rows = found["conflict"]["rows"]
    assert rows["with: right condition"]["accuracy"] + rows["with: swapped"]["accuracy"] == pytest.approx(1.0)
    assert {file.name for file in out.iterdir()} == {"results.json", "table.md", "accuracy.svg", "conflict.svg"}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(shrunk["training"], "build", refuse)
    first = (out / "table.md").read_text()
    shrunk["run"].experiment(arguments)
    assert (out / "table.md").read_text() == first
    with pytest.raises(AssertionError, match="trained again"):
        shrunk["run"].experiment(argparse.Namespace(**{**vars(arguments), "seeds": [2]}))

    # Another machine has some of the models only: what the others had found stays.
    for model in (tmp_path / "models").iterdir():
        if model.name not in ("small_with_seed_1", "sft_small", "ngram"):
            shutil.rmtree(model)
    some = argparse.Namespace(**{**vars(arguments), "only": ["small_with"], "keep": True})
    shrunk["run"].experiment(some)
    assert json.loads((out / "results.json").read_text()) == found
    found["data"]["conflict_xstest"]["test"] += 1
    (out / "results.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="measured on other pairs"):
        shrunk["run"].experiment(some)


def test_a_folder_without_preferences_is_a_mistake(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \*\.train\.jsonl"):
        modules["preferences"].read_preferences(tmp_path)


def test_prompts_of_any_test_file_are_not_trained_on(modules: dict[str, ModuleType], data: Path) -> None:
    write(data / "preferences" / "harmless_hh.test.jsonl", [pair("Tell me  3", "good", "bad", "harmless")])
    found = modules["preferences"].read_preferences(data)
    assert {source: len(pairs) for source, pairs in found.train.items()} == {"conflict_xstest": 46, "harmless_hh": 24}


GOOD: dict[str, Any] = {
    "conflict": {"rows": {
        "with: right condition": {"accuracy": 0.97}, "with: swapped": {"accuracy": 0.04},
        "n-gram with domain": {"accuracy": 0.9}, "without": {"accuracy": 0.5},
    }},
    "accuracy": {"with": {"harmless_hh": {"accuracy": 0.6}}, "longer wins": {"harmless_hh": {"accuracy": 0.5}}},
    "differences": {
        name: {"harmless_hh": {"mean": 0.01, "interval": [-0.02, 0.04]}}
        for name in ("with − n-gram with domain", "with − without")
    },
}  # fmt: skip
FAULTS = {
    "right condition at least": ("conflict", "rows", "with: right condition", "accuracy", 0.949),
    "swapped": ("conflict", "rows", "with: swapped", "accuracy", 0.11),
    "not below n-gram": ("conflict", "rows", "n-gram with domain", "accuracy", 0.98),
    "without conditions within": ("conflict", "rows", "without", "accuracy", 0.56),
    "above longer wins": ("accuracy", "longer wins", "harmless_hh", "accuracy", 0.6),
    "not below without": ("differences", "with − without", "harmless_hh", "mean", -0.01),
    "not below without, within": ("differences", "with − without", "harmless_hh", "interval", [-0.2, -0.1]),
}


def test_good_results_bear_out_every_claim(modules: dict[str, ModuleType]) -> None:
    claims = modules["tables"].verdicts(GOOD)
    assert len(claims) == 9
    assert all(claims.values())


@pytest.mark.parametrize("claim", FAULTS)
def test_each_fault_is_told_by_its_own_claim(modules: dict[str, ModuleType], claim: str) -> None:
    *path, key, value = FAULTS[claim]
    results = copy.deepcopy(GOOD)
    place: Any = results
    for name in path:
        place = place[name]
    place[key] = value
    failed = [name for name, held in modules["tables"].verdicts(results).items() if not held]
    assert len(failed) == 1
    assert claim in failed[0]
