"""What each role may have of the machines."""

from __future__ import annotations

from cool_rlhf.checks.ranges import ROLES, check_numbers
from cool_rlhf.config import Config, RoleConfig, RolloutRoleConfig
from cool_rlhf.protocols import UserError


def check_resources(config: Config) -> None:
    """Raises UserError for what no machine could give."""
    cluster = config.cluster
    wanted = "it must be 0 or more, or null for what the machine has"
    check_numbers(config, ["cluster.cpus", "cluster.gpus"], lambda value: value >= 0, wanted)
    sections: list[tuple[str, RoleConfig | RolloutRoleConfig]] = [
        (name, getattr(cluster, name)) for name in (*ROLES, "rollout")
    ]
    for name, role in sections:
        if role.gpus > 1:
            raise UserError(
                f"cluster.{name}.gpus is {role.gpus}: one rank uses at most one GPU; raise its ranks instead"
            )
    for name in ("reference", "scorer"):
        stage = getattr(cluster, name).zero_stage
        if stage:
            raise UserError(
                f"cluster.{name}.zero_stage is {stage}: each of its ranks holds the whole model, which is not trained, "
                "so that there is nothing to shard; set it to 0"
            )
    for name in ("trainer", "policy", "critic"):
        role = getattr(cluster, name)
        if role.ranks > 1 and 0 < role.gpus < 1:
            raise UserError(
                f"cluster.{name}.gpus is {role.gpus} with {role.ranks} ranks: two ranks that train one model cannot "
                "share a GPU; give each 1, or the role one rank"
            )
    if cluster.rollout.tensor_parallel_size > 1 and cluster.rollout.gpus not in (0, 1):
        raise UserError(
            f"cluster.rollout.gpus is {cluster.rollout.gpus}: with tensor_parallel_size above 1 every rank needs a GPU "
            "of its own (1), or none (0)"
        )
