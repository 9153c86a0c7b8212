"""What the loop tells to whoever watches it, and the time that its phases take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cool_rlhf.ppo.state import PPOState
    from cool_rlhf.protocols import Rollout


class Observer(Protocol):
    """Told what happens; the files that come of it are its own affair. When a step is recorded, the weights to keep
    of it have been asked for; only a round that ends early may find then that its last ones stand for the early
    policy's too."""

    def phase(self, name: str, step: int, steps: int) -> None:
        """``generate``, ``score``, ``train``, ``sync`` or ``validate`` of ``step`` begins."""
        ...

    def samples(
        self, step: int, rollouts: Sequence[Rollout], scores: Sequence[float], gold: Sequence[float | None]
    ) -> None:
        """What the validation of ``step`` sampled, the prompts in the same order each time; it is recorded next."""
        ...

    def record(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """``step`` of ``steps`` is done, counted from 1; warm-up steps carry ``warmup``."""
        ...

    def has_parted(self) -> bool:
        """Whether score and gold part, by the validations recorded so far: the policy exploits the reward model."""
        ...

    def save(self, state: PPOState) -> None:
        """Save the models' training state together with ``state``, from which the loop can go on."""
        ...

    def keep_best(self, step: int, value: float) -> None:
        """Keep the policy's present weights as the best so far."""
        ...

    def keep_early(self, step: int) -> None:
        """Keep the policy's present weights as those from early in the round."""
        ...


class Stopwatch:
    """Seconds of each phase of every step, one step after another."""

    def __init__(self, observer: Observer, steps: int) -> None:
        self._observer = observer
        self._steps = steps
        self._seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        self._observer.phase(name, step, self._steps)
        began = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def report(self, tokens: int) -> dict[str, float]:
        """``time/PHASE`` of every phase since the last report, ``time/other`` between them (what the step before had
        saved, too), and how many ``tokens``, of prompts and responses, were handled each second of all that."""
        now = time.perf_counter()
        seconds, whole = self._seconds, now - self._began
        self._seconds, self._began = {}, now
        times = {**seconds, "other": whole - sum(seconds.values())}
        return {**{f"time/{name}": taken for name, taken in times.items()}, "tokens_per_second": tokens / whole}
