"""What an engine's process answers to; vLLM is imported there only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cool_rlhf.protocols import Prompt, Rollout
from rollout.settings import EngineSettings, Sampling


class RolloutActor:
    """One engine in a process of its own."""

    def __init__(self, path: str, settings: EngineSettings, version: int) -> None:
        from rollout.engine import RolloutEngine

        self._engine = RolloutEngine(Path(path), settings, version)

    def ready(self) -> None:
        """Returns once the engine is up."""

    def begin_weights(self) -> None:
        self._engine.begin_weights()

    def load_weights_chunk(self, chunk: Sequence[tuple[str, Tensor]]) -> None:
        self._engine.load_weights_chunk(chunk)

    def finish_weights(self, version: int) -> None:
        self._engine.finish_weights(version)

    def sample(self, prompts: list[Prompt], sampling: Sampling, seeds: list[int], version: int) -> list[Rollout]:
        return self._engine.sample(prompts, sampling, seeds=seeds, version=version)
