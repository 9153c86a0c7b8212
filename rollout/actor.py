"""What an engine's process answers to; vLLM is imported there only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import ray
from torch import Tensor

from cool_rlhf.imports import settle_memory, skip_unused_packages
from cool_rlhf.protocols import Portion, Prompt
from rollout.settings import EngineSettings, SamplingSettings
from rollout.transport import send_tensors_plainly


class RolloutActor:
    """One engine in a process of its own. ``serve`` comes first."""

    def __init__(self) -> None:
        skip_unused_packages()
        send_tensors_plainly()

    def warm_up(self) -> None:
        """Import what ``serve`` needs, which takes longer than loading a small model."""
        import rollout.engine  # noqa: F401

    def serve(self, path: str, settings: EngineSettings, version: int) -> None:
        """Load a checkpoint; returns once the engine is up."""
        from rollout.engine import RolloutEngine

        self._engine = RolloutEngine(Path(path), settings, version)
        settle_memory()

    def begin_weights(self) -> None:
        self._engine.begin_weights()

    def load_weights_chunk(self, chunk: Sequence[tuple[str, Tensor]]) -> None:
        self._engine.load_weights_chunk(chunk)

    def finish_weights(self, version: int) -> None:
        self._engine.finish_weights(version)

    def load_checkpoint(self, path: str, version: int) -> None:
        self._engine.load_checkpoint(path, version)

    @ray.method(num_returns="streaming")
    def sample(
        self, prompts: list[Prompt], sampling: SamplingSettings, seeds: list[int], version: int
    ) -> Iterator[Portion]:
        yield from self._engine.sample(prompts, sampling, seeds=seeds, version=version)
