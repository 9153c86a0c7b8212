"""The loop that SFT and reward training share: batches by tokens on a schedule, and one step on its way ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cool_rlhf.data.streams import token_batches
from cool_rlhf.protocols import Future
from cool_rlhf.schedule import cosine

T = TypeVar("T")


class Schedule(Protocol):
    """What of a stage's settings decides on its steps."""

    epochs: int
    batch_tokens: int
    learning_rate: float
    final_learning_rate: float
    warmup_fraction: float


@dataclass(frozen=True)
class Step(Generic[T]):
    """An optimiser step that is done."""

    number: int  # from 1
    of: int
    batch: list[T]
    metrics: dict[str, float]  # the update's, and the learning rate


def train_steps(
    update: Callable[[Sequence[T], float], Future[dict[str, float]]],
    items: Sequence[T],
    lengths: Sequence[int],
    settings: Schedule,
    *,
    seed: int,
    start: int,
    pauses_after: Callable[[int, int], bool],
) -> Iterator[Step[T]]:
    """Every epoch over ``items`` in an order of its own, from step ``start`` on; yields each step once it is done.

    Items and order depend on ``seed`` alone, so a run that goes on from a saved step sees what it would have seen.
    While the caller records a step the next one is already computed, unless ``pauses_after(step, steps)``: the model is
    then that of the step just yielded, to be saved or judged.
    """
    batches = token_batches(lengths, settings.batch_tokens, seed, settings.epochs)
    count = len(batches)
    ahead: deque[tuple[list[T], float, Future[dict[str, float]]]] = deque()

    def send(step: int) -> None:
        rate = cosine(step, count, settings.learning_rate, settings.final_learning_rate, settings.warmup_fraction)
        batch = [items[index] for index in batches[step]]
        ahead.append((batch, rate, update(batch, rate)))

    for done in range(start, count):
        if not ahead:
            send(done)
        if done + 1 < count and not pauses_after(done + 1, count):
            send(done + 1)
        batch, rate, future = ahead.popleft()
        yield Step(done + 1, count, batch, {**future.result(), "learning_rate": rate})
