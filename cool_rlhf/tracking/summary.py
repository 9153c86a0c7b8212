"""The numbers on top of a report: before and after PPO, by domain, and where the time went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cool_rlhf.tracking.curves import PHASES

Row = Mapping[str, Any]
# What validation measures, and what stands for it where it does not.
VALIDATED = {
    "validation/score": None,
    "validation/gold": None,
    "validation/response_length": "response_length",
    "validation/kl": "kl",
}


@dataclass(frozen=True)
class Best:
    """What PPO keeps a policy as the best by: ``ppo.best_metric`` and ``ppo.best_mode`` (max or min)."""

    metric: str = "validation/score"
    mode: str = "max"


@dataclass(frozen=True)
class Change:
    """A quantity at the start of PPO and at its best checkpoint (or over the last steps). ``better`` is +1 or −1 by
    which direction is an improvement, 0 where neither is."""

    name: str
    before: float
    after: float
    before_note: str
    after_note: str
    better: int

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def verdict(self) -> str:
        if not self.better or self.difference == 0:
            return ""
        return "good" if self.difference * self.better > 0 else "bad"


@dataclass(frozen=True)
class Timing:
    name: str
    explanation: str
    seconds: float
    share: float


@dataclass(frozen=True)
class StageTime:
    stage: str
    round: int
    steps: int
    seconds: float


def ppo_changes(rows: Sequence[Row], best: Best) -> list[Change]:
    """The policy PPO started from against its best checkpoint, on validation; without validation, and for what it does
    not measure, means over the first training steps and the last (those before the best). ``rows`` are one round's."""
    ends = validation_ends(rows, best)
    early, late = first_and_last(rows)
    if ends is None:
        names = ["reward/score", *gold_means(rows), "response_length", "kl"]
        return list(_changes(names, early, late, "first steps", "last steps"))
    until = [row for row in rows if row["step"] <= ends[1]["step"]]
    begins = "start" if ends[0].get("warmup") else f"step {ends[0]['step']}"  # the policy is frozen in the warm-up
    changes: list[Change] = []
    for held_out, name in VALIDATED.items():
        measured = held_out in ends[0] and held_out in ends[1]
        if measured:
            changes += _changes([held_out], [ends[0]], [ends[1]], begins, f"best, step {ends[1]['step']}")
        else:
            changes += _changes([name] if name else [], early, until[-len(late) :], "first steps", "around the best")
    return changes


def domain_changes(rows: Sequence[Row], best: Best) -> dict[str, dict[str, Change]]:
    """domain → {"score": Change, "gold": Change}, from validation where it tells domains apart, else from training."""
    ends = validation_ends(rows, best)
    table: dict[str, dict[str, Change]] = {}
    for kind, on_validation, on_training in (
        ("score", "validation/score/", "reward/score/"),
        ("gold", "validation/gold/", "gold/"),
    ):
        if ends is not None and any(name.startswith(on_validation) for name in ends[0]):
            prefix, early, late = on_validation, [ends[0]], [ends[1]]
        else:
            prefix, (early, late) = on_training, first_and_last(rows)
        for name in sorted({n for row in rows for n in row if n.startswith(prefix)}):
            for change in _changes([name], early, late, "", ""):
                table.setdefault(name.removeprefix(prefix), {})[kind] = change
    return table


def validation_ends(rows: Sequence[Row], best: Best) -> tuple[Row, Row] | None:
    """The first validation and that of the policy kept as the best; None before there are two."""
    validated = [row for row in rows if best.metric in row]
    step = best_step(rows, best)
    if len(validated) < 2 or step is None:
        return None
    return validated[0], next(row for row in validated if row["step"] == step)


def best_step(rows: Sequence[Row], best: Best) -> int | None:
    """The step whose policy is kept as the best: trained, validated, and an earlier one where two are alike."""
    validated = [row for row in rows if best.metric in row and not row.get("warmup")]
    sign = 1 if best.mode == "max" else -1
    return max(validated, key=lambda row: (sign * row[best.metric], -row["step"]))["step"] if validated else None


def phase_times(rows: Sequence[Row]) -> list[Timing]:
    """Total seconds by phase and their share of the stage's time, what no phase accounts for (other) among them."""
    names = list(dict.fromkeys(n for row in rows for n in row if n.startswith("time/")))
    wall = sum(b["seconds"] - a["seconds"] for a, b in pairwise(rows) if a["round"] == b["round"])
    if not names or wall <= 0:
        return []
    # The first row of a round has no row before it to measure its step from.
    rows = [b for a, b in pairwise(rows) if a["round"] == b["round"]]
    totals = {name: sum(row.get(name, 0.0) for row in rows) for name in names}
    timings = [Timing(n.removeprefix("time/"), PHASES.get(n, ""), s, s / wall) for n, s in totals.items()]
    rest = wall - sum(totals.values())
    if rest > 0.01 * wall:  # what was loaded before a run went on, say
        timings.append(Timing("outside", "not within a step", rest, rest / wall))
    timings.sort(key=lambda t: -t.seconds)
    return timings


def stage_times(rows: Sequence[Row]) -> list[StageTime]:
    """How long each stage of each round took, in the order in which they ran; loading and saving around a stage's steps
    count with the stage that follows."""
    times: list[StageTime] = []
    began = 0.0
    for index, row in enumerate(rows):
        following = rows[index + 1] if index + 1 < len(rows) else None
        if following is None or (following["stage"], following["round"]) != (row["stage"], row["round"]):
            times.append(StageTime(row["stage"], row["round"], row["step"], row["seconds"] - began))
            began = row["seconds"]
    return times


def _changes(
    names: Sequence[str], early: Sequence[Row], late: Sequence[Row], before_note: str, after_note: str
) -> Iterator[Change]:
    for name in names:
        before, after = mean(early, name), mean(late, name)
        if before is not None and after is not None:
            better = int("score" in name or "gold" in name)
            yield Change(_title(name), before, after, before_note, after_note, better)


def first_and_last(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The first and last tenth of a stage's rows, at least one each; warm-up counts as the beginning, since the policy
    stands still."""
    tenth = max(1, len(rows) // 10)
    warm = sum(bool(row.get("warmup")) for row in rows)
    return list(rows[: max(tenth, warm)]), list(rows[-tenth:])


def mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else None


def gold_means(rows: Sequence[Row]) -> list[str]:
    return sorted({name for row in rows for name in row if name == "gold" or name.startswith("gold/")})


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves.update(flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return leaves


def _title(name: str) -> str:
    titles = {
        "validation/score": "Reward score, validation",
        "validation/gold": "Gold, validation",
        "reward/score": "Reward score",
        "response_length": "Response length",
        "kl": "KL from SFT",
        "validation/response_length": "Response length",
        "validation/kl": "KL from SFT",
    }
    return titles.get(name, name.replace("/", ", "))
