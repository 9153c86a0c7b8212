"""Files that a crash leaves whole, written at once or line by line; and whether a path can be looked at."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cool_rlhf.protocols import UserError


def check_reachable(path: str | Path, key: str | None = None) -> None:
    """Raise UserError, which names the setting ``key``, where the system does not say what is at ``path``: a folder
    above may not be searched, or a name is too long. Whether anything is there ``Path`` tells afterwards."""
    try:
        Path(path).exists()
    except OSError as error:
        named = f"{key}: {path}" if key else path
        raise UserError(
            f"{named} cannot be looked at ({error.strerror}): give another path, or make this one accessible"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def whole_lines(path: Path) -> list[bytes]:
    """The file's lines; a last one without its newline was cut by a crash and is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return lines[:-1]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every row of the file; none where there is no file. A cut last line is left out.

    Raises ValueError, naming file and line, where any other line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}, is not a JSON object")
        rows.append(row)
    return rows
