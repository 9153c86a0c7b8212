"""Sets from the Hub, where it answers and where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from cool_rlhf.data import sources
from cool_rlhf.data.loading import Reading, check_sources, load_preferences
from cool_rlhf.protocols import UserError

TURNS = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
ROWS = [
    {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "no"}], "score": 1.0},
    {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "never"}], "score": 2.0},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A Hub that answers; what it was asked for is kept."""
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, configuration: str | None, data_dir: str | None, split: str) -> datasets.Dataset:
        asked.append((name, configuration, data_dir, split))
        if not split.startswith("train"):
            raise ValueError(f"Unknown split {split!r}. Should be one of ['train'].\nSee the card.")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(sources, "prepare_hub", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("owner/name", ("owner/name", None, None, "train")),
        ("owner/name@all", ("owner/name", "all", None, "train")),
        ("owner/name@all:train_prefs", ("owner/name", "all", None, "train_prefs")),
        ("owner/name@part/:train", ("owner/name", None, "part", "train")),
        ("owner/name:train[10%:20%]", ("owner/name", None, None, "train[10%:20%]")),
    ],
)
def test_a_set_is_read_as_it_is_named(source: str, asked: tuple[Any, ...], hub: list[Any]) -> None:
    pairs = load_preferences([source], Reading(domain_of_source=((source, "helpful"),)))
    assert set(map(tuple, hub)) == {asked}  # for the revision, and for the rows
    assert [(pair.rejected[-1]["content"], pair.domain) for pair in pairs] == [("no", "helpful"), ("never", "helpful")]


def test_a_split_that_is_not_there_is_answered_with_those_that_are(hub: list[Any]) -> None:
    with pytest.raises(UserError) as caught:
        check_sources("preferences", ["owner/name:trian"])
    assert "Unknown split 'trian'. Should be one of ['train']" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_row_is_named_by_its_set(hub: list[Any]) -> None:
    with pytest.raises(UserError, match=r"data\.sft: owner/name:train, row 1: field `messages` is missing"):
        check_sources("sft", ["owner/name"])


def test_bad_rows_of_a_set_may_be_left_out_where_those_of_files_are_refused(
    hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*ROWS, {**ROWS[0], "rejected": None}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    assert check_sources("preferences", ["owner/name"], Reading(bad_rows="drop_hub")) == 2
    assert "left out: data.preferences: owner/name:train, row 3: field `rejected` is null" in caplog.text
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n{}\n")
    with pytest.raises(UserError, match=r"own\.jsonl, row 2: .*data\.bad_rows=drop"):
        check_sources("preferences", ["owner/name", str(file)], Reading(bad_rows="drop_hub"))


def test_out_of_reach_names_the_key_to_point_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "prepare_hub", lambda: False)
    monkeypatch.setattr(sources, "cached_set", lambda name: False)
    with pytest.raises(
        UserError, match=r"owner/name:train .* out of reach .*: point data\.preferences at a local copy"
    ):
        check_sources("preferences", ["owner/name"])


def test_a_set_that_is_a_script_is_answered_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found name.py")

    monkeypatch.setattr(sources, "prepare_hub", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"owner/name:train cannot be had .*scripts are no longer supported, but found"):
        check_sources("preferences", ["owner/name"])
