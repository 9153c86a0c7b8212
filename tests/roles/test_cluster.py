"""What the processes of a Ray that a run starts are like."""

from __future__ import annotations

import os
import socket

import pytest

from cool_rlhf.config import Config, RoleConfig
from cool_rlhf.protocols import UserError
from cool_rlhf.roles.cluster import cluster, resources_at
from cool_rlhf.roles.group import create_workers, fetch
from cool_rlhf.roles.sampler import create_engines
from cool_rlhf.roles.scorer import ScorerWorker


def test_without_gpus_an_engine_goes_before_the_roles_that_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "15")  # so that what the cluster sets is taken back at the end
    monkeypatch.delenv("RAY_worker_niceness")
    config = Config()
    with cluster(config.cluster, cpus=2, gpus=0):
        actors = [*create_engines(config), *create_workers(ScorerWorker, RoleConfig(cpus=0.1))]
        asked = [actor.__ray_call__.remote(lambda _: os.getpriority(os.PRIO_PROCESS, 0)) for actor in actors]
        engine, scorer = fetch(asked)
    assert (engine, scorer) == (os.getpriority(os.PRIO_PROCESS, 0) + 5, 19)


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        for address in (f"127.0.0.1:{closed.getsockname()[1]}", "nowhere"):
            with pytest.raises(UserError, match=f"no Ray cluster answers at {address} .*: give auto, or the host:port"):
                resources_at(address)
