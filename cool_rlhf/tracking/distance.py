"""Score and gold over the distance from the SFT model, where their parting is easiest to see (Gao et al.,
arXiv 2210.10760)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from cool_rlhf.derived_settings import FEWEST_VALIDATIONS
from cool_rlhf.online.overoptimisation import Parting, fit_reward, parting
from cool_rlhf.tracking.figures import Chart, Curve

FITTED_POINTS = 40


@dataclass(frozen=True)
class Validations:
    """What validation measured, in the order of training: score and gold of the same responses. ``kl``: in nats, at
    least 0."""

    steps: list[int]
    rounds: list[int]
    kl: list[float]
    score: list[float]
    gold: list[float]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Validations:
        """Those of PPO whose gold is known."""
        found = [(row, _score(row)) for row in rows if row["stage"] == "ppo" and "validation/gold" in row]
        own = [(row, score) for row, score in found if score is not None]
        return cls(
            [row["step"] for row, _ in own],
            [row["round"] for row, _ in own],
            [max(0.0, row["validation/kl"]) for row, _ in own],  # an estimate near 0 may lie below it
            [score for _, score in own],
            [row["validation/gold"] for row, _ in own],
        )

    def of_round(self, round: int) -> Validations:
        chosen = [place for place, own in enumerate(self.rounds) if own == round]
        columns = (self.steps, self.rounds, self.kl, self.score, self.gold)
        return Validations(*([column[place] for place in chosen] for column in columns))  # type: ignore[arg-type]


def score_beside_gold(scores: Sequence[float], gold: Sequence[float | None]) -> dict[str, float]:
    """For the metrics: the mean score of the responses whose gold is known; nothing where that is all of them, or none.
    A score that rises in domains without gold says nothing of gold that falls in others."""
    known = [score for score, own in zip(scores, gold, strict=True) if own is not None]
    return {"overoptimisation/score": sum(known) / len(known)} if 0 < len(known) < len(scores) else {}


def parted(rows: Sequence[Mapping[str, Any]], round: int) -> Parting:
    """Whether score and gold part in ``round``: a reward model is one measure only until the next one is trained."""
    own = Validations.of(rows).of_round(round)
    return parting(own.kl, own.score, own.gold)


def trends(found: Parting) -> dict[str, float]:
    """Where score and gold are heading, for the metrics: units of each a √nat; nothing with too few validations."""
    if found.points < FEWEST_VALIDATIONS:
        return {}
    return {
        "overoptimisation/score_slope": found.score_slope,
        "overoptimisation/gold_slope": found.gold_slope,
        "overoptimisation/parted": float(found.parted),
    }


def parting_note(rows: Sequence[Mapping[str, Any]], round: int) -> str | None:
    """For the report: where score and gold parted in ``round``, or that it has too few validations to tell; None where
    neither holds, or gold is not known."""
    own = Validations.of(rows).of_round(round)
    warned = {row["step"] for row in rows if row["round"] == round and row.get("overoptimisation/parted")}
    first = next((step for step in own.steps if step in warned), None)
    if first is not None:
        until = [place for place, step in enumerate(own.steps) if step <= first]
        best = own.steps[max(until, key=lambda place: own.gold[place])]
        return (
            f"Score and gold part at step {first}: over the validations until then the score rises along √KL while "
            f"gold falls, so the policy exploits the reward model. Gold was best at step {best}."
        )
    if 0 < len(own.steps) < FEWEST_VALIDATIONS:
        return (
            f"Whether score and gold part is not known: that takes {FEWEST_VALIDATIONS} validations of a round, and "
            f"this one has {len(own.steps)} (ppo.validate_every)."
        )
    return None


def distance_chart(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Each round's score and gold above its first validation's over √KL, and Gao et al.'s form fitted to its gold: the
    rounds' scores come from different reward models. Rounds with fewer than three points away from the start are left
    out; None where all are.

    The form is of gold above the SFT model's, which the run's first validation stands for: gold is the same measure in
    all rounds.
    """
    found = Validations.of(rows)
    every = [found.of_round(round) for round in dict.fromkeys(found.rounds)]
    drawn = [own for own in every if sum(kl > 0 for kl in own.kl) >= 3]
    curves: list[Curve] = []
    fitted: list[str] = []
    for own in drawn:
        group = f"round {own.rounds[0]}" if len(drawn) > 1 else ""
        named = group and f", {group}"
        x = [sqrt(kl) for kl in own.kl]
        fit = fit_reward(own.kl, [gold - found.gold[0] for gold in own.gold])
        distances = [min(x) + (max(x) - min(x)) * place / FITTED_POINTS for place in range(FITTED_POINTS + 1)]
        start = own.gold[0] - found.gold[0]
        modelled = [fit(distance) - start for distance in distances]
        curves += [
            Curve(f"score{named}", x, [score - own.score[0] for score in own.score], own.rounds, group, "8px,3px"),
            Curve(f"gold{named}", x, [gold - own.gold[0] for gold in own.gold], own.rounds, group),
            Curve(f"gold, fitted{named}", distances, modelled, [0] * len(distances), group, "dot"),
        ]
        fitted.append(f"d ({fit.alpha:.2f} − {fit.beta:.2f} log d){named}")
    if not drawn:
        return None
    return Chart(
        title="Score and gold by distance",
        explanation=(
            "Of the responses whose gold is known, above the round's first validation, over the distance from the SFT "
            "model. Gold (solid) that bends down while the score (dashed) rises is over-optimisation. Fitted to gold "
            f"above the run's first (dotted): {'; '.join(fitted)}."
        ),
        x_axis="√KL, nats",
        y_axis="above the round's start",
        curves=curves,
        zero=True,
        whole=False,
    )


def _score(row: Mapping[str, Any]) -> float | None:
    """Of the responses whose gold is known. None where a row of an earlier version does not tell it: where a domain
    lacks gold."""
    if "overoptimisation/score" in row:
        return row["overoptimisation/score"]
    domains = (name for name in row if name.startswith("validation/score/"))
    everywhere = all(name.replace("/score/", "/gold/", 1) in row for name in domains)
    return row["validation/score"] if everywhere else None
