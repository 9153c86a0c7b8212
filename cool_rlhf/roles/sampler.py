"""Rollout engines with the resources that the config gives them, and the sampler that shares prompts out among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import ray
from ray.actor import ActorHandle

from cool_rlhf.config import Config, RolloutRoleConfig
from cool_rlhf.protocols import Portion, Prompt, Rollout
from cool_rlhf.roles.group import fetch
from cool_rlhf.schedule import derive_seed
from rollout.actor import RolloutActor
from rollout.settings import EngineSettings, SamplingSettings


def create_engines(config: Config) -> list[ActorHandle]:
    """The engines' processes, as soon as there are resources for them."""
    role = config.cluster.rollout
    environment = {
        "OMP_NUM_THREADS": str(role.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would put every engine on the same cores
    }
    if not role.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
        if not role.compile:
            environment["TORCHDYNAMO_DISABLE"] = "1"
    actor: Any = ray.remote(RolloutActor).options(
        num_cpus=role.cpus,
        num_gpus=role.gpus * role.tensor_parallel_size,
        runtime_env={"env_vars": environment},
    )
    return [actor.remote() for _ in range(role.engines)]


def measures_gpu(role: RolloutRoleConfig) -> bool:
    """Whether an engine has to start while nobody else allocates on its GPU: vLLM measures what is free there, where an
    engine shares it and is not told how much is its own."""
    return 0 < role.gpus < 1 and role.cache_gib is None


class RolloutGroup:
    """The engines of a stage, serving one checkpoint at first and then what is published to them."""

    def __init__(self, engines: Sequence[ActorHandle], config: Config, path: str, version: int) -> None:
        role = config.cluster.rollout
        settings = EngineSettings(
            dtype=role.dtype or config.model.dtype,
            max_length=config.model.max_positions,
            tensor_parallel_size=role.tensor_parallel_size,
            gpu_memory_utilization=role.gpu_memory_utilization,
            cache_gib=role.cache_gib,
            max_concurrent=role.max_concurrent,
            compile=role.compile,
            stop=tuple(config.sampling.stop),
        )
        self.engines = list(engines)
        self._starts_alone = measures_gpu(role)
        self._serving = [engine.serve.remote(path, settings, version) for engine in engines]
        sampling = config.sampling
        self.sampler = RemoteSampler(
            self.engines, SamplingSettings(sampling.temperature, sampling.top_p, sampling.max_new_tokens)
        )

    def wait(self) -> None:
        """Return once every engine is up and has loaded what it was told to."""
        serving, self._serving = self._serving, []
        fetch(serving)

    def settle(self) -> None:
        """Return once others may load: an engine that measures its GPU has to be up first."""
        if self._starts_alone:
            self.wait()

    def load(self, path: str, version: int) -> None:
        """Have every engine serve another checkpoint of the same architecture, as ``version``."""
        self.begin_loading(path, version)
        self.wait()

    def begin_loading(self, path: str, version: int) -> None:
        """The same without waiting for it: what is asked of the engines next finds it loaded."""
        self._serving += [engine.load_checkpoint.remote(path, version) for engine in self.engines]

    def stop(self) -> None:
        for engine in self.engines:
            ray.kill(engine)


class RemoteSampler:
    """The Sampler over one or more engines."""

    def __init__(self, engines: Sequence[ActorHandle], sampling: SamplingSettings) -> None:
        self.engines = list(engines)
        self._sampling = sampling

    def sample(self, prompts: Sequence[Prompt], *, seed: int, version: int) -> StreamedRollouts:
        """What is drawn depends on ``seed`` and a prompt's place among ``prompts``, however many engines share them."""
        count = len(self.engines)
        bounds = [len(prompts) * k // count for k in range(count + 1)]
        seeds = [derive_seed(seed, place) for place in range(len(prompts))]
        streams = [
            (start, engine.sample.remote(list(prompts[start:end]), self._sampling, seeds[start:end], version))
            for engine, (start, end) in zip(self.engines, pairwise(bounds), strict=True)
            if end > start
        ]
        return StreamedRollouts(streams)


class StreamedRollouts:
    """The Sampling of several engines: of each, the place of its first prompt and the stream of its portions."""

    def __init__(self, streams: Sequence[tuple[int, ray.ObjectRefGenerator]]) -> None:
        self._streams = list(streams)

    def portions(self) -> Iterator[Portion]:
        starts = {stream: start for start, stream in self._streams}
        while starts:
            ready, _ = ray.wait(list(starts), num_returns=1)
            stream = cast(ray.ObjectRefGenerator, ready[0])
            try:
                reference = next(stream)
            except StopIteration:
                del starts[stream]
                continue
            (portion,) = fetch([reference])
            yield [(starts[stream] + place, rollout) for place, rollout in portion]

    def result(self) -> list[Rollout]:
        placed = dict(item for portion in self.portions() for item in portion)
        return [placed[place] for place in sorted(placed)]
