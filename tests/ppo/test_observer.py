"""The time that phases take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cool_rlhf.ppo import observer
from cool_rlhf.ppo.observer import Stopwatch


def test_times_of_a_step_add_up_to_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 14.0, 14.5, 15.5, 16.0, 18.0, 19.0, 20.0])
    monkeypatch.setattr(observer.time, "perf_counter", lambda: next(clock))
    told = []
    watch = Stopwatch(SimpleNamespace(phase=lambda *phase: told.append(phase)), steps=7)
    with watch.phase("generate", 1):
        pass
    with watch.phase("train", 1):
        pass
    first = watch.report(tokens=30)
    assert first == {"time/generate": 3.0, "time/train": 1.0, "time/other": 2.0, "tokens_per_second": 5.0}
    with watch.phase("generate", 2):  # the two seconds before it went into saving the first step
        pass
    assert watch.report(tokens=8) == {"time/generate": 1.0, "time/other": 3.0, "tokens_per_second": 2.0}
    assert told == [("generate", 1, 7), ("train", 1, 7), ("generate", 2, 7)]
