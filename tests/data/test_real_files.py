"""Real preference, chat and prompt files, where COOL_RLHF_DATA names a folder that has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cool_rlhf.config import DataConfig
from cool_rlhf.data.loading import EQUAL, Reading, check_sources
from cool_rlhf.data.preferences import OPPOSED, REPEATED, load_split

FOLDER = os.environ.get("COOL_RLHF_DATA")
KINDS = ("preferences", "sft", "prompts", "pretrain")  # also the names of the folders

pytestmark = pytest.mark.skipif(FOLDER is None, reason="COOL_RLHF_DATA names no folder of data")


def files(kind: str) -> list[str]:
    found = sorted(str(file) for file in Path(FOLDER or "", kind).glob("*.jsonl"))
    if not found:
        pytest.skip(f"no {kind} in COOL_RLHF_DATA")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_good(kind: str) -> None:
    for file in files(kind):
        with open(file, encoding="utf-8") as lines:
            rows = sum(1 for line in lines if line.strip())
        assert 0.99 * rows < check_sources(kind, [file]) <= rows, "a few pairs may have equal responses"


def test_every_pair_is_used_held_out_or_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    sources = files("preferences")
    found = load_split(DataConfig(preferences=sources), 0.1, Reading(), seed=1)
    assert len(found.training) + len(found.validation) + found.drops.total() == found.rows.total()
    labels = {(str(pair.chosen), str(pair.rejected), pair.domain) for pair in found.training}
    assert len(labels) == len(found.training)
    opposed = {(rejected, chosen) for chosen, rejected, _ in labels} & {(a, b) for a, b, _ in labels}
    crossing = [pair for pair in found.training if (str(pair.chosen), str(pair.rejected)) in opposed]
    assert len({pair.domain for pair in crossing}) > 1, "conditions are for pairs that two domains judge oppositely"
    assert {reason for _, reason in found.drops} <= {EQUAL, OPPOSED, REPEATED}
