"""Which rank runs where: resources of the roles against what there is, before anything starts.

The roles share the cluster in phases: the trainer alone for SFT and reward training; rollout engines alone where pairs
are collected without PPO; policy, critic, reference, scorer
and rollout engines together for PPO; scorer and rollout engines for evaluation, the scorer alone where no responses
are sampled. As in Ray, a rank with less than one GPU shares it with others, and never has pieces of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cool_rlhf.config import ClusterConfig, Config, RoleConfig
from cool_rlhf.memory import ModelShape, rank_bytes
from cool_rlhf.protocols import UserError

_SLACK = 1e-6


@dataclass(frozen=True)
class Node:
    """One machine: CPUs, and whole GPUs."""

    cpus: float
    gpus: int


@dataclass(frozen=True)
class Resources:
    nodes: tuple[Node, ...]

    @classmethod
    def of_machine(cls, cpus: float, gpus: int) -> Resources:
        return cls((Node(cpus, gpus),))

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)


@dataclass(frozen=True)
class Placement:
    """One process: ``rank`` of ``role`` in ``phase`` (training, collect, ppo, evaluate or scoring), its CPUs and GPUs,
    and where they are.

    ``devices`` are GPU numbers on ``node``; a rollout engine has one for each of its tensor-parallel ranks.
    """

    phase: str
    role: str
    rank: int
    cpus: float
    gpus: float
    node: int
    devices: tuple[int, ...]


@dataclass(frozen=True)
class _Demand:
    """What one process asks for: ``share`` of each of ``devices`` GPUs."""

    role: str
    rank: int
    cpus: float
    share: float
    devices: int


@dataclass
class _Free:
    cpus: float
    gpus: list[float] = field(default_factory=list)


def phases(config: Config) -> tuple[str, ...]:
    """The phases that the config's stage goes through."""
    if config.stage == "annotate":
        return ()
    if config.stage == "evaluate":
        return ("evaluate",) if config.evaluate.samples_per_prompt else ("scoring",)
    trains_reward = config.reward.path is None and config.stage != "sft"
    training = config.stage in ("pipeline", "plan") or config.sft.path is None or trains_reward
    collects = config.collect.prompts > 0 and trains_reward
    acting = config.stage in ("pipeline", "plan", "ppo")
    return tuple(
        name for name, used in (("training", training), ("collect", collects and not acting), ("ppo", acting)) if used
    )


def plan(config: Config, available: Resources) -> list[Placement]:
    """Where every process of every phase goes. Raises UserError saying what a phase needs and what there is."""
    placements: list[Placement] = []
    failed: list[str] = []
    for phase in phases(config):
        placed = _place(phase, _demands(config.cluster, phase), available)
        placements += placed or []
        failed += [phase] if placed is None else []
    if failed:
        worst = max(reversed(failed), key=lambda phase: _gpus_needed(phase, _demands(config.cluster, phase)))
        short = _shortage(worst, _demands(config.cluster, worst), available)
        other = "; to plan for another machine say what it has: cluster.gpus=8 cluster.cpus=16"
        raise UserError(short + other * (config.stage == "plan"))
    return placements


def holds_all_at_once(cluster: ClusterConfig, available: Resources) -> bool:
    """Whether every node has the CPUs for all roles of all phases, so that none waits for another however they are
    placed."""
    demands = [demand for phase in ("training", "ppo") for demand in _demands(cluster, phase)]
    return sum(demand.cpus for demand in demands) <= min(node.cpus for node in available.nodes) + _SLACK


def describe(config: Config, placements: Sequence[Placement], shape: ModelShape) -> str:
    """The sizes of the model, the placement as a table, and an estimate of the memory that each GPU has to have."""
    lines = [f"The model: {shape}" + (f" (from {shape.source})." if shape.source else ".")]
    lines += [f"{'phase':<10}{'role':<11}{'rank':>4}{'cpus':>6}{'gpus':>6}  {'where':<22}{'memory':>10}"]
    load: dict[tuple[str, int, int], float] = {}
    rollout = config.cluster.rollout
    fills = bool(rollout.gpus) and rollout.cache_gib is None
    for place in placements:
        gib = rank_bytes(config, place.role, shape) / 2**30
        for device in place.devices:
            key = (place.phase, place.node, device)
            load[key] = load.get(key, 0.0) + gib
        where = f"node {place.node}" + (f", GPU {', '.join(map(str, place.devices))}" if place.devices else "")
        process = f"{place.phase:<10}{place.role:<11}{place.rank:>4}{place.cpus:>6g}{place.gpus:>6g}"
        lines.append(f"{process}  {where:<22}{gib:>6.1f} GiB")
    if load:
        phase, node, device = max(load, key=lambda key: load[key])
        fullest = f"the fullest GPU is number {device} of node {node} in the {phase} phase, with about"
        beside = " without the engines' keys and values" if fills else ""
        lines.append(f"Estimated memory: {fullest} {load[phase, node, device]:.0f} GiB{beside}.")
    if fills:
        lines.append(
            f"Each engine fills {rollout.gpu_memory_utilization:.0%} of its GPU with weights, keys and values "
            "(cluster.rollout.gpu_memory_utilization), or give cluster.rollout.cache_gib: other roles need the rest."
        )
    return "\n".join(lines)


def _demands(cluster: ClusterConfig, phase: str) -> list[_Demand]:
    if phase == "training":
        return _role_demands("trainer", cluster.trainer)
    rollout = cluster.rollout
    engines = [
        _Demand("rollout", rank, rollout.cpus, rollout.gpus, rollout.tensor_parallel_size if rollout.gpus else 0)
        for rank in range(rollout.engines)
    ]
    if phase == "collect":
        return engines
    if phase in ("evaluate", "scoring"):
        return _role_demands("scorer", cluster.scorer) + (engines if phase == "evaluate" else [])
    roles = {
        "policy": cluster.policy,
        "critic": cluster.critic,
        "reference": cluster.reference,
        "scorer": cluster.scorer,
    }
    return [demand for name, role in roles.items() for demand in _role_demands(name, role)] + engines


def _role_demands(name: str, role: RoleConfig) -> list[_Demand]:
    return [_Demand(name, rank, role.cpus, role.gpus, 1 if role.gpus else 0) for rank in range(role.ranks)]


def _place(phase: str, demands: Sequence[_Demand], available: Resources) -> list[Placement] | None:
    """First fit, the largest first; None where something does not fit."""
    free = [_Free(node.cpus, [1.0] * node.gpus) for node in available.nodes]
    found: dict[tuple[str, int], Placement] = {}
    for demand in sorted(demands, key=lambda d: (d.devices * d.share, d.share, d.cpus), reverse=True):
        place = _first_fit(phase, demand, free)
        if place is None:
            return None
        found[demand.role, demand.rank] = place
    return [found[demand.role, demand.rank] for demand in demands]


def _first_fit(phase: str, demand: _Demand, free: list[_Free]) -> Placement | None:
    for number, node in enumerate(free):
        fitting = [device for device, left in enumerate(node.gpus) if left >= demand.share - _SLACK]
        if node.cpus < demand.cpus - _SLACK or len(fitting) < demand.devices:
            continue
        devices = tuple(fitting[: demand.devices])
        node.cpus -= demand.cpus
        for device in devices:
            node.gpus[device] -= demand.share
        gpus = demand.share * demand.devices
        return Placement(phase, demand.role, demand.rank, demand.cpus, gpus, number, devices)
    return None


def _shortage(phase: str, demands: Sequence[_Demand], available: Resources) -> str:
    cpus = sum(demand.cpus for demand in demands)
    gpus = _gpus_needed(phase, demands)
    there = f"{_count(available.gpus, 'GPU')} and {_count(available.cpus, 'CPU')}"
    where = "this machine has" if len(available.nodes) == 1 else f"the cluster's {len(available.nodes)} nodes have"
    needed = f"the {phase} phase needs {_count(gpus, 'GPU')} and {_count(cpus, 'CPU')} ({_by_role(demands)})"
    if gpus <= available.gpus and cpus <= available.cpus + _SLACK:
        return f"{needed}, which cannot be cut to fit the nodes: {where} {there}; change cluster.* accordingly"
    return (
        f"{needed}, but {where} {there}: run it where they are, join a cluster with cluster.address, or lower cluster.*"
    )


def _gpus_needed(phase: str, demands: Sequence[_Demand]) -> int:
    """Whole GPUs on one machine large enough."""
    room = sum(demand.devices for demand in demands)
    cpus = sum(demand.cpus for demand in demands)
    placed = _place(phase, demands, Resources.of_machine(cpus, room)) or []
    return len({device for place in placed for device in place.devices})


def _by_role(demands: Sequence[_Demand]) -> str:
    roles = dict.fromkeys(demand.role for demand in demands)
    parts = []
    for role in roles:
        of_role = [demand for demand in demands if demand.role == role]
        share = of_role[0].share * of_role[0].devices
        parts.append(f"{role} {len(of_role)} x {share:g}")
    return (
        "GPUs by role: " + ", ".join(parts)
        if any(d.devices for d in demands)
        else "by role: " + ", ".join(f"{role} {sum(d.cpus for d in demands if d.role == role):g}" for role in roles)
    )


def _count(number: float, unit: str) -> str:
    return f"no {unit}" if number == 0 else f"{number:g} {unit}{'' if number == 1 else 's'}"
