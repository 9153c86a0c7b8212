"""A run's folder to evaluate: its config, what it has made, and rows of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cool_rlhf.compose import compose
from cool_rlhf.config import Config


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., Config]:
    """Of stage=evaluate on ``tmp_path``, over a small world."""
    world = [f"data.world.{part}" for part in ("preferences=1", "prompts=1", "sft=1", "test=12")]
    base = ["+experiment=demo", "stage=evaluate", f"output_dir={tmp_path}", *world]
    return lambda *overrides: compose([*base, *overrides])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], str]:
    """Makes a folder of ``tmp_path`` that passes for a checkpoint, and gives its path."""

    def make(name: str) -> str:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
        return str(tmp_path / name)

    return make


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, *content: dict[str, Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        return path

    return write
