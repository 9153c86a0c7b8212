"""Which processes start when, and where, on a cluster of two machines whose GPUs are only numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

SCRIPT = """
    import json, os, sys
    from pathlib import Path
    import ray
    from ray.cluster_utils import Cluster
    from cool_rlhf.compose import compose
    from cool_rlhf.roles import standby
    from cool_rlhf.roles.cluster import check_shared, cluster

    os.chdir(sys.argv[1])  # where the machines joined
    machines = Cluster(initialize_head=True, head_node_args=dict(num_cpus=8, num_gpus=2, include_dashboard=False))
    machines.add_node(num_cpus=8, num_gpus=2)
    os.chdir(sys.argv[2])
    config = compose(["+experiment=7b_ppo", f"cluster.address={machines.address}"])
    roles = config.cluster
    for role in (roles.policy, roles.critic, roles.scorer, roles.reference):
        role.ranks, role.gpus, role.cpus = 1, 0.5, 0.1
    roles.rollout.engines, roles.rollout.gpus, roles.rollout.tensor_parallel_size, roles.rollout.cpus = 1, 1.0, 2, 0.1

    class Process:  # of any role, without its imports
        def __init__(self, *arguments): pass
        def warm_up(self): return os.getcwd()

    def create(count, cpus, gpus):
        return [ray.remote(Process).options(num_cpus=cpus, num_gpus=gpus).remote() for _ in range(count)]

    standby.create_workers = lambda worker, role: create(role.ranks, role.cpus, role.gpus)
    standby.create_engines = lambda config: create(1, 0.1, 2)
    processes = standby.Standby(config)
    with cluster(roles, 16, 4):
        processes.prepare("ppo")
        early = [worker.__name__ for worker in standby._ROLES["ppo"] if processes.holds(worker)]
        processes.place("ppo")
        placed = [worker.__name__ for worker in standby._ROLES["ppo"] if processes.holds(worker)]
        free = ray.available_resources().get("GPU", 0.0)
        folders = sorted(set(ray.get([process.warm_up.remote() for process in create(4, 4, 0)])))  # two on each
        Path("outputs").mkdir()
        check_shared(Path("outputs"))
        left = os.listdir("outputs")
    machines.shutdown()
    print(json.dumps({"early": early, "placed": placed, "free": free, "folders": folders, "left": left}))
"""


def test_roles_are_placed_largest_first_and_work_in_the_drivers_folder(tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(elsewhere), str(here)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["early"] == [], "those that hold GPUs wait for their turn"
    assert len(found["placed"]) == 5
    assert found["free"] == 0.0, "four halves left the engine its two whole ones"
    assert found["folders"] == [str(here)]
    assert found["left"] == []
