"""Reward training side by side with TRL's RewardTrainer: the same model, weights, pairs, batches, threads.

The two run in turn, each time in a new process, and the table holds medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cool_rlhf.roles.cluster import ENVIRONMENT

WARMUP = 5  # steps that are not timed
HERE = Path(__file__).parent
Pair = tuple[list[int], list[int]]


def uniform_pairs(count: int, low: int, high: int, seed: int) -> list[Pair]:
    """Random tokens, lengths uniform in [low, high], nothing shared between the two sides."""
    rng = random.Random(seed)

    def side() -> list[int]:
        return [rng.randrange(1, 512) for _ in range(rng.randint(low, high))]

    return [(side(), side()) for _ in range(count)]


def dialogue_pairs(count: int, seed: int) -> list[Pair]:
    """Random tokens with the lengths of hh-rlhf's dialogues: a shared beginning, then two answers of their own."""
    rng = random.Random(seed)

    def length(median: float, spread: float, limit: int) -> int:
        return max(4, min(limit, round(median * rng.lognormvariate(0, spread))))

    pairs = []
    for _ in range(count):
        shared = [rng.randrange(1, 512) for _ in range(length(170, 0.7, 700))]
        sides = [[rng.randrange(1, 512) for _ in range(length(85, 0.8, 300))] for _ in range(2)]
        pairs.append((shared + sides[0], shared + sides[1]))
    return pairs


def real_pairs(file: str, count: int) -> list[Pair]:
    """Rows of a preference file in the tokens of a vocabulary of 512 trained on them, at most 1,000 a side."""
    from cool_rlhf.data.chat import reward_text
    from cool_rlhf.data.loading import Reading, load_preferences
    from cool_rlhf.demo.tokenizer import train_tokenizer

    pairs = list(load_preferences([file], Reading()))[:count]
    tokenizer = train_tokenizer((turn["content"] for pair in pairs for turn in pair.chosen), 512)

    def ids(messages: Any) -> list[int]:
        return [token or 1 for token in tokenizer.encode(reward_text(messages, None), add_special_tokens=False)][-1000:]

    return [(ids(pair.chosen), ids(pair.rejected)) for pair in pairs]


def measure(side: str, family: str, file: Path, batch: int, threads: int) -> dict[str, Any]:
    # Threads that go to sleep between two short products are woken on the core of the one that wakes them, if the
    # machine does anything else; bound ones stay apart.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_PROC_BIND": "true",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if side == "ours":  # what the roles of a run have the C library do with memory
        environment |= {name: value for name, value in ENVIRONMENT.items() if name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, str(HERE / "worker.py"), side, family, str(file), str(batch), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=["llama", "internlm2"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", nargs="+", choices=["16-128", "hh"], default=["16-128", "hh"])
    parser.add_argument("--data", help="preference rows (JSONL) instead of synthetic ones of hh-rlhf's lengths")
    arguments = parser.parse_args()

    count = arguments.steps * arguments.batch
    made = {
        "16-128": lambda: uniform_pairs(count, 16, 128, seed=1),
        "hh": lambda: real_pairs(arguments.data, count) if arguments.data else dialogue_pairs(count, seed=2),
    }
    kinds = {kind: made[kind]() for kind in arguments.lengths}
    print(
        "| model | lengths | side | pairs/s | pairs per second of the processor | peak MiB | first loss | last loss |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for family in arguments.families:
        for kind, pairs in kinds.items():
            found: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "pairs.json")
                file.write_text(json.dumps(pairs), encoding="utf-8")
                for _ in range(arguments.repeats):
                    for side, results in found.items():
                        results.append(measure(side, family, file, arguments.batch, arguments.threads))
            medians = {}
            for side, results in found.items():
                clock, processor = (
                    [
                        arguments.batch * (len(r["ends"]) - 1 - WARMUP) / (r["ends"][-1][k] - r["ends"][WARMUP][k])
                        for r in results
                    ]
                    for k in (0, 1)
                )
                peak = statistics.median(r["peak_mib"] for r in results)
                medians[side] = statistics.median(clock), statistics.median(processor)
                losses = results[0]["losses"]
                print(
                    f"| {family} | {kind} | {side} | {medians[side][0]:.0f} ({min(clock):.0f}–{max(clock):.0f}) | "
                    f"{medians[side][1]:.0f} | {peak:.0f} | {losses[0]:.5f} | {losses[-1]:.5f} |",
                    flush=True,
                )
            ratios = " | ".join(f"{ours / trl:.2f}" for ours, trl in zip(medians["ours"], medians["trl"], strict=True))
            print(f"| {family} | {kind} | ours / trl | {ratios} | | | |", flush=True)


if __name__ == "__main__":
    main()
