"""From rows to charts: which curves belong together, what they mean, and where rounds begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cool_rlhf.tracking.charts import Chart, Series
from cool_rlhf.tracking.metrics import KEYS

Row = Mapping[str, Any]

PHASES = {
    "time/generate": "sampling responses from the newest policy",
    "time/score": "reward model, reference and critic reading the responses",
    "time/logprobs": "policy and reference log-probabilities",
    "time/values": "the critic reading the responses",
    "time/train": "updates of critic and policy",
    "time/sync": "pushing the new weights into the rollout engine",
    "time/validate": "sampling and scoring the validation prompts",
    "time/save": "saving the state that a resume needs",
}


@dataclass(frozen=True)
class Group:
    """Fields drawn in one chart: those named, or with ``prefix`` all that start with it."""

    title: str
    explanation: str
    names: tuple[str, ...] = ()
    prefix: str = ""
    zero: bool = False
    stacked: bool = False

    def pick(self, fields: Sequence[str]) -> list[str]:
        """Which of ``fields`` belong here; domains in the order of their names: each has one colour throughout."""
        picked = [f for f in fields if f in self.names or (self.prefix and f.startswith(self.prefix))]
        return picked if self.stacked else sorted(picked)

    def label(self, field: str) -> str:
        return field.removeprefix(self.prefix) if self.prefix else field


PPO_GROUPS = (
    Group("Reward score", "Mean over the step's responses, each under its own domain's condition.", ("reward/score",)),
    Group(
        "Gold by domain",
        "What exact rules say of the same responses, never trained on. Score up and gold down is reward hacking.",
        prefix="gold/",
    ),
    Group("KL from the SFT model", "Nats per response: how far the policy has moved.", ("kl",), zero=True),
    Group("Reward score by domain", "The mean score of each domain.", prefix="reward/score/"),
    Group("Response length", "Mean tokens per response.", ("response_length",)),
    Group("Finished responses", "Share that ended by themselves before the token limit.", ("finished",)),
    Group("Validation score", "Reward score on held-out prompts.", ("validation/score",)),
    Group("Validation gold", "Exact rules on held-out prompts.", ("validation/gold",)),
    Group("Validation gold by domain", "Exact rules on held-out prompts.", prefix="validation/gold/"),
    Group("Validation score by domain", "Reward score on held-out prompts.", prefix="validation/score/"),
    Group("Policy loss", "Clipped surrogate; its level says little, jumps say something.", ("loss/policy",)),
    Group("Value loss", "Half the critic's squared error.", ("loss/value",)),
    Group("Pretraining loss", "Cross-entropy on pretraining text; rising means forgetting.", ("loss/pretrain",)),
    Group(
        "Seconds per step by phase",
        "Stacked; phases that run side by side can add up to more than the step.",
        prefix="time/",
        stacked=True,
    ),
    Group("Tokens per second", "Over the whole step.", ("tokens_per_second",), zero=True),
)
TRAINING_GROUPS = (
    Group("Loss", "Per optimiser step.", ("loss",)),
    Group("Parts of the loss", "What the loss is the sum of, before weighting.", prefix="loss/"),
    Group("Accuracy", "Share of pairs in which the chosen response scores higher.", ("accuracy",)),
    Group("Accuracy by domain", "The same for each domain.", prefix="accuracy/"),
    Group("Learning rate", "", ("learning_rate",), zero=True),
    Group("Gradient norm", "Before clipping.", ("grad_norm", "gradient_norm"), zero=True),
    Group("Tokens per second", "", ("tokens_per_second",), zero=True),
    Group("Seconds per step by phase", "Stacked.", prefix="time/", stacked=True),
)


def numeric_fields(rows: Sequence[Row]) -> list[str]:
    """Names of the metrics that occur, in the order of first appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update((k, None) for k, v in row.items() if k not in KEYS and not isinstance(v, bool))
    return list(names)


def charts(rows: Sequence[Row], groups: Sequence[Group]) -> tuple[list[Chart], list[Chart]]:
    """The charts of one stage over all its rounds: those the groups describe, then one for each remaining family of
    names."""
    fields = numeric_fields(rows)
    described = [(group, group.pick(fields)) for group in groups]
    seen = {name for _, names in described for name in names}
    families: dict[str, list[str]] = {}
    for name in fields:
        if name not in seen:
            families.setdefault(name.partition("/")[0], []).append(name)
    others = [(Group(family.replace("_", " "), "", prefix=f"{family}/"), names) for family, names in families.items()]
    axis = _Axis(rows)
    main = [_chart(group, names, axis) for group, names in described if names]
    return main, [_chart(group, names, axis) for group, names in others]


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
        several = len(rounds) > 1
        self.labels = [f"round {r['round']}, step {r['step']}" if several else f"step {r['step']}" for r in rows]
        self.rounds = [row["round"] for row in rows]
        self.starts = offsets if several else {}
        self.shaded = self._spans(lambda row: bool(row.get("warmup")))

    def _spans(self, holds: Callable[[Row], bool]) -> list[tuple[float, float]]:
        spans: list[tuple[float, float]] = []
        for x, row in zip(self.x, self.rows, strict=True):
            if holds(row):
                if spans and spans[-1][1] == x - 1:
                    spans[-1] = (spans[-1][0], float(x))
                else:
                    spans.append((x - 1.0, float(x)))
        return spans


def _chart(group: Group, names: Sequence[str], axis: _Axis) -> Chart:
    series = [Series(group.label(name), [row.get(name) for row in axis.rows]) for name in names]
    used = [i for i in range(len(axis.x)) if any(s.values[i] is not None for s in series)]
    first, last = axis.x[used[0]], axis.x[used[-1]]
    pieces = [axis.rounds[i] for i in used]
    return Chart(
        title=group.title,
        explanation=group.explanation,
        x=[axis.x[i] for i in used],
        x_labels=[axis.labels[i] for i in used],
        series=[Series(s.name, [s.values[i] for i in used]) for s in series],
        stacked=group.stacked,
        zero=group.zero,
        dividers=[(max(axis.starts[n], first), f"round {n}") for n in dict.fromkeys(pieces) if n in axis.starts],
        pieces=pieces,
        shaded=[(max(a, first), min(b, last)) for a, b in axis.shaded if b > first and a < last],
    )
