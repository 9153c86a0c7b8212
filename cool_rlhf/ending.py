"""How the command ends: an exit status, one sentence with the log's place, and no process left behind."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import psutil

from cool_rlhf.protocols import UserError
from cool_rlhf.terminal import lasting_output

logger = logging.getLogger(__name__)

LIMIT_SECONDS = 7.0  # for an orderly end; what is still there then is killed
KILL_SECONDS = 1.0
LEAST_ROOM = 2**20  # bytes; a disk with less is taken for the reason of whatever went wrong
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER


class Ending:
    """``with Ending() as ending:`` around all that the command does; ``ending.status`` is its exit status afterwards.

    Status 2, with one sentence, for a UserError; 1 for an interruption, a full disk or any other error, of which the
    traceback is shown too. Ctrl-C, SIGTERM and SIGHUP end the command at once until ``running`` is called; afterwards
    the first raises KeyboardInterrupt, for an orderly end within a limit, and further ones change nothing.
    """

    def __init__(self) -> None:
        self.status = 0
        self._output_dir: Path | None = None
        self._signal: signal.Signals | None = None
        self._error: BaseException | None = None  # that began an end within the limit
        self._over = False
        self._output = ExitStack()

    def __enter__(self) -> Ending:
        self._output.enter_context(lasting_output())
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish stands
                signal.signal(number, self._interrupt)
        if sys.platform == "linux":
            # Grandchildren whose parent dies become our children, so that none can be lost sight of.
            ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._over = True
        with self._output:
            kill_descendants()
            if error is not None:
                self.status = _status(error)
                self._explain(error)
        return error is not None

    def running(self, output_dir: Path) -> None:
        """A run in ``output_dir`` begins: from here on there is something to close in an orderly way."""
        self._output_dir = output_dir

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Once an error leaves this context, whatever is still running ``LIMIT_SECONDS`` later is killed."""
        try:
            yield
        except BaseException as error:
            self._error = error
            self._limit()
            raise

    def _limit(self) -> None:
        timer = threading.Timer(LIMIT_SECONDS, self._force)
        timer.daemon = True
        timer.start()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None or self._over:
            return
        self._signal = signal.Signals(number)
        if self._output_dir is None:  # an exception could be swallowed by a library that is being imported
            self._stop(1, lambda: self._say(self._interrupted()))
        self._limit()
        raise KeyboardInterrupt

    def _force(self) -> None:
        cut_short = f"an orderly end took more than {LIMIT_SECONDS:.0f} s and was cut short"
        if self._signal is not None or self._error is None:
            self._stop(1, lambda: self._say(f"{self._interrupted()}; {cut_short}"))
        error = self._error

        def tell() -> None:
            self._explain(error)
            self._say(cut_short)

        self._stop(_status(error), tell)

    def _stop(self, status: int, tell: Callable[[], None]) -> NoReturn:
        """End at once, having told why if that can be done: what hangs may hold the lock of the log, or of standard
        error."""
        try:
            kill_descendants()
            telling = threading.Thread(target=tell, daemon=True)
            telling.start()
            telling.join(KILL_SECONDS)
        finally:
            os._exit(status)

    def _explain(self, error: BaseException) -> None:
        if isinstance(error, UserError):
            print(f"error: {one_line(error)}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            self._say(self._interrupted())
        elif is_disk_full(error) or self._has_no_room():
            logging.raiseExceptions = False  # the log may be on that disk
            logger.info("the disk is full", exc_info=error)
            self._say(f"error: the disk is full ({one_line(origin(error))})")
        else:
            logger.error("the run failed", exc_info=error)
            self._say(f"error: {type(origin(error)).__name__}: {first_line(origin(error))}")

    def _has_no_room(self) -> bool:
        """torch.save does not say why it could not write."""
        folder = self._output_dir
        return folder is not None and folder.exists() and shutil.disk_usage(folder).free < LEAST_ROOM

    def _interrupted(self) -> str:
        return "interrupted" if self._signal in (None, signal.SIGINT) else f"ended by {self._signal.name}"

    def _say(self, what: str) -> None:
        log = None if self._output_dir is None else self._output_dir / "logs" / "run.log"
        place = f"; the log is {log}" if log is not None and log.exists() else ""
        print(f"{what}{place}; the same command goes on from what is finished", file=sys.stderr)


def _status(error: BaseException) -> int:
    return 2 if isinstance(error, UserError) else 1


def kill_descendants() -> None:
    """Kill every process below this one and wait until they are gone."""
    descendants = psutil.Process().children(recursive=True)
    for process in descendants:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(descendants, timeout=KILL_SECONDS)


def origin(error: BaseException) -> BaseException:
    """What an actor raised, where ``error`` is what Ray made of it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def is_disk_full(error: BaseException) -> bool:
    """Whether a lack of room is behind ``error``; libraries say so in their own exceptions."""
    return any(
        getattr(link, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(link)
        for link in _links(error)
    )


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _links(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if origin(error) is not error:
            yield from _links(origin(error))
        error = error.__cause__ or error.__context__
