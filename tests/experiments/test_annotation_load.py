"""The load experiment, small: every acknowledged label is kept once though the server is killed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cool_rlhf.online.annotation.store import FILE_NAME, Store


@pytest.fixture
def experiment() -> ModuleType:
    path = Path(__file__).parents[2] / "experiments/annotation_load/run.py"
    spec = importlib.util.spec_from_file_location("annotation_load", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["annotation_load"] = module
    spec.loader.exec_module(module)
    return module


def test_no_label_is_lost_or_doubled(experiment: ModuleType, tmp_path: Path) -> None:
    told, _ = experiment.load(tmp_path, labels=200, annotators=5, kills=1, overlap=2)
    with Store(tmp_path / FILE_NAME) as store:
        found = experiment.compare(store, told)
        assert (found["acknowledged"], found["kept"]) == (200, 200)
        assert [found[name] for name in ("lost", "doubled", "changed", "unasked", "shown twice to one person")] == [
            0
        ] * 5
        label = store.labels()[0]
        told[0].labels["an item"] = "first"
        del told[1].labels[next(iter(told[1].labels))]
        faulty = experiment.compare(store, told)
    assert (faulty["lost"], faulty["unasked"]) == (1, 1), "the comparison sees what is missing"
    assert label.comment == f"by {label.annotator}"
