"""From rows to charts: which curves belong together, what they mean, and where rounds begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cool_rlhf.tracking.figures import Chart, Curve
from cool_rlhf.tracking.metrics import KEYS

Row = Mapping[str, Any]

PHASES = {
    "time/generate": "sampling responses from the newest policy",
    "time/score": "reward model, policy, reference and critic reading the last responses",
    "time/train": "updates of critic and policy",
    "time/sync": "pushing the new weights into the rollout engine",
    "time/validate": "sampling and scoring the validation prompts",
    "time/other": "between these: saving, keeping policies, metrics",
}


@dataclass(frozen=True)
class Group:
    """Fields drawn in one chart: those in ``names`` (field → what the legend calls it), or with ``prefix`` all that
    start with it, called by what follows."""

    title: str
    explanation: str
    unit: str  # of the y axis
    names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    zero: bool = False
    stacked: bool = False

    def pick(self, fields: Sequence[str]) -> dict[str, str]:
        """Which of ``fields`` belong here, and their labels; domains in the order of their names: each has one colour
        throughout."""
        if not self.prefix:
            return {name: label for name, label in self.names.items() if name in fields}
        picked = [name for name in fields if name.startswith(self.prefix)]
        return {name: name.removeprefix(self.prefix) for name in (picked if self.stacked else sorted(picked))}


@dataclass(frozen=True)
class Section:
    title: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class ChartSection:
    title: str
    charts: list[Chart]


def _both(name: str) -> dict[str, str]:
    return {name: "training", f"validation/{name}": "validation"}


PPO_SECTIONS = (
    Section(
        "What it is rewarded for, and what is true",
        (
            Group(
                "Reward score",
                "Mean over the responses, each under its own domain's condition.",
                "reward score",
                {
                    "reward/score": "training",
                    "validation/score": "validation",
                    "overoptimisation/score": "validation, where gold is known",
                },
            ),
            Group(
                "Gold",
                "What exact rules say of the responses. PPO learns from it only as far as rules in ppo.rewards have a "
                "weight. Score up, gold down in the same domains: reward hacking.",
                "gold",
                _both("gold"),
            ),
            Group("Reward score by domain", "Training responses.", "reward score", prefix="reward/score/"),
            Group("Gold by domain", "Training responses.", "gold", prefix="gold/"),
            Group("Validation score by domain", "Held-out prompts.", "reward score", prefix="validation/score/"),
            Group("Validation gold by domain", "Held-out prompts.", "gold", prefix="validation/gold/"),
            Group("Reward model's part", "As weighed in the reward.", "reward", prefix="reward/model/"),
            Group(
                "Rules' part",
                "As weighed in the reward; each rule's own value where a domain has several.",
                "reward",
                prefix="reward/rule/",
            ),
            Group(
                "Score by condition", "Before its weight: domain/condition.", "reward score", prefix="reward/condition/"
            ),
            Group("Validation: reward model's part", "As weighed.", "reward", prefix="validation/model/"),
            Group("Validation: rules' part", "As weighed.", "reward", prefix="validation/rule/"),
            Group(
                "Validation: score by condition",
                "Before its weight: domain/condition.",
                "reward score",
                prefix="validation/condition/",
            ),
            Group(
                "Validation under other conditions",
                "All held-out responses, whatever their domain; and of each domain: condition/domain.",
                "reward score",
                prefix="validation/under/",
            ),
        ),
    ),
    Section(
        "What alignment costs",
        (
            Group(
                "Held-out text",
                "The policy's loss on text that nothing learns from; rising means forgetting.",
                "nats per token",
                {"validation/lm_loss": "held-out text"},
            ),
            Group(
                "Instructions followed",
                "By a program's check; PPO does not reward them as such.",
                "share",
                {"validation/instructions": "all kinds"},
                zero=True,
            ),
            Group("Instructions by kind", "", "share", prefix="validation/instructions/", zero=True),
        ),
    ),
    Section(
        "The policy and its responses",
        (
            Group(
                "KL from the SFT model", "How far the policy has moved.", "nats per response", _both("kl"), zero=True
            ),
            Group(
                "Entropy",
                "How undecided the policy is; a collapse to 0 ends exploration.",
                "nats per token",
                {"policy/entropy": "entropy", "surprisal": "surprisal of what was sampled"},
                zero=True,
            ),
            Group("Response length", "Mean over the responses.", "tokens", _both("response_length"), zero=True),
            Group(
                "Finished responses",
                "Those that ended by themselves before the token limit.",
                "share",
                {**_both("finished"), "unfinished": "training, cut at the limit"},
                zero=True,
            ),
        ),
    ),
    Section(
        "Learning",
        (
            Group(
                "Policy loss", "Clipped surrogate: its level says little, jumps do.", "loss", {"loss/policy": "policy"}
            ),
            Group("Value loss", "Half the critic's squared error.", "loss", {"loss/value": "value"}, zero=True),
            Group(
                "Pretraining loss", "Rising means forgetting.", "nats per token", {"loss/pretrain": "pretraining text"}
            ),
            Group(
                "Explained variance of returns",
                "1: the critic foresees every return; 0: no better than their mean.",
                "share",
                {"value/explained": "critic"},
            ),
            Group(
                "Gradient norms",
                "Before clipping.",
                "norm",
                {"policy/gradient_norm": "policy", "critic/gradient_norm": "critic"},
                zero=True,
            ),
            Group(
                "Rollout engine against trainer",
                "Difference between their log-probabilities of the sampled tokens; large means stale or wrong weights.",
                "nats per token",
                {"engine_gap/mean": "mean", "engine_gap/max": "largest"},
                zero=True,
            ),
        ),
    ),
    Section(
        "Time",
        (
            Group(
                "Time by phase",
                "Stacked; what the step before saved is in other.",
                "seconds per step",
                prefix="time/",
                stacked=True,
            ),
            Group(
                "Throughput",
                "Prompt and response tokens over the whole step, validation and saving too.",
                "tokens per second",
                {"tokens_per_second": "tokens"},
                zero=True,
            ),
        ),
    ),
)
TRAINING_SECTIONS = (
    Section(
        "",
        (
            Group("Loss", "Per optimiser step.", "loss", {"loss": "loss", "loss/sft": "SFT", "loss/reward": "reward"}),
            Group("Ranking loss", "Focal, over the pairs of the step.", "loss", {"loss/ranking": "ranking"}, zero=True),
            Group(
                "Barrier", "Keeps scores within the bound.", "penalty, before its weight", {"loss/barrier": "barrier"}
            ),
            Group("Accuracy", "Pairs whose chosen response scores higher.", "share of pairs", _both("accuracy")),
            Group("Accuracy by domain", "", "share of pairs", prefix="validation/accuracy/"),
            Group(
                "Repairs between rounds",
                "Means over the patterns that a round tried to mend, those rolled back too.",
                "share of pairs",
                {
                    "repair/held_out_before": "patterns' held-out pairs, before",
                    "repair/held_out": "patterns' held-out pairs, after",
                    "repair/accuracy_before": "general pairs, before",
                    "repair/accuracy_after": "general pairs, after",
                },
            ),
            Group(
                "Patterns mended",
                "",
                "patterns",
                {"repair/kept": "kept", "repair/rolled_back": "rolled back"},
                zero=True,
            ),
            Group(
                "Scores",
                "Mean over the pairs' responses.",
                "reward score",
                {"score/chosen": "chosen", "score/rejected": "rejected"},
            ),
            Group("Gradient norm", "Before clipping.", "norm", {"gradient_norm": "gradient"}, zero=True),
            Group("Learning rate", "", "per step", {"learning_rate": "learning rate"}, zero=True),
            Group("Throughput", "", "tokens per second", {"tokens_per_second": "tokens"}, zero=True),
            Group("Time by phase", "Stacked.", "seconds per step", prefix="time/", stacked=True),
        ),
    ),
)


def numeric_fields(rows: Sequence[Row]) -> list[str]:
    """Names of the metrics that occur, in the order of first appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update((k, None) for k, v in row.items() if k not in KEYS and not isinstance(v, bool))
    return list(names)


def charts(rows: Sequence[Row], sections: Sequence[Section]) -> tuple[list[ChartSection], list[Chart]]:
    """The charts of one stage over all its rounds: those the sections describe, then one for each remaining family of
    names."""
    fields = numeric_fields(rows)
    axis = _Axis(rows)
    seen: set[str] = set()
    described = []
    for section in sections:
        picked = [(group, group.pick(fields)) for group in section.groups]
        seen.update(name for _, names in picked for name in names)
        described.append(ChartSection(section.title, [_chart(group, names, axis) for group, names in picked if names]))
    families: dict[str, dict[str, str]] = {}
    for name in fields:
        if name not in seen:
            family, _, rest = name.partition("/")
            families.setdefault(family, {})[name] = rest or family
    others = [_chart(Group(family.replace("_", " "), "", ""), names, axis) for family, names in families.items()]
    return [section for section in described if section.charts], others


class _Axis:
    """Rounds laid end to end: a round's step s stands at the last step of the rounds before it, plus s."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        rounds = sorted({row["round"] for row in rows})
        offsets: dict[int, int] = {}
        end = 0
        for number in rounds:
            offsets[number] = end
            end += max(row["step"] for row in rows if row["round"] == number)
        self.x = [offsets[row["round"]] + row["step"] for row in rows]
        self.title = "step, rounds end to end" if len(rounds) > 1 else "step"
        self.starts = offsets if len(rounds) > 1 else {}
        self.shaded = self._spans(lambda row: bool(row.get("warmup")))

    def curve(self, field: str, label: str) -> Curve:
        used = [i for i, row in enumerate(self.rows) if field in row]
        rows = [self.rows[i] for i in used]
        return Curve(label, [self.x[i] for i in used], [row[field] for row in rows], [row["round"] for row in rows])

    def _spans(self, holds: Callable[[Row], bool]) -> list[tuple[float, float]]:
        spans: list[tuple[float, float]] = []
        for x, row in zip(self.x, self.rows, strict=True):
            if holds(row):
                if spans and spans[-1][1] == x - 0.5:
                    spans[-1] = (spans[-1][0], x + 0.5)
                else:
                    spans.append((x - 0.5, x + 0.5))
        return spans


def _chart(group: Group, names: Mapping[str, str], axis: _Axis) -> Chart:
    """Over steps; over rounds what was measured once in each."""
    curves = [axis.curve(name, label) for name, label in names.items()]
    if axis.starts and all(len(set(curve.rounds)) == len(curve.rounds) for curve in curves):
        by_round = [replace(curve, x=curve.rounds) for curve in curves]
        return Chart(group.title, group.explanation, "round", group.unit, by_round, group.stacked, group.zero)
    rounds = sorted({number for curve in curves for number in curve.rounds})
    first = axis.starts.get(rounds[0], min(curve.x[0] for curve in curves))
    last = max(curve.x[-1] for curve in curves)
    # Short rounds leave room for no more than a number.
    labels = {number: f"round {number}" if number == rounds[0] else str(number) for number in rounds}
    return Chart(
        title=group.title,
        explanation=group.explanation,
        x_axis=axis.title,
        y_axis=group.unit,
        curves=curves,
        stacked=group.stacked,
        zero=group.zero,
        dividers=[(axis.starts[n] + 0.5, labels[n]) for n in rounds if n in axis.starts],
        shaded=[(a, b) for a, b in axis.shaded if b > first and a < last],
    )
