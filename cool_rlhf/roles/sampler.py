"""Rollout engines with the resources that the config gives them, and the sampler that shares prompts out among them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import ray
from ray.actor import ActorHandle

from cool_rlhf.config import Config
from cool_rlhf.protocols import Prompt, Rollout
from cool_rlhf.roles.group import Pending, fetch
from cool_rlhf.schedule import derive_seed
from rollout.actor import RolloutActor
from rollout.settings import EngineSettings, Sampling


def create_engines(config: Config) -> list[ActorHandle]:
    """The engines' processes, as soon as there are resources for them."""
    role = config.cluster.rollout
    environment = {
        "OMP_NUM_THREADS": str(role.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would put every engine on the same cores
        "VLLM_CPU_KVCACHE_SPACE": str(role.cpu_cache_gib),
    }
    if not role.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
        environment["TORCHDYNAMO_DISABLE"] = "1"  # compiling small kernels takes longer than they ever save here
    actor: Any = ray.remote(RolloutActor).options(
        num_cpus=role.cpus,
        num_gpus=role.gpus * role.tensor_parallel_size,
        runtime_env={"env_vars": environment},
    )
    return [actor.remote() for _ in range(role.engines)]


class RolloutGroup:
    """The engines of a stage, serving one checkpoint at first and then what is published to them."""

    def __init__(self, engines: Sequence[ActorHandle], config: Config, path: str, version: int) -> None:
        role = config.cluster.rollout
        settings = EngineSettings(
            dtype=role.dtype or config.model.dtype,
            max_length=config.model.max_positions,
            tensor_parallel_size=role.tensor_parallel_size,
            gpu_memory_utilization=role.gpu_memory_utilization,
            max_concurrent=role.max_concurrent,
            stop=tuple(config.sampling.stop),
        )
        self.engines = list(engines)
        self._serving = [engine.serve.remote(path, settings, version) for engine in engines]
        sampling = config.sampling
        self.sampler = RemoteSampler(
            self.engines, Sampling(sampling.temperature, sampling.top_p, sampling.max_new_tokens)
        )

    def wait(self) -> None:
        """Return once every engine is up and has loaded what it was told to."""
        serving, self._serving = self._serving, []
        fetch(serving)

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

    def __init__(self, engines: Sequence[ActorHandle], sampling: Sampling) -> None:
        self.engines = list(engines)
        self._sampling = sampling

    def sample(self, prompts: Sequence[Prompt], *, seed: int, version: int) -> Pending[list[Rollout]]:
        """What is drawn depends on ``seed`` and a prompt's place among ``prompts``, however many engines share them."""
        count = len(self.engines)
        bounds = [len(prompts) * k // count for k in range(count + 1)]
        seeds = [derive_seed(seed, place) for place in range(len(prompts))]
        references = [
            engine.sample.remote(list(prompts[start:end]), self._sampling, seeds[start:end], version)
            for engine, (start, end) in zip(self.engines, pairwise(bounds), strict=True)
            if end > start
        ]
        return Pending(references, lambda parts: [rollout for part in parts for rollout in part])
