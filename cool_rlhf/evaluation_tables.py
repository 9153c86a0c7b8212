"""evaluation.json as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TITLES = {
    "reward_accuracy": "Reward model: accuracy on held-out pairs by condition, 95 % interval",
    "opposed_accuracy": "Reward model: pairs that two domains judge oppositely",
}
_MEASURES = {
    "gold": "Gold reward",
    "score": "Reward score under the prompt's own condition",
    "response_length": "Response length in tokens",
    "finished": "Share of responses that ended before the token limit",
}


def describe(evaluation: Mapping[str, Any]) -> str:
    """Everything that was measured, one table below the other."""
    parts = [
        _grid(title, ["domain", "pairs", "prompts", "own", "other", "none"], _accuracy_rows(evaluation[name]))
        for name, title in _TITLES.items()
        if name in evaluation
    ]
    parts.append(f"Responses to {evaluation['prompts']} prompts ({evaluation['prompts_from']})")
    policies = [name for name, table in evaluation.items() if _is_policy(table)]
    for measure, title in _MEASURES.items():
        if measure in evaluation["sft"]["overall"]:
            rows = [
                [domain, str(row["prompts"]), *(_mean(evaluation[name], domain, measure) for name in policies)]
                for domain, row in evaluation["sft"].items()
            ]
            parts.append(_grid(f"{title}, ± standard error", ["domain", "prompts", *policies], rows))
    parts += [f"note: {note}" for note in evaluation["notes"]]
    return "\n\n".join(parts)


def _is_policy(table: Any) -> bool:
    return isinstance(table, Mapping) and "overall" in table


def _accuracy_rows(table: Mapping[str, Any]) -> list[list[str]]:
    return [
        [domain, str(row["pairs"]), str(row["prompts"]), *(_share(row.get(kind)) for kind in ("own", "other", "none"))]
        for domain, row in table.items()
    ]


def _share(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    low, high = value["interval"]
    return f"{value['accuracy']:.3f} [{low:.2f}, {high:.2f}]"


def _mean(table: Mapping[str, Any], domain: str, measure: str) -> str:
    value = table.get(domain, {}).get(measure)
    if value is None:
        return "–"
    error = value["standard_error"]
    return f"{value['mean']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in (columns, *rows))
    ]
    return "\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:]])
