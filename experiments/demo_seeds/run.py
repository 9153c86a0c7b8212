"""Runs an experiment from several seeds and evaluates each; see README.md.

.venv/bin/python experiments/demo_seeds/run.py --seeds 81 82 83
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from memory import run_measured
from results import collect, draw, table

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--experiment", default="demo")
    parser.add_argument("--runs", type=Path, default=Path("outputs/demo_seeds"), help="folder of the runs' outputs")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results.json, table.md, gold.svg")
    parser.add_argument("overrides", nargs="*", help="key=value settings for the runs")
    arguments = parser.parse_args()

    for seed in arguments.seeds:
        folder = arguments.runs / f"seed_{seed}"
        common = [f"+experiment={arguments.experiment}", f"seed={seed}", f"output_dir={folder}", *arguments.overrides]
        run(common, folder)
        evaluate(common, folder)
    results = collect({seed: arguments.runs / f"seed_{seed}" for seed in arguments.seeds})
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (arguments.results / "table.md").write_text(table(results), encoding="utf-8")
    draw(results, arguments.results / "gold.svg")
    print(table(results))


def run(common: list[str], folder: Path) -> None:
    """The pipeline, measured. Only a run in one go says how long it takes: an unfinished one is refused."""
    measured = folder / "usage.json"
    if measured.exists():
        print(f"{folder} is finished")
        return
    if folder.exists():
        sys.exit(f"{folder} holds a run that was not measured to its end: remove it, or choose other --runs")
    print(f"running in {folder}", flush=True)
    usage = run_measured(_command(*common, "logging.progress=false"), folder / "logs" / "command.log")
    measured.write_text(json.dumps(asdict(usage)) + "\n", encoding="utf-8")


def evaluate(common: list[str], folder: Path) -> None:
    if (folder / "evaluation.json").exists():
        return
    print(f"evaluating {folder}", flush=True)
    with (folder / "logs" / "evaluation.log").open("wb") as log:
        subprocess.run(
            _command(*common, "stage=evaluate", "evaluate.best_of=16"), stdout=log, stderr=subprocess.STDOUT, check=True
        )


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cool_rlhf.run", *arguments]


if __name__ == "__main__":
    main()
