"""The results as Markdown and as figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preferences import HUMAN_JUDGED
from results import ALL, HUMAN

ARMS = ("longer wins", "n-gram", "n-gram with domain", "without", "with", "separate")
RIGHT, SWAPPED, BLIND = 0.95, 0.10, (0.45, 0.55)


def verdicts(results: Mapping[str, Any]) -> dict[str, bool]:
    """Which claims the results bear out; those whose models are missing are left out."""
    claims: dict[str, bool] = {}
    rows = results["conflict"]["rows"]
    if "with: right condition" in rows:
        right = rows["with: right condition"]["accuracy"]
        claims[f"conflict: right condition at least {RIGHT}"] = right >= RIGHT
        claims[f"conflict: swapped at most {SWAPPED:.2f}"] = rows["with: swapped"]["accuracy"] <= SWAPPED
        claims["conflict: not below n-gram with domain"] = right >= rows["n-gram with domain"]["accuracy"]
    if "without" in rows:
        claims[f"conflict: without conditions within {BLIND}"] = BLIND[0] <= rows["without"]["accuracy"] <= BLIND[1]
    accuracy = results["accuracy"]
    for name in (*HUMAN_JUDGED, HUMAN):
        if "with" not in accuracy or name not in accuracy["with"]:
            continue
        own = accuracy["with"][name]["accuracy"]
        claims[f"{name}: above longer wins"] = own > accuracy["longer wins"][name]["accuracy"]
        for other, pair in (("n-gram with domain", "with − n-gram with domain"), ("without", "with − without")):
            change = results["differences"].get(pair, {}).get(name)
            if change is not None:
                interval = change["interval"]
                claims[f"{name}: not below {other}"] = change["mean"] >= 0
                claims[f"{name}: not below {other}, within the interval"] = bool(interval and interval[1] >= 0)
    return claims


def table(results: Mapping[str, Any]) -> str:
    parts = [
        ("Accuracy on test pairs by source", accuracy_lines(results)),
        ("Differences, paired", difference_lines(results)),
        ("The conflict set: pairs that stand twice with opposite labels", conflict_lines(results)),
        ("Focal factor", focal_lines(results)),
        ("Barrier on scores", barrier_lines(results)),
        ("Size of model and of data", curve_lines(results)),
        ("Models", model_lines(results)),
        ("Claims", [f"- {'yes' if held else '**no**'}: {claim}" for claim, held in verdicts(results).items()]),
    ]
    return "\n".join(f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts if lines)


def accuracy_lines(results: Mapping[str, Any]) -> list[str]:
    found = results["accuracy"]
    arms = [arm for arm in ARMS if arm in found]
    rows = [["source", "pairs / prompts", *arms]]
    for name in found["longer wins"]:
        data = results["data"].get(name)
        rows.append(
            [name, f"{data['test']} / {data['test_prompts']}" if data else "", *(_share(found[a][name]) for a in arms)]
        )
    return _lines(rows)


def difference_lines(results: Mapping[str, Any]) -> list[str]:
    found = results["differences"]
    if not found:
        return []
    names = list(next(iter(found.values())))
    rows = [["", *names]]
    rows += [[pair, *(_change(row[name]) for name in names)] for pair, row in found.items()]
    return _lines(rows)


def conflict_lines(results: Mapping[str, Any]) -> list[str]:
    found = results["conflict"]
    rows = [["model", f"accuracy ({found['pairs']} pairs, {found['prompts']} prompts)"]]
    return _lines([*rows, *([name, _share(row)] for name, row in found["rows"].items())])


def focal_lines(results: Mapping[str, Any]) -> list[str]:
    head = ["", "pairs"]
    labels = ("gamma 2", "gamma 0")
    rows = [
        [*head, *(f"{label}: accuracy" for label in labels), "difference"]
        + [f"{label}: {what}" for label in labels for what in ("mean gap", "calibration error")]
    ]
    for name, row in results["focal"].items():
        numbers = [f"{row[label][what]:.3f}" for label in labels for what in ("gap", "calibration_error")]
        shares = [_share(row[label]) for label in labels]
        rows.append([name, str(row["pairs"]), *shares, _change(row["difference"]), *numbers])
    return _lines(rows) if len(rows) > 1 else []


def barrier_lines(results: Mapping[str, Any]) -> list[str]:
    rows = [["", "λ 0.02", "λ 0"]]
    found = [results["barrier"].get(arm) for arm in ("with", "with_lambda_0")]
    if None in found:
        return []
    rows += [[name, *(f"{row[name]:.3f}" for row in found if row)] for name in found[0] or {}]
    return _lines(rows)


def curve_lines(results: Mapping[str, Any]) -> list[str]:
    names = [name for name in (*HUMAN_JUDGED, HUMAN, ALL) if name in results["accuracy"]["longer wins"]]
    rows = [["model", "share of prompts", "seeds", "training pairs", *names, "conflict, right condition"]]
    for arm, size, share in (
        ("with_share_0.25", "base", "¼"),
        ("with_share_0.5", "base", "½"),
        ("small_with", "small", "1"),
        ("with", "base", "1"),
        ("large_with", "large", "1"),
        ("150m_without", "150m, no conditions", "1"),
        ("150m_with", "150m", "1"),
    ):
        if arm in results["accuracy"]:
            found, models = results["accuracy"][arm], results["models"][arm]
            conflict = results["conflict"]["rows"].get(f"{arm}: right condition")
            shares = [*(_share(found[name]) for name in names), _share(conflict) if conflict else ""]
            rows.append([size, share, str(len(models["seeds"])), str(models["pairs"]), *shares])
    if len(rows) == 1:
        return []
    plain = results["accuracy"]["longer wins"]
    return _lines([*rows, ["longer wins", "", "", "", *(_share(plain[name]) for name in names), ""]])


def model_lines(results: Mapping[str, Any]) -> list[str]:
    rows = [["model", "seeds", "pairs", "tokens", "cut", "seconds"]]
    for name, row in results["models"].items():
        seeds = " ".join(map(str, row.get("seeds", [])))
        numbers = [str(row.get(key, "")) for key in ("pairs", "tokens", "cut")]
        rows.append([name, seeds, *numbers, f"{row['seconds']:.0f}"])
    return _lines(rows)


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """accuracy.svg and conflict.svg, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "conditional_reward"  # the same results give the same file
    from matplotlib import pyplot

    found = results["accuracy"]
    arms = [arm for arm in ARMS if arm in found]
    names = list(found["longer wins"])
    figure, panel = pyplot.subplots(figsize=(10, 4), layout="constrained")
    for place, arm in enumerate(arms):
        at = [index + (place - (len(arms) - 1) / 2) * 0.12 for index in range(len(names))]
        panel.errorbar(at, *_points([found[arm][name] for name in names]), fmt="o", ms=4, capsize=2, label=arm)
    panel.axhline(0.5, color="0.6", lw=0.8)
    panel.set_xticks(range(len(names)), [name.replace("_", "\n", 1) for name in names])
    panel.set(ylabel="accuracy on test pairs", ylim=(0.2, 1.02))
    panel.grid(axis="y", alpha=0.3)
    panel.legend(ncols=len(arms), fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(folder / "accuracy.svg", metadata={"Date": None})
    pyplot.close(figure)

    kept = ("with: ", "without", "n-gram", "separate")
    rows = {name: row for name, row in results["conflict"]["rows"].items() if name.startswith(kept)}
    figure, panel = pyplot.subplots(figsize=(7, 0.8 + 0.35 * len(rows)), layout="constrained")
    means, errors = _points(list(rows.values()))
    panel.errorbar(means, range(len(rows)), xerr=errors, fmt="o", capsize=2)
    panel.set_yticks(range(len(rows)), list(rows))
    panel.invert_yaxis()
    panel.axvline(0.5, color="0.6", lw=0.8)
    panel.set(xlim=(-0.03, 1.03), xlabel="accuracy on pairs that stand twice with opposite labels")
    panel.grid(axis="x", alpha=0.3)
    figure.savefig(folder / "conflict.svg", metadata={"Date": None})
    pyplot.close(figure)


def _points(rows: list[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    means = [row["accuracy"] for row in rows]
    low = [max(0.0, row["accuracy"] - row["interval"][0]) for row in rows]
    high = [max(0.0, row["interval"][1] - row["accuracy"]) for row in rows]
    return means, [low, high]


def _share(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['accuracy']:.3f} ({low:.2f}–{high:.2f})"


def _change(row: Mapping[str, Any]) -> str:
    if row["interval"] is None:
        return f"{row['mean']:+.3f}"
    low, high = row["interval"]
    return f"{row['mean']:+.3f} ({low:+.2f} to {high:+.2f})"


def _lines(rows: list[list[str]]) -> list[str]:
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return ["| " + " | ".join(row) + " |" for row in rows]
