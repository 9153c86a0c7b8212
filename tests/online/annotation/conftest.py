"""Items to label, and a store whose clock the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cool_rlhf.online.annotation.items import Item, Response
from cool_rlhf.online.annotation.store import FILE_NAME, Store


@pytest.fixture
def item() -> Callable[..., Item]:
    def make(number: int, round: int = 0, **changes: object) -> Item:
        fields = {
            "prompt": [{"role": "user", "content": f"question {number}"}],
            "first": Response(f"good answer {number}", True, "sft"),
            "second": Response(f"poor answer {number}", False, "round 0, late"),
            "domain": "helpful",
            "guideline": "Prefer what helps.",
            "answer": None,
            "round": round,
        }
        return Item(**{**fields, **changes})  # type: ignore[arg-type]

    return make


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store(tmp_path / FILE_NAME, overlap=1, lease_seconds=60, now=clock) as opened:
        yield opened
