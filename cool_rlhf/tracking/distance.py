"""Score and gold over the distance from the SFT model, where their parting is easiest to see (Gao et al.,
arXiv 2210.10760)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from cool_rlhf.online.overoptimisation import FEWEST_POINTS, Parting, fit_reward, parting
from cool_rlhf.tracking.figures import Chart, Curve

FITTED_POINTS = 40


@dataclass(frozen=True)
class Validations:
    """What validation measured, in the order of training. ``kl``: in nats, at least 0."""

    steps: list[int]
    rounds: list[int]
    kl: list[float]
    score: list[float]
    gold: list[float]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Validations:
        """Those of PPO whose gold is known."""
        own = [row for row in rows if row["stage"] == "ppo" and "validation/gold" in row]
        return cls(
            [row["step"] for row in own],
            [row["round"] for row in own],
            [max(0.0, row["validation/kl"]) for row in own],  # an estimate near 0 may lie below it
            [row["validation/score"] for row in own],
            [row["validation/gold"] for row in own],
        )

    def of_round(self, round: int) -> Validations:
        chosen = [place for place, own in enumerate(self.rounds) if own == round]
        columns = (self.steps, self.rounds, self.kl, self.score, self.gold)
        return Validations(*([column[place] for place in chosen] for column in columns))  # type: ignore[arg-type]


def parted(rows: Sequence[Mapping[str, Any]], round: int) -> Parting:
    """Whether score and gold part in ``round``: a reward model is one measure only until the next one is trained."""
    own = Validations.of(rows).of_round(round)
    return parting(own.kl, own.score, own.gold)


def trends(found: Parting) -> dict[str, float]:
    """Where score and gold are heading, for the metrics: units of each a √nat; nothing with too few validations."""
    if found.points < FEWEST_POINTS:
        return {}
    return {
        "overoptimisation/score_slope": found.score_slope,
        "overoptimisation/gold_slope": found.gold_slope,
        "overoptimisation/parted": float(found.parted),
    }


def distance_chart(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Score and gold above the first validation's over √KL, and Gao et al.'s form fitted to gold. None with fewer than
    three points away from the start."""
    found = Validations.of(rows)
    if sum(kl > 0 for kl in found.kl) < 3:
        return None
    x = [sqrt(kl) for kl in found.kl]
    score = [value - found.score[0] for value in found.score]
    gold = [value - found.gold[0] for value in found.gold]
    fit = fit_reward(found.kl, gold, "rl")
    distances = [max(x) * place / FITTED_POINTS for place in range(FITTED_POINTS + 1)]
    alone = [0] * len(distances)
    return Chart(
        title="Score and gold by distance",
        explanation=(
            "Above the first validation's, over the distance from the SFT model. Gold that bends down while the score "
            f"rises is over-optimisation. Fitted to gold: d ({fit.alpha:.2f} − {fit.beta:.2f} log d)."
        ),
        x_axis="√KL, nats",
        y_axis="above the start",
        curves=[
            Curve("score", x, score, found.rounds),
            Curve("gold", x, gold, found.rounds),
            Curve("gold, fitted", distances, [fit(d) for d in distances], alone),
        ],
        zero=True,
        steps=False,
    )
