"""evaluation.json as tables, for the terminal and for evaluation.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cool_rlhf.evaluation.comparison import OVERALL, WITH_GOLD

NAMES = {"longer_wins": "longer wins", "ngram": "n-gram model"}
_MEASURES = {
    "gold": "Gold reward",
    "score": "Reward score under the prompt's own condition",
    "response_length": "Response length in tokens",
    "finished": "Share of responses that ended before the token limit",
}
Evaluation = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]  # the first cell names the row


def describe(evaluation: Evaluation) -> str:
    """Everything that was measured, one table below the other."""
    return "\n\n".join([*map(_grid, tables(evaluation)), *(f"note: {note}" for note in evaluation["notes"])])


def tables(evaluation: Evaluation) -> list[Table]:
    return [table for make in _TABLES for table in make(evaluation)]


def _accuracy(evaluation: Evaluation) -> list[Table]:
    titles = {
        "reward_accuracy": "Reward model: accuracy on held-out pairs by condition, 95 % interval, ties count half",
        "opposed_accuracy": "Reward model: pairs that two domains judge oppositely; other is the opposite condition",
    }
    kinds = ("own", "other", "none")
    found = []
    for name, title in titles.items():
        if name in evaluation:
            rows = [
                [domain, str(row["pairs"]), str(row["prompts"]), *(_share(row.get(kind)) for kind in kinds)]
                for domain, row in evaluation[name].items()
            ]
            found.append(Table(title, ["domain", "pairs", "prompts", *kinds], rows))
    return found


def _baselines(evaluation: Evaluation) -> list[Table]:
    baselines = evaluation.get("baselines", {})
    if not baselines:
        return []
    columns = ["domain", "reward model", *(NAMES[name] for name in baselines)]
    columns += [f"ahead of {NAMES[name]}" for name in baselines]
    rows = [
        [
            domain,
            _share(row["own"]),
            *(_share(table[domain]) for table in baselines.values()),
            *(_ahead(table[domain]["reward_model_ahead"]) for table in baselines.values()),
        ]
        for domain, row in evaluation["reward_accuracy"].items()
    ]
    return [Table("Reward model under its own condition beside baselines", columns, rows)]


def _scores(evaluation: Evaluation) -> list[Table]:
    if "reward_scores" not in evaluation:
        return []
    spread, lengths = evaluation["reward_scores"], evaluation["reward_length"]
    rows = [
        [
            domain,
            *(f"{mean:+.2f} ± {sd:.2f}" for mean, sd in zip(row["mean"], row["deviation"], strict=True)),
            " / ".join(f"{100 * share:.1f}" for share in row["outside"]),
            _interval(lengths[domain]["correlation"], lengths[domain]["interval"]),
            _number(lengths[domain]["prefers_longer"]),
            _number(lengths[domain]["longer_is_chosen"]),
        ]
        for domain, row in spread["domains"].items()
    ]
    columns = ["domain", "chosen ± sd", "rejected ± sd", f"% beyond ±{spread['bound']:g}"]
    columns += ["rank corr. with length", "prefers longer", "longer is chosen"]
    return [Table("Reward model: scores under their own condition, and how they go with length", columns, rows)]


def _calibration(evaluation: Evaluation) -> list[Table]:
    if "reward_calibration" not in evaluation:
        return []
    names = ("confidence", "accuracy", "expected_error", "brier")
    rows = [
        [domain, str(row["pairs"]), *(f"{row[name]:.3f}" for name in names)]
        for domain, row in evaluation["reward_calibration"].items()
    ]
    columns = ["domain", "pairs", "confidence", "accuracy", "calibration error", "Brier"]
    return [Table("Reward model: calibration of σ(Δ)", columns, rows)]


def _benchmarks(evaluation: Evaluation) -> list[Table]:
    found = []
    if "reward_subsets" in evaluation:
        rows = [[name, str(row["pairs"]), _share(row)] for name, row in evaluation["reward_subsets"].items()]
        found.append(Table("Reward model: accuracy by subset", ["subset", "pairs", "accuracy"], rows))
    bench = evaluation.get("rewardbench")
    if bench:
        rows = [
            [name, str(row["pairs"]), _share(row["score"]), ", ".join(row["missing"]) or "–"]
            for name, row in bench["sections"].items()
        ]
        rows.append(["mean of all four", "", _number(bench["score"]), ""])
        found.append(Table("RewardBench", ["section", "pairs", "score", "subsets without rows"], rows))
    return found


def _responses(evaluation: Evaluation) -> list[Table]:
    if "sft" not in evaluation:
        return []
    found = []
    policies = [name for name, table in evaluation.items() if _is_policy(table)]
    asked = f"{evaluation['prompts']} prompts ({evaluation['prompts_from']})"
    for measure, title in _MEASURES.items():
        if measure in evaluation["sft"][OVERALL]:
            rows = [
                [
                    domain,
                    str(prompts),
                    *(_mean(evaluation[name].get(domain, {}), measure, prompts) for name in policies),
                ]
                for domain, prompts in _prompts(evaluation["sft"], measure)
            ]
            found.append(Table(f"{title}, ± standard error; {asked}", ["domain", "prompts", *policies], rows))
    return found


def all_compared(curves: Mapping[str, Any]) -> tuple[str, int]:
    """Of ``best_of_n`` the row that is over the same prompts for every judge, and how many these are."""
    domains = curves["by_score"]["1"]["domains"]
    name = WITH_GOLD if WITH_GOLD in domains else OVERALL
    return name, domains[name]["prompts"]


def _best_of_n(evaluation: Evaluation) -> list[Table]:
    curves = evaluation.get("best_of_n", {})
    if not curves:
        return []
    name, prompts = all_compared(curves)
    measures = [measure for measure in ("score", "gold") if measure in curves["by_score"]["1"]["domains"][name]]
    columns = ["n", "KL"] + [f"{measure}, best {kind.replace('_', ' ')}" for kind in curves for measure in measures]
    rows = [
        [n, f"{row['kl']:.2f}"]
        + [_mean(curve[n]["domains"][name], measure, prompts) for curve in curves.values() for measure in measures]
        for n, row in curves["by_score"].items()
    ]
    over = f"prompts{' that have gold' if name == WITH_GOLD else ''} ({prompts})"
    title = f"Best of n SFT responses: mean over {over}, ± standard error; KL at most, in nats"
    return [Table(title, columns, rows)]


_TABLES: Sequence[Callable[[Evaluation], list[Table]]] = (
    _accuracy,
    _baselines,
    _scores,
    _calibration,
    _benchmarks,
    _responses,
    _best_of_n,
)


def _is_policy(table: Any) -> bool:
    return isinstance(table, Mapping) and "score" in (table.get(OVERALL) or {})


def _share(value: Mapping[str, Any] | None) -> str:
    return "–" if value is None else _interval(value["accuracy"], value["interval"])


def _ahead(value: Mapping[str, Any]) -> str:
    interval = value["interval"]
    return f"{value['mean']:+.3f}" + ("" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]")


def _interval(value: float | None, interval: Sequence[float] | None) -> str:
    return _number(value) + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _prompts(table: Mapping[str, Any], measure: str) -> list[tuple[str, int]]:
    """The rows that have ``measure``, and how many prompts it is over there."""
    return [(name, row[measure].get("prompts", row["prompts"])) for name, row in table.items() if measure in row]


def _mean(row: Mapping[str, Any], measure: str, prompts: int) -> str:
    """A dash for one over others than ``prompts``, which is no mean to compare: of a policy chosen by gold, say."""
    value = row.get(measure)
    if value is None or value.get("prompts", row["prompts"]) != prompts:
        return "–"
    error = value["standard_error"]
    return f"{value['mean']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _grid(table: Table) -> str:
    widths = [max(len(cell) for cell in cells) for cells in zip(table.columns, *table.rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in (table.columns, *table.rows))
    ]
    return "\n".join([table.title, lines[0], "-" * len(lines[0]), *lines[1:]])
