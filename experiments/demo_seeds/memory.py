"""The memory of a command and of everything that it starts, Ray's daemons among them."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_MARK = "COOL_RLHF_MEASURED"
_SECONDS = 2.0  # between looks, each of which takes a twentieth of a second


@dataclass(frozen=True)
class Usage:
    seconds: float  # wall clock
    peak_gib: float  # the highest sum of PSS over all processes at once
    processes: int  # how many there were then


class MemoryWatch:
    """Sums PSS (a page that n processes share counts 1/n in each) over marked processes and their descendants.

    The environment carries the mark, so a daemon is found whoever its parent has become; processes that overwrite
    their environment, as Ray's workers do to show a title, are found through their parents.
    """

    def __init__(self, mark: str) -> None:
        self._mark = f"{_MARK}={mark}".encode()
        self._known: set[tuple[int, float]] = set()
        self.peak_bytes = 0
        self.processes = 0

    def look(self) -> None:
        """Take one sample."""
        running = {}
        for process in psutil.process_iter(["pid", "ppid", "create_time"]):
            running[process.pid] = (process.info["ppid"], process.info["create_time"])
        ours = {pid for pid, (_, created) in running.items() if (pid, created) in self._known or self._is_marked(pid)}
        while more := {pid for pid, (parent, _) in running.items() if parent in ours} - ours:
            ours |= more
        self._known = {(pid, running[pid][1]) for pid in ours}
        sizes = [size for size in map(_pss, ours) if size]
        if sum(sizes) > self.peak_bytes:
            self.peak_bytes, self.processes = sum(sizes), len(sizes)

    def _is_marked(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile, or is another user's
            return False


def run_measured(command: Sequence[str], log: Path) -> Usage:
    """Run ``command`` to its end, what it says into ``log``. Raises CalledProcessError where it fails."""
    mark = uuid.uuid4().hex
    watch = MemoryWatch(mark)
    ended = threading.Event()

    def keep_looking() -> None:
        while not ended.wait(_SECONDS):
            watch.look()

    looking = threading.Thread(target=keep_looking)
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    looking.start()
    try:
        with log.open("ab") as file:
            subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=True, env={**os.environ, _MARK: mark})
    finally:
        seconds = time.monotonic() - began
        ended.set()
        looking.join()
    return Usage(seconds, watch.peak_bytes / 2**30, watch.processes)


def _pss(pid: int) -> int:
    """In bytes; 0 for a process that has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
