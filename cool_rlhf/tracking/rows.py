"""Append-only JSON lines that survive a crash and can be taken back to an earlier step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cool_rlhf.files import read_json_lines, whole_lines, write_atomically

SYNC_SECONDS = 5.0


class RowFile:
    """JSON lines whose rows carry ``stage``, ``round`` and ``step`` and stand in the order in which they happened.

    Every row reaches the operating system at once (a killed process loses none) and the disk at least every
    ``SYNC_SECONDS`` while rows arrive, at ``sync`` and at ``close``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = read_json_lines(path)
        self._drop_cut_line()
        self._file: BinaryIO = path.open("ab")
        self._synced_at = time.monotonic()

    def append(self, row: Mapping[str, Any]) -> None:
        # Non-ASCII text is escaped, so lone surrogates in a sampled response cannot break the file.
        self._file.write(json.dumps(row, allow_nan=False).encode("ascii") + b"\n")
        self._file.flush()
        self.rows.append(dict(row))
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def truncate(self, keep: int) -> None:
        """Keep the first ``keep`` rows, byte for byte."""
        if keep < len(self.rows):
            self._file.close()
            lines = whole_lines(self.path)[:keep]
            write_atomically(self.path, b"".join(line + b"\n" for line in lines))
            self.rows = self.rows[:keep]
            self._file = self.path.open("ab")

    def sync(self) -> None:
        """Onto the disk. To be called before a checkpoint is declared whole, so it never runs ahead of its rows."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            self._file.close()

    def _drop_cut_line(self) -> None:
        whole = sum(len(line) + 1 for line in whole_lines(self.path))
        if self.path.exists() and self.path.stat().st_size > whole:
            os.truncate(self.path, whole)
