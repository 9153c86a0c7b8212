"""PPO side by side with TRL's PPOTrainer, and with its own parts; see README.md.

.venv/bin/python experiments/benchmarks/ppo/run.py --trl TRL_PYTHON
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inputs import make_inputs

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "demo_seeds"))  # its measuring of memory
from memory import run_measured  # noqa: E402

WARMUP = 3  # updates that are not timed
LENGTHS = {"fixed": None, "ragged": 30.0}  # mean length of responses; None: always the limit
RUN = (
    "+experiment=smoke",
    "stage=ppo",
    "collect.prompts=0",
    "sampling.top_p=1.0",
    "sampling.temperature=1.0",
    "ppo.critic_warmup=0",
    "ppo.epochs=1",
    "ppo.minibatches=1",
    "ppo.pretrain_coefficient=0.0",
    "ppo.policy_learning_rate=1e-6",
    "ppo.critic_learning_rate=1e-6",
    "ppo.unfinished_penalty=0.0",
    "ppo.micro_batch_tokens=4096",
    "ppo.keep_passes=true",
    "ppo.validate_every=100000",
    "ppo.validation_texts=0",
    "ppo.save_every=100000",
)
COMPILED = "cluster.rollout.compile=true"
PARTS = ("generate", "score", "train", "sync")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, help="python of an environment with TRL; without it nothing is compared")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", action="store_true", help="4 times the prompts, 4 times the length, two ranks")
    parser.add_argument("--engine", action="store_true", help="generation beside bare vLLM")
    parser.add_argument("--runs", type=Path, default=Path("outputs/benchmark_ppo"), help="folder of the runs' outputs")
    parser.add_argument("overrides", nargs="*", help="key=value settings for the project's runs")
    arguments = parser.parse_args()
    runs = arguments.runs.resolve()
    results: dict[str, Any] = {}
    for kind, mean in LENGTHS.items():
        make_inputs(runs / kind, 1024, mean)
    if arguments.trl:
        results["trl"] = beside_trl(runs, arguments)
    if arguments.engine:
        results["engine"] = beside_vllm(runs, arguments)
    if arguments.growth:
        results["growth"] = growth(runs, arguments)
    (runs / "results.json").write_text(f"{json.dumps(results, indent=1)}\n", encoding="utf-8")


def beside_trl(runs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Response tokens a second over whole updates, each side in new processes, in turn."""
    found: dict[str, Any] = {}
    print("| lengths | side | response tokens/s (least–most) | seconds an update | tokens an update |")
    print("| --- | --- | --- | --- | --- |")
    for kind in LENGTHS:
        sides: dict[str, list[dict[str, float]]] = {"trl": [], "ours": []}
        for repeat in range(arguments.repeats):
            sides["trl"].append(trl(arguments.trl, runs / kind, arguments.updates, 32, 64))
            output = runs / f"{kind}_{repeat}"
            sides["ours"].append(ours(runs / kind, output, arguments.updates, 32, 64, arguments.overrides))
        for side, repeats in sides.items():
            rates = [one["tokens"] / one["seconds"] for one in repeats]
            seconds = statistics.median(one["seconds"] for one in repeats)
            tokens = statistics.median(one["tokens"] for one in repeats)
            rate = statistics.median(rates)
            print(
                f"| {kind} | {side} | {rate:.0f} ({min(rates):.0f}–{max(rates):.0f}) | {seconds:.3f} | {tokens:.0f} |"
            )
            found[f"{kind} {side}"] = {"rate": rate, "repeats": repeats}
        print(
            f"| {kind} | ours / trl | {found[f'{kind} ours']['rate'] / found[f'{kind} trl']['rate']:.2f} | | |",
            flush=True,
        )
    return found


def beside_vllm(runs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """How fast the rollout role is beside vLLM alone, by itself and within updates, where four models pass over what is
    finished; and where the rest of an update goes."""
    found: dict[str, Any] = {}
    compiled = COMPILED in arguments.overrides
    batches = str(3 * arguments.updates)  # one takes a third of an update
    environment = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        **({} if compiled else {"TORCHDYNAMO_DISABLE": "1"}),
    }
    print("| lengths | bare vLLM, tokens/s | role alone | share | role in an update | share | outside of the parts |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in LENGTHS:
        repeats = []
        for repeat in range(arguments.repeats):
            sizes = (batches, "32", "64", "compiled" if compiled else "eager")
            bare = last_line([sys.executable, str(HERE / "vllm_side.py"), str(runs / kind), *sizes], environment)
            output = runs / f"{kind}_engine_{repeat}"
            names = settings(runs / kind, output, arguments.updates, 32, 64, arguments.overrides)
            alone = last_line([sys.executable, str(HERE / "role_side.py"), batches, "32", *names], {})
            own = ours(runs / kind, output, arguments.updates, 32, 64, arguments.overrides)
            repeats.append(
                {"bare": rate(bare), "alone": rate(alone), "role": own["tokens"] / own["generate"], "update": own}
            )
        bare_rate, alone_rate, role = (
            statistics.median(one[side] for one in repeats) for side in ("bare", "alone", "role")
        )
        outside = statistics.median(
            1 - sum(one["update"][part] for part in PARTS) / one["update"]["seconds"] for one in repeats
        )
        print(
            f"| {kind} | {bare_rate:.0f} | {alone_rate:.0f} | {alone_rate / bare_rate:.2f} | {role:.0f} | "
            f"{role / bare_rate:.2f} | {100 * outside:.0f} % |",
            flush=True,
        )
        found[kind] = repeats
    return found


def rate(side: Mapping[str, Sequence[float]]) -> float:
    """Tokens a second, but for the first batches."""
    return sum(side["tokens"][WARMUP:]) / sum(side["seconds"][WARMUP:])


def growth(runs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of an update as the work grows."""
    found: dict[str, Any] = {}
    ranks = ("cluster.policy.ranks=2", "cluster.critic.ranks=2")
    cases: dict[str, tuple[int, int, Sequence[str]]] = {
        "32 prompts of 64 new tokens": (32, 64, ()),
        "128 prompts": (128, 64, ()),
        "256 new tokens": (32, 256, ()),
        "two ranks": (32, 64, ranks),
        "128 prompts, two ranks": (128, 64, ranks),
    }
    print("| case | seconds an update | times the first | peak GiB | times the first |")
    print("| --- | --- | --- | --- | --- |")
    for name, (prompts, new_tokens, extra) in cases.items():
        output = runs / f"growth_{prompts}_{new_tokens}_{len(extra)}"
        overrides = [*extra, *arguments.overrides]
        own = ours(runs / "fixed", output, arguments.updates, prompts, new_tokens, overrides, memory=True)
        found[name] = own
        first = next(iter(found.values()))
        print(
            f"| {name} | {own['seconds']:.3f} | {own['seconds'] / first['seconds']:.2f} | {own['peak_gib']:.2f} | "
            f"{own['peak_gib'] / first['peak_gib']:.2f} |",
            flush=True,
        )
    return found


def trl(python: Path, folder: Path, updates: int, prompts: int, new_tokens: int) -> dict[str, float]:
    command = [str(python), str(HERE / "trl_side.py"), str(folder), *map(str, (updates, prompts, new_tokens, 2))]
    done = last_line(command, {"OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"})
    ends, tokens = done["ends"], done["tokens"]
    count = len(ends) - WARMUP
    return {"seconds": (ends[-1] - ends[WARMUP - 1]) / count, "tokens": sum(tokens[WARMUP:]) / count}


def settings(
    folder: Path, output: Path, updates: int, prompts: int, new_tokens: int, overrides: Sequence[str]
) -> list[str]:
    """Of a run of the project."""
    return [
        *RUN,
        f"sft.path={folder / 'policy'}",
        f"reward.path={folder / 'reward'}",
        f"data.prompts=[{folder / 'prompts.jsonl'}]",
        f"data.validation_prompts=[{folder / 'validation.jsonl'}]",
        f"sampling.max_new_tokens={new_tokens}",
        f"ppo.prompts_per_iteration={prompts}",
        f"ppo.iterations={updates + 1}",
        f"output_dir={output}",
        *overrides,
    ]


def ours(
    folder: Path,
    output: Path,
    updates: int,
    prompts: int,
    new_tokens: int,
    overrides: Sequence[str],
    memory: bool = False,
) -> dict[str, float]:
    """Means of an update; the first ones and the last, which validates and saves, are left out."""
    shutil.rmtree(output, ignore_errors=True)  # a run that is there already would only say that it is finished
    names = settings(folder, output, updates, prompts, new_tokens, overrides)
    command = [sys.executable, "-m", "cool_rlhf.run", *names]
    file = output.parent / f"{output.name}.log"
    peak_gib = math.nan
    if memory:  # looking at it takes time of the processor
        peak_gib = run_measured(command, file).peak_gib
    else:
        with file.open("w", encoding="utf-8") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["stage"] == "ppo"]
    timed = rows[WARMUP:updates]
    means = {name: statistics.fmean(row[f"time/{name}"] for row in timed) for name in PARTS}
    return {
        "seconds": (timed[-1]["seconds"] - rows[WARMUP - 1]["seconds"]) / len(timed),
        "tokens": prompts * statistics.fmean(row["response_length"] for row in timed),
        "peak_gib": peak_gib,
        **means,
    }


def last_line(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{command[1]} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
