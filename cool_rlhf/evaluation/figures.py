"""The charts of evaluation.html, from evaluation.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cool_rlhf.evaluation.comparison import WITH_GOLD
from cool_rlhf.evaluation.tables import NAMES, OVERALL, Evaluation, all_compared
from cool_rlhf.tracking.figures import COLOURS, label_text, plain_layout

GREY = "rgba(128,136,146,0.8)"
CONDITIONS = {"own": "own condition", "other": "other conditions", "none": "no condition"}


@dataclass(frozen=True)
class EvaluationChart:
    """``traces`` and ``layout`` as plotly takes them."""

    title: str
    explanation: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]


def charts(evaluation: Evaluation) -> dict[str, list[EvaluationChart]]:
    """Section → charts; a section with nothing to show is left out."""
    sections = {
        "Accuracy": [*_accuracy(evaluation), *_baselines(evaluation), *_sections(evaluation)],
        "Calibration and length": [*_reliability(evaluation), *_lengths(evaluation)],
        "Scores under their own condition": _histograms(evaluation),
        "Best of n": _best_of_n(evaluation),
    }
    return {title: drawn for title, drawn in sections.items() if drawn}


def to_figure(chart: EvaluationChart) -> Any:
    import plotly.graph_objects as go

    return go.Figure(list(chart.traces), go.Layout(chart.layout))


def _accuracy(evaluation: Evaluation) -> list[EvaluationChart]:
    titles = {
        "reward_accuracy": (
            "Accuracy by condition",
            "Share of held-out pairs whose chosen response scores higher, with 95 % intervals by prompt.",
        ),
        "opposed_accuracy": (
            "Pairs that two domains judge oppositely",
            "Near 1 under the own condition and near 0 under the opposite one: the condition decides.",
        ),
    }
    return [
        _by_domain(title, explanation, _conditions(evaluation[name]), _shares("", "accuracy"))
        for name, (title, explanation) in titles.items()
        if name in evaluation
    ]


def _conditions(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    named = {
        title: {domain: row[kind] for domain, row in table.items() if row.get(kind)}
        for kind, title in CONDITIONS.items()
    }
    return {title: rows for title, rows in named.items() if rows}


def _baselines(evaluation: Evaluation) -> list[EvaluationChart]:
    if "baselines" not in evaluation:
        return []
    rows = {"reward model": {domain: row["own"] for domain, row in evaluation["reward_accuracy"].items()}}
    rows |= {NAMES[name]: table for name, table in evaluation["baselines"].items()}
    explanation = "A reward model that is not above both has learnt nothing that length or words do not tell."
    return [_by_domain("Beside the baselines", explanation, rows, _shares("", "accuracy"))]


def _sections(evaluation: Evaluation) -> list[EvaluationChart]:
    if "rewardbench" not in evaluation:
        return []
    rows = {name: row["score"] for name, row in evaluation["rewardbench"]["sections"].items()}
    explanation = "Sections as RewardBench weighs them, with 95 % intervals by prompt."
    return [_by_domain("RewardBench", explanation, {"score": rows}, _shares("", "score"))]


def _reliability(evaluation: Evaluation) -> list[EvaluationChart]:
    if "reward_calibration" not in evaluation:
        return []
    diagonal = {
        "type": "scatter", "x": [0.5, 1], "y": [0.5, 1], "mode": "lines", "hoverinfo": "skip", "showlegend": False,
        "line": {"color": GREY, "dash": "dot", "width": 1},
    }  # fmt: skip
    traces: list[dict[str, Any]] = [diagonal]
    for index, (domain, row) in enumerate(evaluation["reward_calibration"].items()):
        bins = [one for one in row["bins"] if one["pairs"]]
        shares = [one["pairs"] / row["pairs"] for one in bins]
        traces.append(
            {
                "type": "scatter",
                "name": label_text(domain),
                "x": [one["confidence"] for one in bins],
                "y": [one["accuracy"] for one in bins],
                "customdata": [one["pairs"] for one in bins],
                "hovertemplate": "confidence %{x:.3f}, accuracy %{y:.3f}, %{customdata} pairs",
                "mode": "lines+markers",
                "line": {"color": COLOURS[index % len(COLOURS)], "width": 1.5},
                "marker": {"size": [6 + 22 * share for share in shares]},
                "visible": True if domain == OVERALL else "legendonly",
            }
        )
    layout = _shares("confidence σ(|Δ|)", "accuracy")
    layout["xaxis"] = {**layout["xaxis"], "range": [0.48, 1.02]}
    explanation = (
        "On the dotted line a confidence of 0.8 is right in 80 % of the pairs; above it the model is too modest. "
        "Larger dots stand for more pairs. Domains appear when their name is clicked."
    )
    return [EvaluationChart("Reliability of σ(Δ)", explanation, traces, layout)]


def _lengths(evaluation: Evaluation) -> list[EvaluationChart]:
    if "reward_length" not in evaluation:
        return []
    rows = {
        domain: {"accuracy": row["correlation"], "interval": row["interval"]}
        for domain, row in evaluation["reward_length"].items()
        if row["correlation"] is not None
    }
    layout = plain_layout("", "rank correlation")
    layout["yaxis"] = {**layout["yaxis"], "range": [-1.05, 1.05], "zeroline": True}
    explanation = "Spearman's correlation of a response's score with its length in characters."
    return [_by_domain("Score and length", explanation, {"correlation": rows}, layout)] if rows else []


def _histograms(evaluation: Evaluation) -> list[EvaluationChart]:
    if "reward_scores" not in evaluation:
        return []
    scores = evaluation["reward_scores"]
    edges, bound = scores["edges"], scores["bound"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    layout = {**plain_layout("score", "responses"), "barmode": "overlay", "bargap": 0, "showlegend": True}
    line = {"color": GREY, "width": 1, "dash": "dot"}
    layout["shapes"] = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line} for x in (-bound, bound)
    ]
    found = []
    for domain, row in scores["domains"].items():
        traces = [
            {
                "type": "bar",
                "name": name,
                "x": middles,
                "y": counts,
                "marker": {"color": colour, "line": {"width": 0}},
                "opacity": 0.6,
                "hovertemplate": "%{y} around %{x:.2f}",
            }
            for name, counts, colour in zip(("chosen", "rejected"), row["counts"], COLOURS, strict=False)
        ]
        outside = " and ".join(f"{100 * share:.1f} %" for share in row["outside"])
        explanation = f"{outside} of chosen and rejected responses beyond ±{bound:g}."
        found.append(EvaluationChart(domain, explanation, traces, layout))
    return found


def _best_of_n(evaluation: Evaluation) -> list[EvaluationChart]:
    curves = evaluation.get("best_of_n", {})
    if not curves:
        return []
    row_name, prompts = all_compared(curves)
    over = f" Over the prompts that have gold ({prompts})." if row_name == WITH_GOLD else ""
    titles = {
        "gold": (
            "Gold reward",
            f"Of the best of n = {', '.join(curves['by_score'])} SFT responses by either judge, with standard errors. "
            "What the best by score lacks, the reward model does not see.",
        ),
        "score": ("Reward score", "Of the same responses, with standard errors."),
    }
    found = []
    for measure, (title, explanation) in titles.items():
        traces = []
        for index, (kind, rows) in enumerate(curves.items()):
            points = [(row["kl"], n, row["domains"][row_name].get(measure)) for n, row in rows.items()]
            known = [(kl, n, value) for kl, n, value in points if value is not None]
            if known:
                traces.append(
                    {
                        "type": "scatter",
                        "name": f"best {kind.replace('_', ' ')}",
                        "x": [kl for kl, _, _ in known],
                        "y": [value["mean"] for _, _, value in known],
                        "text": [f"n = {n}" for _, n, _ in known],
                        "hovertemplate": "%{text}: %{y:.3f}",
                        "error_y": {"array": [value["standard_error"] for _, _, value in known], "width": 2},
                        "mode": "lines+markers",
                        "line": {"color": COLOURS[index], "width": 2},
                    }
                )
        if traces:
            layout = {**plain_layout("KL from the SFT model, at most, in nats", measure), "showlegend": True}
            found.append(EvaluationChart(title, explanation + over, traces, layout))
    return found


def _shares(x_axis: str, y_axis: str) -> dict[str, Any]:
    layout = plain_layout(x_axis, y_axis)
    line = {"color": GREY, "width": 1, "dash": "dot"}
    half = {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": 0.5, "y1": 0.5, "line": line}
    layout["yaxis"] = {**layout["yaxis"], "range": [-0.02, 1.04], "dtick": 0.2}
    return {**layout, "shapes": [half], "showlegend": True}


def _by_domain(
    title: str, explanation: str, series: Mapping[str, Mapping[str, Any]], layout: Mapping[str, Any]
) -> EvaluationChart:
    """Dots with intervals, one colour a series, side by side above each domain."""
    domains = list(dict.fromkeys(domain for rows in series.values() for domain in rows))
    ticks = {"tickvals": list(range(len(domains))), "ticktext": [label_text(domain) for domain in domains]}
    xaxis = {**layout["xaxis"], **ticks, "range": [-0.5, len(domains) - 0.5], "automargin": True}
    traces = []
    for index, (name, rows) in enumerate(series.items()):
        shift = (index - (len(series) - 1) / 2) * 0.22
        known = [(place, domain, rows[domain]) for place, domain in enumerate(domains) if domain in rows]
        ends = [row["interval"] or (row["accuracy"],) * 2 for _, _, row in known]
        values = [row["accuracy"] for _, _, row in known]
        traces.append(
            {
                "type": "scatter",
                "name": name,
                "x": [place + shift for place, _, _ in known],
                "y": values,
                "text": [label_text(domain) for _, domain, _ in known],
                "hovertemplate": "%{text}: %{y:.3f}",
                "error_y": {
                    "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
                    "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
                    "width": 3,
                    "thickness": 1.5,
                },
                "mode": "markers",
                "marker": {"size": 8, "color": COLOURS[index % len(COLOURS)]},
            }
        )
    return EvaluationChart(title, explanation, traces, {**layout, "xaxis": xaxis, "showlegend": len(series) > 1})
