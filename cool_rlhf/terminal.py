"""Standard output and error of a command that outlives whoever reads them: Ctrl-C ends ``tee`` too."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_NOBODY_READS = (errno.EPIPE, errno.EIO)


class LastingStream:
    """``stream``, but once nobody is left to read it what is written goes nowhere: neither a run under way nor its
    orderly end fails for that. Any other error, such as a full disk behind it, is raised."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._read_or_not():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._read_or_not():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _read_or_not(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
            # What the stream still holds goes there as well, or Python would fail on it as it exits.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[None]:
    """``sys.stdout`` and ``sys.stderr`` fall silent rather than fail once nobody reads them."""
    outer = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(LastingStream, outer)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = outer
