"""evaluation.json in the report: its tables in short, and whether the run has gone on since it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cool_rlhf.tracking.metrics import KEYS
from cool_rlhf.tracking.summary import flat
from cool_rlhf.tracking.text import number_text, time_text

# Of evaluation.json, what evaluation.html shows better.
DETAILS = (
    "reward_accuracy_under_others",
    "reward_calibration",
    "reward_scores",
    "reward_length",
    "reward_subsets",
    "rewardbench",
    "baselines",
    "best_of_n",
)
STAMP = "measured"


def stamp(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For evaluation.json: now, and the newest of the run's ``rows``; None where it has none."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"time": now, "after": {key: rows[-1][key] for key in KEYS} if rows else None}


def evaluated(evaluation: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For the page: ``tables``, ``notes``, and ``measured`` (None where it does not say, as earlier versions did not):
    the ``time``, the row ``after`` which that was, and whether the run has ``gone_on`` since."""
    made = evaluation.get(STAMP)
    measured = None
    if made is not None:
        newest = {key: rows[-1][key] for key in KEYS} if rows else None
        time = time_text(datetime.fromisoformat(made["time"]))
        measured = {"time": time, "after": made["after"], "gone_on": made["after"] != newest}
    shown = {name: value for name, value in evaluation.items() if name not in (*DETAILS, STAMP, "notes")}
    return {"tables": _tables(shown), "notes": evaluation.get("notes", []), "measured": measured}


def _tables(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A mapping of mappings of numbers becomes a matrix, all else a list of names and values."""
    tables = []
    plain: dict[str, Any] = {}
    for name, value in evaluation.items():
        inner = list(value.values()) if isinstance(value, Mapping) else []
        if inner and all(isinstance(row, Mapping) for row in inner):
            rows = {key: flat({column: _estimate(cell) for column, cell in row.items()}) for key, row in value.items()}
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            body = [(key, [row.get(column, "") for column in columns]) for key, row in rows.items()]
            tables.append({"name": name, "columns": columns, "rows": body})
        elif isinstance(value, Mapping):
            tables.append({"name": name, "columns": [""], "rows": [(k, [v]) for k, v in flat(value).items()]})
        else:
            plain[name] = value
    if plain:
        tables.insert(0, {"name": "", "columns": [""], "rows": [(name, [value]) for name, value in plain.items()]})
    return tables


def _estimate(cell: Any) -> Any:
    """A mean with its standard error, or an accuracy with its interval, as one cell; anything else as it is."""
    if isinstance(cell, Mapping) and "standard_error" in cell:
        error, prompts = cell["standard_error"], cell.get("prompts")
        told = number_text(cell["mean"]) + (f" ± {number_text(error)}" if error is not None else "")
        return told + (f" ({prompts} prompts)" if prompts is not None else "")
    if isinstance(cell, Mapping) and "interval" in cell:
        ends = f" [{', '.join(map(number_text, cell['interval']))}]" if cell["interval"] is not None else ""
        return number_text(cell["accuracy"]) + ends
    return cell
