"""The plan against Ray's own scheduler, on GPUs that are only numbers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from cool_rlhf.compose import compose
from cool_rlhf.planning import Resources, plan


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a Ray of this test's own with 16 CPUs and eight GPUs."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init("local", num_cpus=16, num_gpus=8, include_dashboard=False, logging_level=logging.ERROR)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.mark.parametrize("phase", ["training", "ppo"])
def test_ray_places_what_was_planned(address: str, phase: str) -> None:
    placements = plan(compose(["+experiment=7b_ppo"]), Resources.of_machine(cpus=16, gpus=8))
    bundles = [{"CPU": place.cpus, "GPU": place.gpus} for place in placements if place.phase == phase]
    group = placement_group(bundles)
    try:
        assert group.wait(timeout_seconds=30)
    finally:
        remove_placement_group(group)


def test_the_command_reads_the_cluster_that_it_joins(address: str) -> None:
    command = [sys.executable, "-m", "cool_rlhf.run", "+experiment=7b_ppo", "stage=plan", f"cluster.address={address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("policy") == 3
