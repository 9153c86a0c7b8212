"""Engines as Ray actors, and the sampler that shares prompts out among them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from torch import Tensor

from cool_rlhf.protocols import Prompt, Rollout
from cool_rlhf.schedule import derive_seed
from rollout.settings import EngineSettings, Sampling


class RolloutActor:
    """One engine in a process of its own. vLLM is imported there only."""

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


class RemoteSampler:
    """The Sampler over one or more engines."""

    def __init__(self, engines: Sequence[ActorHandle], sampling: Sampling) -> None:
        self.engines = list(engines)
        self._sampling = sampling

    def sample(self, prompts: Sequence[Prompt], *, seed: int, version: int) -> RolloutsUnderWay:
        """What is drawn depends on ``seed`` and a prompt's place among ``prompts``, however many engines share them."""
        count = len(self.engines)
        bounds = [len(prompts) * k // count for k in range(count + 1)]
        seeds = [derive_seed(seed, place) for place in range(len(prompts))]
        references = [
            engine.sample.remote(list(prompts[start:end]), self._sampling, seeds[start:end], version)
            for engine, (start, end) in zip(self.engines, pairwise(bounds), strict=True)
            if end > start
        ]
        return RolloutsUnderWay(references)


class RolloutsUnderWay:
    """The Future of a sampling."""

    def __init__(self, references: list[Any]) -> None:
        self._references = references

    def result(self) -> list[Rollout]:
        return [rollout for part in ray.get(self._references) for rollout in part]
