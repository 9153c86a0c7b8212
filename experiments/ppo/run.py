"""Variants of PPO from the SFT and reward models of finished runs of the demo; see README.md.

.venv/bin/python experiments/ppo/run.py --from outputs/demo_seeds --seeds 81 82 83
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from results import collect, draw, table
from studies import ARMS, OWN_REWARD_MODEL, STUDIES

HERE = Path(__file__).parent
COMMON = (
    "+experiment=demo",
    "online.rounds=1",
    "ppo.iterations=50",
    "online.prompts=0",
    "ppo.validate_every=5",
    "ppo.validation_instructions=40",
)
EVALUATE = ("stage=evaluate", "evaluate.best_of=0", "evaluate.baseline_pairs=0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="finished", type=Path, required=True, help="finished runs, seed_N each")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--runs", type=Path, default=Path("outputs/ppo"), help="folder of the runs' outputs")
    parser.add_argument("--results", type=Path, default=HERE, help="a folder for each study is written here")
    parser.add_argument("overrides", nargs="*", help="key=value settings for all runs")
    arguments = parser.parse_args()
    for arm in arguments.arms:
        for seed in arguments.seeds:
            run(arm, seed, arguments.finished / f"seed_{seed}", arguments.runs / f"{arm}_{seed}", arguments.overrides)
    for name, study in STUDIES.items():
        found = collect(study, arguments.runs)
        if len(found["arms"]) < 2:
            continue
        folder = arguments.results / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(f"{json.dumps(found, indent=1)}\n", encoding="utf-8")
        (folder / "table.md").write_text(table(study, found), encoding="utf-8")
        draw(study, found, folder / "curves.svg")
        print(table(study, found))


def run(arm: str, seed: int, finished: Path, folder: Path, overrides: list[str]) -> None:
    """One arm from one seed, and its evaluation on the test prompts; what is done is not done again."""
    given = [f"sft.path={finished / 'sft'}"]
    if arm not in OWN_REWARD_MODEL:
        given.append(f"reward.path={finished / 'rounds/0/reward_model'}")
    settings = [*COMMON, f"seed={seed}", f"output_dir={folder}", *given, *ARMS[arm], *overrides]
    for stage, product in (((), "chat_model"), (EVALUATE, "evaluation.json")):
        if not (folder / product).exists():
            print(f"{product} of {folder}", flush=True)
            command = [sys.executable, "-m", "cool_rlhf.run", *settings, *stage, "logging.progress=false"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
