"""Stages asked for one by one add up to the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cool_rlhf.pipeline import STAGES


class Recording:
    """A run of two rounds that only notes what it is asked for."""

    rounds = 2

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.asked.append((name, *arguments))


def asked(stage: str) -> list[tuple[Any, ...]]:
    run = Recording()
    STAGES[stage](run)  # type: ignore[arg-type]
    return run.asked


@pytest.mark.parametrize(("stage", "last"), [("sft", ("sft",)), ("reward", ("reward_model",)), ("ppo", ("ppo", 0))])
def test_a_stage_is_the_pipelines_beginning_and_ends_with_itself(stage: str, last: tuple[Any, ...]) -> None:
    parts, whole = asked(stage), asked("pipeline")
    assert parts == whole[: len(parts)]
    assert parts[-1] == last
