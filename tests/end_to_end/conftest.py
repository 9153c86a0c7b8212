"""Runs of the real command, shared by the tests that look at what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

# All seconds are for a busy machine; a run of the smoke experiment takes about 45 on two idle cores.
RUN_SECONDS = 800
START_SECONDS = 480


@dataclass(frozen=True)
class Ended:
    """How a command that was disturbed ended."""

    status: int
    errors: str
    seconds: float
    left: list[str]  # processes of it that were still there


class Command:
    """``python -m cool_rlhf.run`` in a process of its own, with a process group of its own as a terminal gives it."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = [sys.executable, "-m", "cool_rlhf.run", *arguments]

    def finish(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.arguments, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)

    def disturb(self, when: Callable[[], bool], how: Callable[[psutil.Process], None]) -> Ended:
        """Start, wait until ``when``, do ``how`` to the driver, and see how it ends."""
        process = subprocess.Popen(
            self.arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stderr is not None
        driver = psutil.Process(process.pid)
        waited_until = time.monotonic() + START_SECONDS
        while not when():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < waited_until, "the run never came so far"
            time.sleep(0.05)
        below = driver.children(recursive=True)
        begun = time.monotonic()
        how(driver)
        _, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - begun
        left = [str(each) for each in below if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        return Ended(process.returncode, errors, seconds, left)


@pytest.fixture
def command() -> type[Command]:
    return Command


@pytest.fixture
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads a run's metrics."""
    return lambda folder: [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def ctrl_c() -> Callable[[psutil.Process], None]:
    """What a terminal does: SIGINT to every process of the foreground group."""

    def press(driver: psutil.Process) -> None:
        os.killpg(driver.pid, signal.SIGINT)

    return press


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished, undisturbed run of +experiment=smoke. Tests must not change it.

    All processes of one test run share it: the first to ask makes it, the others wait.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, made = shared / "smoke", shared / "smoke.made"
    with FileLock(shared / "smoke.lock"):
        if not made.exists():
            done = Command("+experiment=smoke", f"output_dir={folder}", "logging.wandb_mode=offline").finish()
            assert done.returncode == 0, done.stderr
            made.touch()
    return folder
