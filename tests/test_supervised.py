"""The loop of SFT and reward training: what is under way when, and what resuming needs."""

from __future__ import annotations

import pytest

from cool_rlhf.config import SFTConfig
from cool_rlhf.supervised import train_steps

ITEMS = list(range(20))
SETTINGS = SFTConfig(batch_tokens=4, epochs=2)


@pytest.mark.parametrize("every", [1, 3, 7])
def test_nothing_later_is_under_way_at_a_pause_and_one_step_otherwise(ready, every: int) -> None:
    sent = []

    def update(batch, rate):
        sent.append(batch)
        return ready({"loss": float(len(sent))})

    steps = train_steps(
        update, ITEMS, [1] * 20, SETTINGS, seed=1, start=0, pauses_after=lambda step, steps: step % every == 0
    )
    for step in steps:
        assert step.of == 10
        assert step.metrics["loss"] == step.number
        assert step.batch == sent[step.number - 1]
        assert len(sent) == (step.number if step.number % every == 0 else min(step.number + 1, 10))
    assert len(sent) == 10


def test_from_a_later_start_the_same_steps_follow(ready) -> None:
    def run(start: int):
        return [
            (step.number, step.batch, step.metrics["learning_rate"])
            for step in train_steps(
                lambda batch, rate: ready({}),
                ITEMS,
                [1] * 20,
                SETTINGS,
                seed=1,
                start=start,
                pauses_after=lambda *at: False,
            )
        ]

    assert run(6) == run(0)[6:]
    assert run(10) == []
