"""Experiments are scripts: their modules find each other only beside each other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def load_experiment() -> Iterator[Callable[[str, str], ModuleType]]:
    """(folder, name of a module in it) → the module, as a run of that experiment imports it."""
    with pytest.MonkeyPatch.context() as patch:
        before = dict(sys.modules)

        def load(folder: str, name: str) -> ModuleType:
            place = EXPERIMENTS / folder
            for file in place.glob("*.py"):
                sys.modules.pop(file.stem, None)
            patch.syspath_prepend(str(place))
            return importlib.import_module(name)

        yield load
        added = [name for name, module in sys.modules.items() if _is_experiment(module)]
        for name in added:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


def _is_experiment(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and EXPERIMENTS in Path(file).parents
