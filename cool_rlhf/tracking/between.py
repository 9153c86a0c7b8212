"""What the fast and the slow path left between rounds, for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cool_rlhf.data.identity import judged_pair_key
from cool_rlhf.data.rows import DEFAULT_DOMAIN
from cool_rlhf.files import read_json_lines
from cool_rlhf.folders import RoundFolder, round_folders
from cool_rlhf.online.attempts import repetitions
from cool_rlhf.online.responses import POLICIES
from cool_rlhf.online.starts import described_start
from cool_rlhf.protocols import Message

EXAMPLES = 2  # of each finding


def read_between(output_dir: Path) -> list[dict[str, Any]]:
    """One entry a round whose paths have run: ``round``, ``findings``, ``foreseen`` and ``dismissed`` as patterns.json
    has them, ``repair`` as repair.json has it (None before the reward model was trained on), the ``pairs`` to label and
    those of them of which labels prefer a side counted (``labels``), who gave these (``labellers``), and how many
    labels are of pairs that no round asks about now (``unasked``): of other pairs, imported, or of those that a round
    asked about before it was made again. ``tested``: how many patterns were tested for being paid for."""
    folders = round_folders(output_dir)
    labels = {folder: read_json_lines(folder.labels) for folder in folders}
    labelled = {row["id"]: row for rows in labels.values() for row in rows}
    pairs = {folder: _pairs(folder) for folder in folders}
    asked = {pair for found in pairs.values() for pair in found}
    found = []
    for folder in folders:
        patterns = _json(folder.patterns)
        if patterns is None and not pairs[folder]:
            continue
        own = [labelled[pair] for pair in pairs[folder] if pair in labelled]
        found.append(
            {
                "round": folder.round,
                "findings": (patterns or {}).get("findings", []),
                "foreseen": (patterns or {}).get("foreseen", []),
                "dismissed": (patterns or {}).get("dismissed", []),
                "tested": (patterns or {}).get("tested", 0),
                "repair": _json(folder.repair),
                "pairs": len(pairs[folder]),
                "labels": len(own),
                "labellers": _labellers(own),
                "unasked": sum(row["id"] not in asked for row in labels[folder]),
            }
        )
    return found


def read_starts(output_dir: Path, online: Mapping[str, Any]) -> dict[int, str]:
    """Round → what its policy started from, in a sentence; of a run whose settings ``online`` say so."""
    if not {"policy_from", "cheating"} <= online.keys():
        return {}
    rounds = (folder.round for folder in round_folders(output_dir))
    settings = online["policy_from"], online["cheating"]
    return {round: described_start(output_dir, round, *settings) for round in rounds}


def between_rounds(records: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For the page: what each round found, what its repair or a later one did, and how SFT, the early and the late
    policy answered."""
    answered = {row["round"]: row for row in rows if row["stage"] == "online"}
    return [
        {
            **record,
            "findings": [
                *(_finding(finding, records[place:]) for finding in record["findings"]),
                *(_foreseen(finding, records[place:]) for finding in record["foreseen"]),
            ],
            "relapsed": _relapsed(record["repair"] or {}),
            "policies": [_policy(policy, answered.get(record["round"], {})) for policy in POLICIES],
        }
        for place, record in enumerate(records)
    ]


def _pairs(folder: RoundFolder) -> list[str]:
    """The ids of the pairs that a round has left to be labelled, as the store has them, whatever a row says."""
    rows = [row for file in (folder.pairs, folder.review) for row in read_json_lines(file)]
    return [_pair_id(row) for row in rows]


def _pair_id(row: Mapping[str, Any]) -> str:
    first, second = ([*row["prompt"], Message(role="assistant", content=side["text"])] for side in row["responses"])
    first_finished, second_finished = (side.get("finished", True) for side in row["responses"])
    return judged_pair_key(first, second, first_finished, second_finished, row.get("domain") or DEFAULT_DOMAIN)


def _labellers(labels: Sequence[Mapping[str, Any]]) -> list[str]:
    """People together, each rule and each judge by its name, which says what it is."""
    entries = (entry.partition(": ") for row in labels for entry in row["labelled_by"])
    return sorted({"people" if kind in ("person", "import") else name for kind, _, name in entries})


def _finding(finding: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``records``: of the round that found it and of those after it."""
    tried = next((record for record in records if _has_tried(finding["pattern"], record["repair"] or {})), None)
    repair = tried["repair"] if tried else {}
    verdict = repair.get("verdicts", {}).get(finding["pattern"])
    later = f" after round {tried['round']}" if tried and tried is not records[0] else ""
    return {
        "pattern": finding["pattern"],
        "description": finding["description"],
        "domain": finding["domain"] or "all",
        "shares": [finding["shares"].get(policy) for policy in POLICIES],
        "effect": finding["payment"]["effect"],
        "p": finding["p"],
        "patches": sum(finding["patches"].values()),
        "verdict": verdict,
        "outcome": _outcome(finding, repair, verdict, later),
        "examples": finding["examples"][:EXAMPLES],
    }


def _has_tried(pattern: str, repair: Mapping[str, Any]) -> bool:
    return pattern in repair.get("verdicts", {}) or pattern in repair.get("not_judged", [])


def _foreseen(finding: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row = _finding(finding, records)
    return {**row, "description": f"{row['description']} (which no policy has turned to)"}


def _relapsed(repair: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Patterns that earlier rounds mended and that are back, with the share of their held-out pairs that are right."""
    return [(pattern, repair["earlier"][pattern]) for pattern in repair.get("relapsed", [])]


def _outcome(
    finding: Mapping[str, Any], repair: Mapping[str, Any], verdict: Mapping[str, Any] | None, later: str
) -> str:
    """``repair``: the first that tried the pattern, empty where none has; ``later`` says when, if not in its round."""
    pattern = finding["pattern"]
    if not any(finding["patches"].values()):
        return "not mended: the answers hold no pair to mend it by"
    if not repair:
        return "not mended yet"
    if verdict is None and "before" in repair and repair["before"] is None:
        return f"not mended{later}: no general pairs to judge that by"
    if verdict is None:
        return f"not mended{later}: too few held-out pairs to judge that by"
    if pattern not in repair["kept"]:
        return f"rolled back{later}: {verdict['reason']}"
    times = repetitions(repair).get(pattern)
    often = f", its patches learnt {times} times" if times else ""
    in_part = verdict.get("mended") == "in part"
    return f"mended in part{later}{often}: {verdict['reason']}" if in_part else f"mended{later}{often}"


def _policy(policy: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": policy, **{kind: row.get(f"{kind}/{policy}") for kind in ("score", "gold", "response_length")}}


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
