"""What the page's server does beside serving."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from cool_rlhf.online.annotation import server
from cool_rlhf.protocols import UserError


def test_upkeep_goes_on_after_an_error_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_UPKEEP_SECONDS", 0.0)
    over = threading.Event()
    errors: list[Exception] = [sqlite3.OperationalError("database is locked"), OSError("disk"), UserError("a bad row")]

    def upkeep() -> None:
        if errors:
            raise errors.pop(0)
        over.set()

    server._keep_up(upkeep, over)
    assert over.is_set()
