"""Ray for the length of a run."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cool_rlhf.config import ClusterConfig
from cool_rlhf.planning import Node, Resources
from cool_rlhf.protocols import UserError
from rollout.transport import send_tensors_plainly

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 512 * 2**20  # on a machine without GPUs, where models are small
# Larger blocks go back to the system once they are free: the C library's heap has held seven times of what the chunks
# of a large vocabulary's logits take.
MAPPED_BYTES = 16 * 2**20
# Smaller ones stay: given back after every layer, their pages took up to a third of a forward pass to come again.
KEPT_BYTES = 256 * 2**20
ENVIRONMENT = {  # of every role's processes
    # Threads that spin while they wait would take the cores from the roles that have work.
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_THRESHOLD_": str(MAPPED_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    # The heap asks for huge pages: on a virtual machine every miss of the page tables' cache walks two of them.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# As `nice` counts, of every process at first. Ray would take 15, which leaves the other roles little below an engine.
ENGINE_PRIORITY = "5"
RAY_PROCESSES = ("raylet", "gcs_server")
WATCH_SECONDS = 1.0
ANSWER_SECONDS = 5.0  # for a cluster to be connected to


@contextmanager
def cluster(config: ClusterConfig, cpus: float, gpus: int) -> Iterator[None]:
    """Start Ray here, or join ``config.address``, whose processes work in this one's folder, so that a path means the
    same to all. On leaving, whatever the reason, every actor of this run ends, and so does a Ray that was started here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", ENGINE_PRIORITY)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": ENVIRONMENT},
        "namespace": "cool_rlhf",
    }
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if config.address is not None:
            common["runtime_env"]["worker_process_setup_hook"] = _entering(os.getcwd())
            ray.init(address=config.address, **common)
        else:
            context: Any = ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=max(1, int(cpus)),
                num_gpus=gpus,
                object_store_memory=None if gpus else OBJECT_STORE_BYTES,
                **common,
            )
            logger.info("logs of Ray and of the actors are in %s/logs", context.address_info["session_dir"])
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in place
        send_tensors_plainly()
        with watch_ray():
            yield
    finally:
        ray.shutdown()


def _entering(folder: str) -> Callable[[], None]:
    def enter() -> None:
        if os.path.isdir(folder):  # check_shared says where it is not
            os.chdir(folder)

    return enter


def check_shared(folder: Path) -> None:
    """Raises UserError where a machine of the cluster does not see what is written into ``folder``."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".shared") as probe:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        sees = ray.remote(num_cpus=0)(os.path.exists)
        strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        seen = ray.get(
            [sees.options(scheduling_strategy=where).remote(str(Path(probe.name).resolve())) for where in strategies]
        )
    blind = [node["NodeManagerAddress"] for node, is_there in zip(nodes, seen, strict=True) if not is_there]
    if blind:
        raise UserError(
            f"output_dir={folder} is not the same folder on {', '.join(blind)}: every machine of the cluster reads and "
            "writes checkpoints there, so put it on a file system that all of them share"
        )


@contextmanager
def watch_ray() -> Iterator[None]:
    """End this process as SIGTERM does when a Ray that it started dies: Ray itself would wait for up to a minute."""
    started = [child for child in psutil.Process().children() if child.name() in RAY_PROCESSES]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            for process in started:
                if has_died(process):
                    logger.error("Ray's own process %d has died", process.pid)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def has_died(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between the two questions
        return True


def resources() -> Resources:
    """Of the Ray that this process has joined."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Resources(tuple(Node(node.get("CPU", 0.0), int(node.get("GPU", 0))) for node in nodes))


def resources_at(address: str) -> Resources:
    """What a running cluster has. Raises UserError where none answers."""
    try:
        if address != "auto":  # Ray itself waits for minutes for somebody to listen
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cluster.address: no Ray cluster answers at {address} ({error}): give auto, or the host:port of "
            "`ray start`"
        ) from error
    found = resources()
    ray.shutdown()
    return found
