"""report.html: the whole run on one page that opens offline and needs nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cool_rlhf.files import read_json_lines, write_atomically
from cool_rlhf.tracking.between import between_rounds, read_between, read_starts
from cool_rlhf.tracking.curves import PPO_SECTIONS, TRAINING_SECTIONS, charts, numeric_fields
from cool_rlhf.tracking.distance import distance_chart, parting_note
from cool_rlhf.tracking.evaluated import evaluated
from cool_rlhf.tracking.figures import figure
from cool_rlhf.tracking.page import render_page
from cool_rlhf.tracking.summary import Best, best_step, domain_changes, flat, phase_times, ppo_changes, stage_times
from cool_rlhf.tracking.text import time_text

STAGE_TITLES = {
    "sft": "Supervised fine-tuning",
    "collect": "Collecting preferences",
    "reward": "Reward model",
    "ppo": "PPO",
    "online": "Between rounds",
    "evaluate": "Evaluation",
}
SAMPLES_PER_DOMAIN = 2


def write_report(output_dir: Path | str) -> Path:
    """Write output_dir/report.html from config.yaml, metrics.jsonl, evaluation.json, samples.jsonl and rounds, as far
    as they are there. Returns its path. Raises ValueError where one of them is damaged beyond a cut last line."""
    import yaml

    output_dir = Path(output_dir)
    config_file, evaluation_file = output_dir / "config.yaml", output_dir / "evaluation.json"
    config = (yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.exists() else None) or {}
    evaluation = json.loads(evaluation_file.read_text(encoding="utf-8")) if evaluation_file.exists() else {}
    html = render(
        config,
        read_json_lines(output_dir / "metrics.jsonl"),
        evaluation,
        read_json_lines(output_dir / "samples.jsonl"),
        read_between(output_dir),
        read_starts(output_dir, config.get("online") or {}),
    )
    path = output_dir / "report.html"
    write_atomically(path, html.encode("utf-8"))
    return path


def render(
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    between: Sequence[Mapping[str, Any]] = (),
    starts: Mapping[int, str] = MappingProxyType({}),
) -> str:
    """The page's text; ``between`` is what :func:`read_between` gives, and ``starts`` says what each round's policy
    started from."""
    ppo = config.get("ppo") or {}
    best = Best(**{name: ppo[f"best_{name}"] for name in ("metric", "mode") if f"best_{name}" in ppo})
    parts = {
        "title": config.get("experiment", "run"),
        "written": time_text(datetime.now().astimezone()),
        "total_seconds": rows[-1]["seconds"] if rows else 0.0,
        "latest": rows[-1] if rows else None,
        "stage_titles": STAGE_TITLES,
        "stage_times": stage_times(rows),
        "rounds": _rounds(rows, best, starts),
        "distance": distance_chart(rows),
        "between": between_rounds(between, rows),
        "stages": _stages([row for row in rows if row["stage"] != "online"]),
        "phases": phase_times([row for row in rows if row["stage"] == "ppo"]),
        "evaluation": evaluated(evaluation, rows) if evaluation else None,
        "settings": _settings(config),
        "samples": _chosen_samples(samples, rows, best),
    }
    return render_page(str(parts["title"]), "body.html.j2", parts, figure)


def _rounds(rows: Sequence[Mapping[str, Any]], best: Best, starts: Mapping[int, str]) -> list[dict[str, Any]]:
    numbers = sorted({row["round"] for row in rows if row["stage"] == "ppo"})
    rounds = []
    for number in numbers:
        own = [row for row in rows if row["stage"] == "ppo" and row["round"] == number]
        rounds.append(
            {
                "round": number,
                "changes": ppo_changes(own, best),
                "domains": domain_changes(own, best),
                "start": starts.get(number),
                "parting": parting_note(own, number),
            }
        )
    return rounds


def _stages(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """PPO first, since that is what a reader looks for, then the stages in the order in which they ran; numbers in
    place of charts where there is one step only."""
    names = list(dict.fromkeys(row["stage"] for row in rows))
    names.sort(key=lambda name: name != "ppo")
    stages = []
    for name in names:
        own = [row for row in rows if row["stage"] == name]
        sections, others = (
            charts(own, PPO_SECTIONS if name == "ppo" else TRAINING_SECTIONS) if len(own) > 1 else ([], [])
        )
        stages.append(
            {
                "name": name,
                "title": STAGE_TITLES.get(name, name),
                "sections": sections,
                "others": others,
                "numbers": {field: own[0][field] for field in numeric_fields(own)} if len(own) == 1 else {},
                "warmup": any(row.get("warmup") for row in own),
            }
        )
    return stages


def _settings(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Section → {dotted key: value}; what stands at the top of the file comes first."""
    top = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    sections = {key: flat(value) for key, value in config.items() if isinstance(value, Mapping) and value}
    return {**({"run": top} if top else {}), **sections}


def _chosen_samples(
    samples: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], best: Best
) -> list[dict[str, Any]]:
    """For every stage and round a few prompts of each domain with what was answered before, at the best validation and
    in the last step sampled; prompts answered most often come first, so that answers can be compared."""
    stages: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for sample in samples:
        stages.setdefault((sample["stage"], sample["round"]), []).append(sample)
    chosen = []
    for (stage, number), own in stages.items():
        steps = sorted({sample["step"] for sample in own})
        kept = best_step([r for r in rows if (r["stage"], r["round"]) == (stage, number)], best)
        shown_steps = {steps[-1]: "last", steps[0]: "first", **({kept: "best"} if kept in steps[1:] else {})}
        prompts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for sample in own:
            if sample["step"] in shown_steps:
                prompts.setdefault((sample["domain"], json.dumps(sample["messages"])), []).append(sample)
        taken: dict[str, int] = {}
        shown = []
        for (domain, _), answers in sorted(prompts.items(), key=lambda item: -len({a["step"] for a in item[1]})):
            taken[domain] = taken.get(domain, 0) + 1
            if taken[domain] <= SAMPLES_PER_DOMAIN:
                shown.append({"domain": domain, "messages": answers[0]["messages"], "answers": answers})
        shown.sort(key=lambda prompt: prompt["domain"])
        chosen.append({"stage": stage, "round": number, "steps": shown_steps, "prompts": shown})
    return chosen
