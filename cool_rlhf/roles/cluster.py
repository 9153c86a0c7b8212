"""Ray for the length of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from cool_rlhf.config import ClusterConfig

OBJECT_STORE_BYTES = 512 * 2**20  # on a machine without GPUs, where models are small


@contextmanager
def cluster(config: ClusterConfig, cpus: float, gpus: int) -> Iterator[None]:
    """Start Ray here, or join ``config.address``. On leaving, whatever the reason, every actor of this run ends, and so
    does a Ray that was started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Threads that spin while they wait would take the cores from the roles that have work.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": environment},
        "namespace": "cool_rlhf",
    }
    if config.address is not None:
        ray.init(address=config.address, **common)
    else:
        ray.init(
            include_dashboard=False,
            num_cpus=max(1, int(cpus)),
            num_gpus=gpus,
            object_store_memory=None if gpus else OBJECT_STORE_BYTES,
            **common,
        )
    try:
        yield
    finally:
        ray.shutdown()
