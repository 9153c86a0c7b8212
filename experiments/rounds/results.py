"""What three rounds give beside one long one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import hypot
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import Any

COLOURS = {"one": "tab:orange", "three": "tab:blue"}


def collect(runs: Path, seeds: Sequence[int], arms: Sequence[str], last: int) -> dict[str, Any]:
    """Seed → arm → gold on the test prompts; score and gold over the iterations, and their
    correlation over the validations of the ``last`` iterations."""
    return {
        str(seed): {arm: one_run(runs / f"{arm}_{seed}", last) for arm in arms}
        for seed in seeds
        if all((runs / f"{arm}_{seed}" / "evaluation.json").exists() for arm in arms)
    }


def one_run(folder: Path, last: int) -> dict[str, Any]:
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ppo = [row for row in rows if row["stage"] == "ppo"]
    iterations = 0
    curve = []
    for row in ppo:
        iterations += not row.get("warmup", False)
        if "validation/gold" in row and not row.get("warmup", False):
            curve.append([iterations, row["round"], row["validation/score"], row["validation/gold"]])
    late = [point for point in curve if point[0] > iterations - last]
    return {
        "gold": evaluation["chat_model"]["overall"]["gold"],
        "sft": evaluation["sft"]["overall"]["gold"]["mean"],
        "curve": curve,
        "correlation": _correlation(late),
        "last": fmean(point[3] for point in late),
        "findings": [
            len(json.loads(file.read_text(encoding="utf-8"))["findings"])
            for file in sorted(folder.glob("rounds/*/fast_path/patterns.json"))
        ],
    }


def _correlation(points: Sequence[Sequence[float]]) -> float | None:
    try:
        return correlation([point[2] for point in points], [point[3] for point in points])
    except StatisticsError:  # one of them never moved
        return None


def gain(seed: Mapping[str, Any]) -> tuple[float, float]:
    """Gold of three rounds less that of one, and its standard error as of two samples: the prompts are the same, so
    it is rather too great."""
    one, three = seed["one"]["gold"], seed["three"]["gold"]
    return three["mean"] - one["mean"], hypot(one["standard_error"], three["standard_error"])


def table(results: Mapping[str, Any]) -> str:
    lines = [
        "| seed | gold: SFT | one round | three rounds | three less one | last third, gold: one / three | "
        "score against gold there: one / three | findings: one / three |",
        f"|{' --- |' * 8}",
    ]
    for seed, arms in results.items():
        means = [arms[arm]["gold"]["mean"] for arm in ("one", "three")]
        difference, error = gain(arms)
        late = [f"{arms[arm]['last']:.3f}" for arm in ("one", "three")]
        related = [_number(arms[arm]["correlation"]) for arm in ("one", "three")]
        found = ["+".join(map(str, arms[arm]["findings"])) or "–" for arm in ("one", "three")]
        lines.append(
            f"| {seed} | {arms['one']['sft']:.3f} | {means[0]:.3f} | {means[1]:.3f} | "
            f"{difference:+.3f} ± {error:.3f} | {' / '.join(late)} | {' / '.join(related)} | {' / '.join(found)} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Score and gold of the validation prompts over all iterations, one column a seed."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "rounds"  # the same results give the same file
    from matplotlib import pyplot

    size = (1 + 3 * len(results), 5)
    figure, panels = pyplot.subplots(2, len(results), figsize=size, sharex=True, squeeze=False, layout="constrained")
    for column, (seed, arms) in enumerate(results.items()):
        for arm, run in arms.items():
            for row, place in enumerate((2, 3)):
                points = run["curve"]
                panels[row][column].plot(
                    [point[0] for point in points],
                    [point[place] for point in points],
                    color=COLOURS[arm],
                    label=f"{arm} round{'s' if arm != 'one' else ''}",
                )
        panels[0][column].set(title=f"seed {seed}", ylabel="score" if column == 0 else None)
        panels[1][column].set(xlabel="iteration", ylabel="gold" if column == 0 else None)
        for row in (0, 1):
            panels[row][column].grid(alpha=0.3)
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
