"""What is imported is this checkout, and nothing shadows it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["cool_rlhf", "reward", "rollout"])
def test_package_comes_from_this_checkout(name: str) -> None:
    file = importlib.import_module(name).__file__
    assert file is not None
    assert Path(file).resolve() == ROOT / name / "__init__.py"


def test_top_package_imports_nothing() -> None:
    assert (ROOT / "cool_rlhf" / "__init__.py").read_text(encoding="utf-8") == ""


def test_no_module_hides_a_package_of_the_same_name() -> None:
    hidden = [path for name in ("reward", "rollout") for path in (ROOT / "cool_rlhf").rglob(f"{name}.py")]
    assert hidden == []


def test_versions_for_fresh_machines_hold_the_direct_dependencies() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = [entry for entry in [*project["dependencies"], *project["optional-dependencies"]["dev"]] if "==" in entry]
    for hardware in ("cpu", "gpu"):
        lines = (ROOT / "requirements" / f"constraints-{hardware}.txt").read_text(encoding="utf-8").splitlines()
        locked = {line.split("+")[0] for line in lines}
        assert set(pinned) | set(project["optional-dependencies"][hardware]) <= locked
