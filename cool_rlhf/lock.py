"""One run at a time in an output folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cool_rlhf.protocols import UserError


@contextmanager
def sole_use(output_dir: Path) -> Iterator[None]:
    """Hold ``state/lock``, which the system frees when this process ends, however it does.

    Raises UserError where another live run holds it.
    """
    path = output_dir / "state" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"output_dir {output_dir} is in use by a live run, process {file.read().strip()}: wait for it or stop "
                "it, or choose another output_dir"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
