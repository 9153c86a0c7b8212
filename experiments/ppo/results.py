"""What the arms of a study show beside each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from studies import Study

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def collect(study: Study, runs: Path) -> dict[str, Any]:
    """Arm → seed → measures and curves, of the finished runs."""
    arms: dict[str, dict[str, Any]] = {}
    for arm in study.arms:
        for folder in sorted(runs.glob(f"{arm}_[0-9]*")):
            name, _, seed = folder.name.rpartition("_")
            if name == arm and (folder / "evaluation.json").exists():
                arms.setdefault(arm, {})[seed] = one_run(study, folder)
    return {"question": study.question, "arms": arms}


def one_run(study: Study, folder: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["stage"] == "ppo"]
    judged = [row for row in rows if "validation/score" in row]
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    first, last = judged[0], judged[-1]
    measures = {
        "gold": evaluation["chat_model"]["overall"]["gold"]["mean"],
        "score": last["validation/score"],
        "kl": last["validation/kl"],
        "loss/value, first 10": fmean(row["loss/value"] for row in rows[:10]),
        "explained variance, first 10": fmean(row["value/explained"] for row in rows[:10]),
        "lm_loss, change": last["validation/lm_loss"] - first["validation/lm_loss"],
        "instructions, change": last["validation/instructions"] - first["validation/instructions"],
    }
    for domain, row in evaluation["chat_model"].items():
        measures[f"gold, {domain}"] = row["gold"]["mean"]
    curves = {name: [[row[study.over], row[name]] for row in rows if name in row] for name in study.curves}
    sft = {domain: row["gold"]["mean"] for domain, row in evaluation["sft"].items()}
    return {"measures": measures, "sft_gold": sft, "curves": curves}


def table(study: Study, found: Mapping[str, Any]) -> str:
    """Markdown: a row for each arm and seed, and each arm's mean with the deviation between seeds."""
    lines = [study.question, "", f"| | seed | {' | '.join(study.columns)} |", f"|{' --- |' * (2 + len(study.columns))}"]
    for arm, seeds in found["arms"].items():
        rows = {seed: [run["measures"][name] for name in study.columns] for seed, run in seeds.items()}
        lines += [_line(study.arms[arm], seed, [f"{value:.3f}" for value in row]) for seed, row in rows.items()]
        if len(rows) > 1:
            spread = [f"**{fmean(column):.3f}** ± {stdev(column):.3f}" for column in zip(*rows.values(), strict=True)]
            lines.append(_line(study.arms[arm], "mean ± deviation", spread))
    return "\n".join(lines) + "\n"


def _line(*cells: Any) -> str:
    *names, values = cells
    return f"| {' | '.join([*names, *values])} |"


def draw(study: Study, found: Mapping[str, Any], path: Path) -> None:
    """One panel a curve; thin lines are seeds, thick ones their means where all were measured at the same places."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ppo"  # the same results give the same file
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(study.curves), figsize=(10, 3.6), layout="constrained", squeeze=False)
    for panel, curve in zip(panels[0], study.curves, strict=True):
        for colour, (arm, seeds) in zip(COLOURS, found["arms"].items(), strict=False):
            lines = [run["curves"][curve] for run in seeds.values()]
            marker = "o" if study.over != "step" else None
            for line in lines:
                panel.plot(*zip(*line, strict=True), color=colour, lw=0.8, alpha=0.5, marker=marker, ms=3)
            places = [[place for place, _ in line] for line in lines]
            if all(own == places[0] for own in places):
                means = [fmean(line[k][1] for line in lines) for k in range(len(places[0]))]
                panel.plot(places[0], means, color=colour, lw=2, label=study.arms[arm])
            else:
                panel.plot([], [], color=colour, label=study.arms[arm])
        panel.set(xlabel=study.over, ylabel=curve)
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
