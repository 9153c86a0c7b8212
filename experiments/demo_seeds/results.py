"""What several runs of one experiment show together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

# What the demo has to show.
MIN_GAIN, MIN_ERRORS, MAX_FALL_ERRORS = 0.10, 3.0, 2.0
MIN_ACCURACY, MIN_OPPOSED_OWN, MAX_OPPOSED_OTHER = 0.85, 0.95, 0.10
MIN_OF_BEST = 0.25  # of what the best of 16 SFT responses gains by gold
MAX_SECONDS, MAX_GIB = 900.0, 8.0
_ANSWERS = {True: "yes", False: "**no**", None: "–"}


def collect(folders: Mapping[int, Path]) -> dict[str, Any]:
    """Each seed's measurements, and the gain in gold over all of them."""
    seeds = {str(seed): one_run(folder) for seed, folder in folders.items()}
    gains = [seed["difference"]["overall"]["gold"] for seed in seeds.values()]
    pooled = {
        "gain": fmean(gain["mean"] for gain in gains),
        "standard_error": math.sqrt(sum(gain["standard_error"] ** 2 for gain in gains)) / len(gains),
        "deviation_between_seeds": stdev(gain["mean"] for gain in gains) if len(gains) > 1 else None,
    }
    return {"seeds": seeds, "pooled": pooled}


def one_run(folder: Path) -> dict[str, Any]:
    """Of evaluation.json, metrics.jsonl and, where it was measured, usage.json of a finished run."""
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in evaluation.items() if isinstance(value, dict) and name != "settings"}
    usage = folder / "usage.json"
    return {
        **kept,
        **released_policy(folder),
        "rounds": online_rounds(folder),
        "usage": json.loads(usage.read_text(encoding="utf-8")) if usage.exists() else None,
    }


def online_rounds(folder: Path) -> list[dict[str, Any]]:
    """Of each round: gold of the policy's answers to held-out prompts, and the findings, each with what its pattern
    alone does to gold (None where that cannot be told)."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    gold = {row["round"]: row["gold/late"] for row in rows if row["stage"] == "online"}
    found = {}
    for file in folder.glob("rounds/*/fast_path/patterns.json"):
        findings = json.loads(file.read_text(encoding="utf-8"))["findings"]
        found[int(file.parts[-3])] = {finding["pattern"]: finding["payment"]["gold"] for finding in findings}
    return [{"gold": gold[round], "findings": found.get(round, {})} for round in sorted(gold)]


def released_policy(folder: Path) -> dict[str, Any]:
    """Step and validation KL of the best checkpoint, and the KL of the last step, of the last round."""
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    metric, last_round = settings["ppo"]["best_metric"], settings["online"]["rounds"] - 1
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["stage"] == "ppo" and row["round"] == last_round]
    best = max((row for row in rows if metric in row), key=lambda row: row[metric])
    return {"best_step": best["step"], "kl": best["validation/kl"], "kl_last": rows[-1]["kl"]}


def verdicts(seed: Mapping[str, Any]) -> dict[str, bool | None]:
    """Which of the demo's claims a run bears out; None where it was not measured."""
    gold = {name: row["gold"] for name, row in seed["difference"].items()}
    overall = gold.pop("overall")
    own = [row["own"]["accuracy"] for row in seed["reward_accuracy"].values()]
    opposed = seed["opposed_accuracy"].values()
    best = next(value for name, value in seed.items() if name.endswith("_by_gold"))["overall"]["gold"]["mean"]
    return {
        f"gold up by {MIN_OF_BEST:.2f} or more of what the best of several gains": overall["mean"]
        >= MIN_OF_BEST * (best - seed["sft"]["overall"]["gold"]["mean"]),
        f"gold up by {MIN_GAIN:.2f} or more": overall["mean"] >= MIN_GAIN,
        f"gold up by more than {MIN_ERRORS:.0f} standard errors": overall["mean"]
        > MIN_ERRORS * overall["standard_error"],
        f"no domain down by more than {MAX_FALL_ERRORS:.0f} standard errors": all(
            change["mean"] >= -MAX_FALL_ERRORS * change["standard_error"] for change in gold.values()
        ),
        f"reward model right in {MIN_ACCURACY:.2f} of each domain": min(own) >= MIN_ACCURACY,
        f"opposed pairs: {MIN_OPPOSED_OWN:.2f} with the own condition": all(
            row["own"]["accuracy"] >= MIN_OPPOSED_OWN for row in opposed
        ),
        f"opposed pairs: at most {MAX_OPPOSED_OTHER:.2f} with the other": all(
            row["other"]["accuracy"] <= MAX_OPPOSED_OTHER for row in opposed
        ),
        **_frugal(seed["usage"]),
    }


def _frugal(usage: Mapping[str, float] | None) -> dict[str, bool | None]:
    return {
        f"at most {MAX_SECONDS / 60:.0f} minutes": usage and usage["seconds"] <= MAX_SECONDS,
        f"at most {MAX_GIB:.0f} GiB": usage and usage["peak_gib"] <= MAX_GIB,
    }


def table(results: Mapping[str, Any]) -> str:
    """Markdown: one column a seed."""
    seeds = results["seeds"]
    first = next(iter(seeds.values()))
    rows = [["", *(f"seed {seed}" for seed in seeds)], ["---", *("---" for _ in seeds)]]
    for measure in ("gold", "score"):
        for name in (name for name in first["sft"] if measure in first["sft"][name]):
            rows.append([f"{measure}, {name}", *(_change(seed, name, measure) for seed in seeds.values())])
    best_of = next((name for name in first if name.endswith("_by_gold")), None)
    if best_of:
        rows.append([best_of.replace("_", " "), *(_mean(seed[best_of]["overall"]["gold"]) for seed in seeds.values())])
    rows.append(["KL from SFT, best / last step", *(f"{s['kl']:.2f} / {s['kl_last']:.2f}" for s in seeds.values())])
    rows.append(["best step", *(str(seed["best_step"]) for seed in seeds.values())])
    for key, title in (("reward_accuracy", "accuracy"), ("opposed_accuracy", "opposed pairs")):
        for domain in first[key]:
            rows.append([f"{title}, {domain}: own / other / none", *(_shares(s[key][domain]) for s in seeds.values())])
    rows.append(["gold by round, held-out prompts", *(_golds(seed["rounds"]) for seed in seeds.values())])
    rows.append(["findings by round (gold)", *(_findings(seed["rounds"]) for seed in seeds.values())])
    for measure, title, digits in (("seconds", "wall clock, s", 0), ("peak_gib", "peak PSS, GiB", 2)):
        rows.append([title, *(f"{s['usage'][measure]:.{digits}f}" if s["usage"] else "–" for s in seeds.values())])
    claims = {seed: verdicts(run) for seed, run in seeds.items()}
    for claim in next(iter(claims.values())):
        rows.append([claim, *(_ANSWERS[claims[seed][claim]] for seed in seeds)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    pooled = results["pooled"]
    spread = pooled["deviation_between_seeds"]
    gain = f"Gold after PPO less SFT over all seeds: {pooled['gain']:+.3f} ± {pooled['standard_error']:.3f}"
    lines += ["", gain + (f", standard deviation between seeds {spread:.3f}." if spread is not None else ".")]
    return "\n".join(lines) + "\n"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Gold before and after PPO by domain, one panel a seed; bars are standard errors of the paired difference."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "gold"  # the same results give the same file
    from matplotlib import pyplot

    seeds = results["seeds"]
    figure, panels = pyplot.subplots(
        1, len(seeds), figsize=(1 + 3 * len(seeds), 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (seed, run) in zip(panels[0], seeds.items(), strict=True):
        names = [name for name in reversed(run["sft"]) if "gold" in run["sft"][name]]
        for place, name in enumerate(names):
            before, after = (run[model][name]["gold"]["mean"] for model in ("sft", "chat_model"))
            error = run["difference"][name]["gold"]["standard_error"] or 0.0
            panel.plot([before, after], [place, place], color="0.7", zorder=1)
            panel.plot(before, place, "o", color="0.45", label="SFT" if not place else None)
            label = "after PPO" if not place else None
            panel.errorbar(after, place, xerr=error, fmt="o", color="tab:blue", capsize=2, label=label)
        panel.set(title=f"seed {seed}", xlim=(-0.03, 1.03), xlabel="gold reward, test prompts")
        panel.set_yticks(range(len(names)), names)
        panel.grid(axis="x", alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _change(seed: Mapping[str, Any], name: str, measure: str) -> str:
    before, after = (seed[model][name][measure]["mean"] for model in ("sft", "chat_model"))
    change = seed["difference"][name][measure]
    error = "" if change["standard_error"] is None else f" ± {change['standard_error']:.3f}"
    return f"{before:.3f} → {after:.3f} ({change['mean']:+.3f}{error})"


def _golds(rounds: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{round['gold']:.3f}" for round in rounds)


def _findings(rounds: Sequence[Mapping[str, Any]]) -> str:
    """How many in each round, and what their patterns alone do to gold."""
    golds = [gold for round in rounds for gold in round["findings"].values()]
    shown = ", ".join("–" if gold is None else f"{gold:+.2f}" for gold in golds)
    counts = " + ".join(str(len(round["findings"])) for round in rounds)
    return f"{counts} ({shown})" if golds else counts


def _mean(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['mean']:.3f}"


def _shares(row: Mapping[str, Any]) -> str:
    return " / ".join(f"{row[kind]['accuracy']:.3f}" for kind in ("own", "other", "none"))
