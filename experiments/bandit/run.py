"""A contextual bandit with a known optimum, through the command's own roles; see README.md.

.venv/bin/python experiments/bandit/run.py --seeds 1 2 3 4 5
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from payoff import BEST, GROUPS

HERE = Path(__file__).parent
CONTEXTS = ("K", "Q", "X", "Z")  # a token each: the policy is to learn what pays, not how to read
TRIES = {"train": range(400), "validation": range(1000, 1128)}  # a number in the prompt, which decides nothing
RUN = (
    "+experiment=smoke",
    "stage=ppo",
    "collect.prompts=0",
    r"ppo.rewards={brief:{rules:{payoff\:pay:1.0}}}",
    "sampling.max_new_tokens=2",
    "sampling.top_p=1.0",
    "ppo.iterations=150",
    "ppo.prompts_per_iteration=512",
    "ppo.critic_warmup=3",
    "ppo.epochs=2",
    "ppo.kl_coefficient=0.0",
    "ppo.pretrain_coefficient=0.0",
    "ppo.unfinished_penalty=0.0",
    "ppo.entropy_coefficient=0.2",
    "ppo.entropy_schedule=linear",
    "ppo.policy_learning_rate=4e-3",
    "ppo.critic_learning_rate=4e-3",
    "ppo.learning_rate_schedule=linear",
    "ppo.validate_every=20",
    "ppo.validation_prompts=512",
    "ppo.save_every=1000",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--runs", type=Path, default=Path("outputs/bandit"), help="folder of the runs' outputs")
    parser.add_argument("overrides", nargs="*", help="key=value settings for the runs")
    arguments = parser.parse_args()
    results = {}
    for seed in arguments.seeds:
        folder = arguments.runs / f"seed_{seed}"
        run(folder, seed, arguments.overrides)
        results[str(seed)] = earned(folder)
        print(f"seed {seed}: {results[str(seed)]}", flush=True)
    (HERE / "results.json").write_text(f"{json.dumps(results, indent=1)}\n", encoding="utf-8")
    (HERE / "table.md").write_text(table(results), encoding="utf-8")
    print(table(results))


def run(folder: Path, seed: int, overrides: Sequence[str]) -> None:
    """The command, from fresh weights; a run that is done is not run again."""
    files = {}
    for split, tries in TRIES.items():
        files[split] = folder.parent / f"{folder.name}_{split}.jsonl"
        files[split].parent.mkdir(parents=True, exist_ok=True)
        files[split].write_text("".join(f"{json.dumps(row)}\n" for row in rows(seed, split, tries)), encoding="utf-8")
    data = [f"data.prompts=[{files['train']}]", f"data.validation_prompts=[{files['validation']}]"]
    command = [sys.executable, "-m", "cool_rlhf.run", *RUN, *data, f"seed={seed}", f"output_dir={folder}", *overrides]
    folder.mkdir(exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("w", encoding="utf-8") as log:
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)


def rows(seed: int, split: str, tries: range) -> Iterator[dict[str, Any]]:
    rng = random.Random(seed)
    payoffs = {context: {place: choice(rng) for place in ("first", "last")} for context in CONTEXTS}
    for attempt in tries:
        for context in CONTEXTS:
            yield {
                "id": f"{split}-{context}-{attempt}",
                "prompt": [{"role": "user", "content": f"Number {attempt}, room {context}"}],
                "domain": "brief",
                "answer": json.dumps(payoffs[context]),
            }


def choice(rng: random.Random) -> list[float]:
    """Payoffs of the groups: one is the best, the others stay well below."""
    payoffs = [0.6 * rng.random() for _ in range(GROUPS)]
    payoffs[rng.randrange(GROUPS)] = BEST
    return payoffs


def earned(folder: Path) -> dict[str, float]:
    """Mean reward of the responses to the validation prompts, before the first update and after the last."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [row["validation/score"] for row in metrics if "validation/score" in row]
    return {"first": found[0], "last": found[-1], "optimum": 2 * BEST}


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| seed | first validation | last | share of the optimum |", "| --- | --- | --- | --- |"]
    for seed, result in results.items():
        share = result["last"] / result["optimum"]
        lines.append(f"| {seed} | {result['first']:.3f} | {result['last']:.3f} | {share:.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
