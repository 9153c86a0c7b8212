"""Rollout engines with the resources that the config gives them."""

from __future__ import annotations

from typing import Any

import ray

from cool_rlhf.config import Config
from rollout.actor import RemoteSampler, RolloutActor
from rollout.settings import EngineSettings, Sampling


class RolloutGroup:
    """The engines of a run, serving one checkpoint at first and then what is published to them."""

    def __init__(self, config: Config, path: str, version: int) -> None:
        role = config.cluster.rollout
        environment = {
            "OMP_NUM_THREADS": str(role.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would put every engine on the same cores
            "VLLM_CPU_KVCACHE_SPACE": str(role.cpu_cache_gib),
        }
        if not role.gpus:
            environment["TORCHDYNAMO_DISABLE"] = "1"  # compiling small kernels takes longer than they ever save here
        actor: Any = ray.remote(RolloutActor).options(
            num_cpus=role.cpus,
            num_gpus=role.gpus * role.tensor_parallel_size,
            runtime_env={"env_vars": environment},
        )
        settings = EngineSettings(
            dtype=role.dtype or config.model.dtype,
            max_length=config.model.max_positions,
            tensor_parallel_size=role.tensor_parallel_size,
            gpu_memory_utilization=role.gpu_memory_utilization,
            max_concurrent=role.max_concurrent,
        )
        self.engines: list[Any] = [actor.remote(path, settings, version) for _ in range(role.engines)]
        sampling = config.sampling
        self.sampler = RemoteSampler(
            self.engines, Sampling(sampling.temperature, sampling.top_p, sampling.max_new_tokens)
        )

    def wait(self) -> None:
        ray.get([engine.ready.remote() for engine in self.engines])

    def stop(self) -> None:
        for engine in self.engines:
            ray.kill(engine)
