"""How the command ends, apart from what it does."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cool_rlhf.ending import LIMIT_SECONDS, is_disk_full

HEAD = """
import subprocess, sys, time
from pathlib import Path
from cool_rlhf.ending import Ending
from cool_rlhf.protocols import UserError
with Ending() as ending:
    child = subprocess.Popen(["sh", "-c", "sleep 600 & wait"])
"""
TAIL = """
sys.exit(ending.status)
"""


def start(body: str) -> subprocess.Popen[str]:
    """A process whose command has children and grandchildren, and does ``body``."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + lines + TAIL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], *signals: int) -> tuple[int, str, float]:
    """Status, standard error and seconds; every process below must be gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) == 2
    begun = time.monotonic()
    process.stdin.write("go\n")
    process.stdin.flush()
    time.sleep(0.3)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    _, errors = process.communicate(timeout=60)
    assert not [each for each in below if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    return process.returncode, errors, time.monotonic() - begun


RUNNING = "time.sleep(0.3)\nending.running(Path('nowhere'))\nprint('ready', flush=True)\nsys.stdin.readline()\n"
AGAIN = "; the same command goes on from what is finished\n"


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_signals_end_a_run(number: int, said: str) -> None:
    status, errors, _ = end(start(RUNNING + "time.sleep(60)"), number)
    assert status == 1
    assert errors.endswith(said + AGAIN)


def test_a_second_signal_does_not_disturb_the_end() -> None:
    body = RUNNING + "try:\n    time.sleep(60)\nfinally:\n    time.sleep(1)\n    print('closed', file=sys.stderr)"
    status, errors, _ = end(start(body), signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    assert status == 1
    assert errors == "closed\ninterrupted" + AGAIN


def test_an_end_that_takes_too_long_is_cut_short() -> None:
    body = RUNNING + "try:\n    time.sleep(60)\nfinally:\n    time.sleep(60)"
    status, errors, seconds = end(start(body), signal.SIGINT)
    assert status == 1
    assert "cut short" in errors
    assert LIMIT_SECONDS <= seconds < 10


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        ("ValueError('odd')", 1, ("Traceback", "error: ValueError: odd" + AGAIN)),
        ("UserError('no such thing')", 2, ("error: no such thing\n",)),
    ],
)
def test_so_is_one_that_begins_with_an_error_which_is_told(raised: str, expected: int, said: tuple[str, ...]) -> None:
    body = RUNNING + f"try:\n    with ending.limited():\n        raise {raised}\nfinally:\n    time.sleep(60)"
    status, errors, seconds = end(start(body))
    assert status == expected
    assert all(part in errors for part in said)
    assert errors.endswith("cut short" + AGAIN)
    assert seconds < 11


@pytest.mark.parametrize("stage", ["at once", "a slow end", "going on"])
def test_nobody_reads_what_is_said(stage: str) -> None:
    """As with ``2>&1 | tee log`` and Ctrl-C, which ends tee too."""
    ready = "time.sleep(0.3)\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    body = {
        "at once": ready + "try:\n    time.sleep(60)\nexcept Exception:\n    time.sleep(60)",
        "a slow end": RUNNING + "try:\n    time.sleep(60)\nfinally:\n    time.sleep(60)",
        "going on": RUNNING + "for _ in range(3):\n    print('step', file=sys.stderr, flush=True)\nprint('step')",
    }[stage]
    process = start(body)
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    status, _, seconds = end(process, *([] if stage == "going on" else [signal.SIGINT]))
    assert status == (0 if stage == "going on" else 1)
    assert seconds < (11 if stage == "a slow end" else 5)


def test_an_interruption_that_a_library_would_swallow_while_it_is_imported() -> None:
    ready = "time.sleep(0.3)\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    body = ready + "try:\n    time.sleep(60)\nexcept BaseException:\n    time.sleep(60)"
    status, errors, seconds = end(start(body), signal.SIGINT)
    assert (status, errors) == (1, "interrupted" + AGAIN)
    assert seconds < 5


def test_mistakes_and_faults() -> None:
    status, errors, _ = end(start(RUNNING + "raise UserError('no such\\n thing.')"))
    assert (status, errors) == (2, "error: no such thing\n")
    status, errors, _ = end(start(RUNNING + "raise ValueError('odd')"))
    assert status == 1
    assert "Traceback" in errors
    assert errors.endswith("error: ValueError: odd" + AGAIN)


class TaskError(Exception):
    """As Ray gives an actor's exception."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("task failed")
        self.cause = cause


def test_a_full_disk_is_known_by_any_name() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert is_disk_full(full)
    assert is_disk_full(TaskError(full))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    wrapped = ValueError("not written")
    wrapped.__cause__ = TaskError(full)
    assert is_disk_full(wrapped)
    assert not is_disk_full(OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
    assert not is_disk_full(TaskError(ValueError("odd")))
