"""One reward model over contradictory preferences, with and without conditions, on real data; see README.md.

.venv/bin/python experiments/conditional_reward/run.py --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml
from jobs import SIZES, VOCABULARY, all_jobs
from preferences import read_preferences
from results import collect, kept
from tables import draw, table
from training import train_base, train_job

from cool_rlhf.protocols import UserError

HERE = Path(__file__).parent
CONDITIONS = HERE.parents[1] / "configs" / "conditions" / "default.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with preferences, sft and pretrain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", help="train these arms alone, such as with, without, only_helpful")
    parser.add_argument("--models", type=Path, default=Path("outputs/conditional_reward"), help="folder of the models")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results.json, table.md and the figures")
    parser.add_argument("--keep", action="store_true", help="keep the arms that only the present results.json has")
    arguments = parser.parse_args()
    try:
        experiment(arguments)
    except UserError as error:
        sys.exit(str(error))


def experiment(arguments: argparse.Namespace) -> None:
    pairs = read_preferences(arguments.data)
    written = yaml.safe_load(CONDITIONS.read_text(encoding="utf-8"))
    prompts = {domain: written[domain] for domain in pairs.domains}
    for job in all_jobs(arguments.seeds, pairs.domains):
        if arguments.only and job.name not in arguments.only:
            continue
        folder = arguments.models / f"sft_{job.size}"
        base = train_base(arguments.data, SIZES[job.size], VOCABULARY, folder)
        train_job(job, pairs, prompts, base, arguments.models)
    results = collect(arguments.models, pairs)
    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / "results.json"
    if arguments.keep:
        results = kept(json.loads(file.read_text(encoding="utf-8")), results)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.results / "table.md").write_text(table(results), encoding="utf-8")
    draw(results, arguments.results)
    print(table(results))


if __name__ == "__main__":
    main()
