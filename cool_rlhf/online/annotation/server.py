"""The annotation page's server: bound to this machine, ended by Ctrl-C, and with labels.jsonl kept up to date."""

from __future__ import annotations

import logging
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from cool_rlhf.protocols import UserError

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_UPKEEP_SECONDS = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(port: int) -> socket.socket:
    """A socket of this machine alone; ``port`` 0 takes a free one. Raises UserError where the port cannot be had."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # at once again after a crash
    try:
        bound.bind((HOST, port))
    except OSError as error:
        bound.close()
        raise UserError(
            f"annotate.port is {port}, which cannot be had ({error.strerror}): choose another, or 0 for a free one"
        ) from error
    return bound


def serve(app: ASGIApp, bound: socket.socket, upkeep: Callable[[], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. ``upkeep`` is called every few seconds and once at the end."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the token stands in the first request's address
        log_level="warning",
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    over = threading.Event()
    keeper = threading.Thread(target=_keep_up, args=(upkeep, over), daemon=True)
    keeper.start()
    try:
        _Server(config).run(sockets=[bound])
    finally:
        over.set()
        keeper.join()
    upkeep()


def _keep_up(upkeep: Callable[[], None], over: threading.Event) -> None:
    while not over.wait(_UPKEEP_SECONDS):
        try:
            upkeep()
        except (UserError, OSError, sqlite3.Error) as error:
            # Labels are safe in the store, and the next time may go well.
            logger.warning("%s", error)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but a signal that ended the server has done its work then, and is not raised again."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
