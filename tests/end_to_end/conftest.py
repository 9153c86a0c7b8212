"""Runs of the real command, shared by the tests that look at what they leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run of +experiment=smoke. Tests must not change it."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "cool_rlhf.run", "+experiment=smoke", f"output_dir={folder}"],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder
