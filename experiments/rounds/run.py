"""Three rounds against one long one, with noisy labels; see README.md.

.venv/bin/python experiments/rounds/run.py --seeds 101 102 103
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from results import collect, draw, table

HERE = Path(__file__).parent
ITERATIONS = 60  # of PPO, in all rounds together
ROUNDS = 3
NOISE = 0.2  # share of all labels that are turned round: of given pairs, sampled pairs and those between rounds
RUN = (
    "+experiment=demo",
    "data.world.sft=12000",
    "data.world.preferences=6000",
    f"data.world.label_noise={NOISE}",
    "collect.prompts=500",
    f"collect.label_noise={NOISE}",
    "ppo.kl_coefficient=0.01",
    "ppo.critic_warmup=5",
    "ppo.validate_every=2",
    "ppo.validation_prompts=100",
    "data.world.validation=300",
    "online.prompts=300",
    "online.samples_per_prompt=3",
    "online.pairs=2000",
    "online.epochs=1",  # a second time the model learns the noise
    f"annotate.rule_noise={NOISE}",
)
ARMS = {
    "one": ("online.rounds=1", f"ppo.iterations={ITERATIONS}", "online.prompts=0"),  # no round comes after it
    "three": (f"online.rounds={ROUNDS}", f"ppo.iterations={ITERATIONS // ROUNDS}", "online.policy_from=sft"),
}
EVALUATE = ("stage=evaluate", "evaluate.best_of=0", "evaluate.baseline_pairs=0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--runs", type=Path, default=Path("outputs/rounds"), help="folder of the runs' outputs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("overrides", nargs="*", help="key=value settings for all runs")
    arguments = parser.parse_args()

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda seed: begin(seed, arguments.runs, arguments.overrides), arguments.seeds))
        arms = itertools.product(ARMS, arguments.seeds)
        list(pool.map(lambda arm: run(*arm, arguments.runs, arguments.overrides), arms))
    results = collect(arguments.runs, arguments.seeds, list(ARMS), ITERATIONS // ROUNDS)
    (HERE / "results.json").write_text(f"{json.dumps(results, indent=1)}\n", encoding="utf-8")
    (HERE / "table.md").write_text(table(results), encoding="utf-8")
    draw(results, HERE / "curves.svg")
    print(table(results))


def begin(seed: int, runs: Path, overrides: Sequence[str]) -> None:
    """SFT and the first reward model, which both arms share: the run so far, copied for each."""
    folder = runs / f"begun_{seed}"
    if not (folder / "rounds/0/reward_model").exists():
        execute(folder, [*RUN, *overrides, f"seed={seed}", "stage=reward"])
    for arm in ARMS:
        if not (runs / f"{arm}_{seed}").exists():
            shutil.copytree(folder, runs / f"{arm}_{seed}", symlinks=True)


def run(arm: str, seed: int, runs: Path, overrides: Sequence[str]) -> None:
    """The rest of an arm and its evaluation on the test prompts; what is done is not done again."""
    folder = runs / f"{arm}_{seed}"
    for stage, product in (((), "chat_model"), (EVALUATE, "evaluation.json")):
        if not (folder / product).exists():
            execute(folder, [*RUN, *ARMS[arm], *overrides, f"seed={seed}", *stage])
            print(f"{product} of {folder}", flush=True)


def execute(output: Path, overrides: Sequence[str]) -> None:
    """The command in ``output``, with what it says in a file beside."""
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cool_rlhf.run", *overrides, f"output_dir={output}", "logging.progress=false"]
    with (output.parent / f"{output.name}.log").open("a", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    main()
