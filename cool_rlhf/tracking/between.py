"""What the fast and the slow path left between rounds, for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cool_rlhf.folders import round_folders
from cool_rlhf.online.attempts import repetitions
from cool_rlhf.online.starts import described_start
from cool_rlhf.tracking.rows import read_rows

POLICIES = ("sft", "early", "late")
EXAMPLES = 2  # of each finding


def read_between(output_dir: Path) -> list[dict[str, Any]]:
    """One entry a round whose paths have run: ``round``, ``findings``, ``foreseen`` and ``dismissed`` as patterns.json
    has them,
    ``repair`` as repair.json has it (None before the reward model was trained on), the ``pairs`` to label and those of
    them of which labels prefer a side counted (``labels``), and who gave these: ``labellers``."""
    found = []
    for folder in round_folders(output_dir):
        patterns = _json(folder / "fast_path/patterns.json")
        pairs = sum(len(read_rows(folder / name)) for name in ("slow_path/pairs.jsonl", "fast_path/review.jsonl"))
        labels = read_rows(folder / "slow_path/labels.jsonl")
        if patterns is None and not pairs:
            continue
        found.append(
            {
                "round": int(folder.name),
                "findings": (patterns or {}).get("findings", []),
                "foreseen": (patterns or {}).get("foreseen", []),
                "dismissed": (patterns or {}).get("dismissed", []),
                "tested": (patterns or {}).get("tested", 0),
                "repair": _json(folder / "fast_path/repair.json"),
                "pairs": pairs,
                "labels": len(labels),
                "labellers": _labellers(labels),
            }
        )
    return found


def read_starts(output_dir: Path, online: Mapping[str, Any]) -> dict[int, str]:
    """Round → what its policy started from, in a sentence; of a run whose settings ``online`` say so."""
    if not {"policy_from", "cheating"} <= online.keys():
        return {}
    rounds = (int(folder.name) for folder in round_folders(output_dir))
    settings = online["policy_from"], online["cheating"]
    return {round: described_start(output_dir, round, *settings) for round in rounds}


def between_rounds(records: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For the page: what each round found, what its repair did, and how SFT, the early and the late policy answered."""
    answered = {row["round"]: row for row in rows if row["stage"] == "online"}
    return [
        {
            **record,
            "findings": [
                *(_finding(finding, record["repair"] or {}) for finding in record["findings"]),
                *(_foreseen(finding, record["repair"] or {}) for finding in record["foreseen"]),
            ],
            "relapsed": _relapsed(record["repair"] or {}),
            "policies": [_policy(policy, answered.get(record["round"], {})) for policy in POLICIES],
        }
        for record in records
    ]


def _labellers(labels: Sequence[Mapping[str, Any]]) -> list[str]:
    """People together, each rule and each judge by its name, which says what it is."""
    entries = (entry.partition(": ") for row in labels for entry in row["labelled_by"])
    return sorted({"people" if kind in ("person", "import") else name for kind, _, name in entries})


def _finding(finding: Mapping[str, Any], repair: Mapping[str, Any]) -> dict[str, Any]:
    verdict = repair.get("verdicts", {}).get(finding["pattern"])
    return {
        "description": finding["description"],
        "domain": finding["domain"] or "all",
        "shares": [finding["shares"].get(policy) for policy in POLICIES],
        "effect": finding["payment"]["effect"],
        "p": finding["p"],
        "patches": sum(finding["patches"].values()),
        "verdict": verdict,
        "outcome": _outcome(finding["pattern"], repair, verdict),
        "examples": finding["examples"][:EXAMPLES],
    }


def _foreseen(finding: Mapping[str, Any], repair: Mapping[str, Any]) -> dict[str, Any]:
    row = _finding(finding, repair)
    return {**row, "description": f"{row['description']} (which no policy has turned to)"}


def _relapsed(repair: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Patterns that earlier rounds mended and that are back, with the share of their held-out pairs that are right."""
    return [(pattern, repair["earlier"][pattern]) for pattern in repair.get("relapsed", [])]


def _outcome(pattern: str, repair: Mapping[str, Any], verdict: Mapping[str, Any] | None) -> str:
    if not repair:
        return "not mended yet"
    if verdict is None:
        return "too few pairs to mend it by"
    if pattern not in repair["kept"]:
        return f"rolled back: {verdict['reason']}"
    times = repetitions(repair).get(pattern)
    often = f", its patches learnt {times} times" if times else ""
    return f"mended in part{often}: {verdict['reason']}" if verdict.get("mended") == "in part" else f"mended{often}"


def _policy(policy: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": policy, **{kind: row.get(f"{kind}/{policy}") for kind in ("score", "gold", "response_length")}}


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
