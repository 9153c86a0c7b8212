"""What the barrier on scores does to a later PPO: the same PPO under the reward models with and without it.

.venv/bin/python experiments/conditional_reward/barrier_ppo.py --data FOLDER, after run.py has trained both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jobs import REWARD, Job
from preferences import read_preferences

from cool_rlhf.data.identity import prompt_key
from cool_rlhf.protocols import PreferencePair

HERE = Path(__file__).parent
ARMS = {"λ 0.02": REWARD.penalty_weight, "λ 0": 0.0}
VALIDATION = 64  # prompts
SETTINGS = (
    "model.dtype=float32",
    "sampling.max_new_tokens=48",
    "sampling.top_p=1.0",
    "ppo.iterations=60",
    "ppo.prompts_per_iteration=64",
    "ppo.critic_warmup=5",
    "ppo.policy_learning_rate=2e-4",
    "ppo.critic_learning_rate=5e-4",
    "ppo.kl_coefficient=0.02",
    "ppo.pretrain_coefficient=0.0",
    "ppo.micro_batch_tokens=4096",
    "ppo.validate_every=10",
    f"ppo.validation_prompts={VALIDATION}",
    "ppo.validation_texts=0",
    "ppo.save_every=1000",
    "logging.progress=false",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with preferences, as for run.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--models", type=Path, default=Path("outputs/conditional_reward"), help="run.py's models")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of barrier_ppo.json, .md and .svg")
    arguments = parser.parse_args()
    folder = arguments.models / "barrier_ppo"
    files = write_prompts(folder, [pair for pairs in read_preferences(arguments.data).train.values() for pair in pairs])
    results: dict[str, dict[str, Any]] = {}
    for arm, weight in ARMS.items():
        for seed in arguments.seeds:
            job = Job(seed, penalty_weight=weight)
            output = folder / job.folder
            if not (output / "rounds/0/policy").exists():
                execute(arguments.models, job, files, output)
            results.setdefault(arm, {})[str(seed)] = one_run(output)
            print(f"{arm}, seed {seed}", flush=True)
    (arguments.results / "barrier_ppo.json").write_text(f"{json.dumps(results, indent=1)}\n", encoding="utf-8")
    (arguments.results / "barrier_ppo.md").write_text(table(results), encoding="utf-8")
    draw(results, arguments.results / "barrier_ppo.svg")
    print(table(results))


def write_prompts(folder: Path, pairs: Sequence[PreferencePair]) -> list[str]:
    """The training pairs' prompts with their domains, some set apart for validation; as overrides."""
    rows = {
        (prompt_key(pair.chosen[:-1]), pair.domain): {"prompt": pair.chosen[:-1], "domain": pair.domain}
        for pair in pairs
        if sum(len(turn["content"]) for turn in pair.chosen[:-1]) < 600
    }
    lines = [f"{json.dumps({'id': str(place), **row})}\n" for place, row in enumerate(rows.values())]
    apart = set(range(0, len(lines), len(lines) // VALIDATION))
    folder.mkdir(parents=True, exist_ok=True)
    for name, kept in (("train", False), ("validation", True)):
        part = [line for place, line in enumerate(lines) if (place in apart) == kept]
        (folder / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    return [
        f"data.prompts=[{folder / 'train.jsonl'}]",
        f"data.validation_prompts=[{folder / 'validation.jsonl'}]",
    ]


def execute(models: Path, job: Job, files: Sequence[str], output: Path) -> None:
    """PPO by the command, under the reward model of ``job``, with what it says in a file beside."""
    base = models / f"sft_{job.size}" / "model"
    given = [f"sft.path={base}", f"reward.path={models / job.folder / 'reward_model'}", "stage=ppo"]
    command = [sys.executable, "-m", "cool_rlhf.run", *SETTINGS, *files, *given]
    with (output.parent / f"{output.name}.log").open("w", encoding="utf-8") as log:
        settings = [f"seed={job.seed}", f"output_dir={output}"]
        subprocess.run([*command, *settings], check=True, stdout=log, stderr=subprocess.STDOUT)


def one_run(output: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["stage"] == "ppo"]
    trained = [row for row in rows if not row.get("warmup")]
    last = trained[-10:]
    return {
        "score, start": fmean(row["reward/score"] for row in rows if row.get("warmup")),
        "score, last 10": fmean(row["reward/score"] for row in last),
        "highest mean score": max(row["reward/score"] for row in rows),
        "KL, last 10": fmean(row["kl"] for row in last),
        "value loss, mean": fmean(row["loss/value"] for row in trained),
        "critic's gradient norm, highest": max(row["critic/gradient_norm"] for row in rows),
        "tokens clipped, mean": fmean(row["policy/clipped"] for row in trained),
        "response length, last 10": fmean(row["response_length"] for row in last),
        "scores": [row["reward/score"] for row in rows],
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Mean over the seeds with the deviation between them."""
    lines = [f"| | {' | '.join(results)} |", f"|{' --- |' * (1 + len(results))}"]
    first = next(iter(next(iter(results.values())).values()))
    for name in (name for name, value in first.items() if isinstance(value, float)):
        cells = []
        for seeds in results.values():
            values = [run[name] for run in seeds.values()]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.3f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "barrier_ppo"  # the same results give the same file
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for (arm, seeds), colour in zip(results.items(), ("tab:blue", "tab:orange"), strict=True):
        for place, run in enumerate(seeds.values()):
            panel.plot(run["scores"], color=colour, lw=1, label=arm if place == 0 else None)
    panel.axhline(REWARD.bound, color="0.6", lw=0.8)
    panel.set(xlabel="step, critic's warm-up included", ylabel="mean score of the responses")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
