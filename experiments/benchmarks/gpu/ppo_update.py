"""PPO updates of a policy and a critic of 1.8B's shape with random weights, all roles on one GPU, through the command.

python experiments/benchmarks/gpu/ppo_update.py --results FILE
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from made import make_checkpoints, make_prompts, shape

from cool_rlhf.memory import ModelShape

PARTS = ("generate", "score", "train", "sync")
PROMPT_WORDS = 120


def settings(folder: Path, output: Path, arguments: argparse.Namespace) -> list[str]:
    return [
        "+experiment=1_8b_ppo",
        f"cluster={arguments.cluster}",
        "stage=ppo",
        f"sft.path={folder / 'policy'}",
        f"reward.path={folder / 'reward'}",
        f"data.prompts=[{folder / 'prompts.jsonl'}]",
        f"data.validation_prompts=[{folder / 'validation.jsonl'}]",
        f"ppo.prompts_per_iteration={arguments.responses}",
        f"sampling.max_new_tokens={arguments.new_tokens}",
        "model.max_positions=2048",
        "model.gradient_checkpointing=false",
        f"ppo.iterations={arguments.updates + 1}",
        "ppo.critic_warmup=0",
        "ppo.pretrain_coefficient=0",
        "ppo.validate_every=1000",
        "ppo.validation_texts=0",
        "data.pretrain=[]",
        "data.validation_pretrain=[]",
        "ppo.validation_instructions=0",
        "ppo.save_every=1000",
        "ppo.early_snapshot=0",
        "online.rounds=1",
        "online.prompts=0",
        f"ppo.micro_batch_tokens={arguments.micro_batch_tokens}",
        f"output_dir={output}",
        *arguments.overrides,
    ]


class Memory:
    """The highest use of the card's memory by all processes together, looked at twice a second."""

    def __init__(self) -> None:
        self.peak_gib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self._over.wait(0.5):
            used = subprocess.run(command, capture_output=True, text=True).stdout.split()
            self.peak_gib = max([self.peak_gib, *(float(value) / 1024 for value in used if value.isdigit())])


def rows_of(output: Path) -> list[dict[str, Any]]:
    file = output / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [row for row in map(json.loads, lines) if row["stage"] == "ppo"]


def operations(row: dict[str, Any], responses: int, prompt_tokens: float) -> dict[str, float]:
    """Of the forward passes of four models, and of both models' training; the released shape's matrices."""
    sizes = ModelShape(**_model_sizes())
    hidden, layers = sizes.hidden_size, sizes.layers
    tokens = responses * (prompt_tokens + row["response_length"])
    seen = (prompt_tokens + row["response_length"]) / 2
    backbone = sizes.parameters(output_layer=False) - sizes.vocab_size * hidden
    attention = 4 * hidden * layers * seen
    body = tokens * (2 * backbone + attention)
    head = responses * row["response_length"] * 2 * sizes.vocab_size * hidden
    return {"score": 4 * body + 2 * head, "train": 3 * (2 * body + head)}


def _model_sizes() -> dict[str, int]:
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "ffn_size",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
    }
    return {names[name]: value for name, value in shape().items() if name in names}


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("outputs/benchmark_gpu"))
    parser.add_argument("--cluster", default="gpu_1")
    parser.add_argument("--responses", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=1024)
    parser.add_argument("--micro-batch-tokens", type=int, default=4700)
    parser.add_argument("--updates", type=int, default=2, help="the first one warms up")
    parser.add_argument("--seconds", type=float, default=3600, help="after which it is stopped")
    parser.add_argument("overrides", nargs="*", help="key=value settings")
    arguments = parser.parse_args(command_line)
    from card import copy_rate, matrix_rate, name

    runs = arguments.runs.resolve()
    sizes = shape()
    make_checkpoints(runs, "cuda", sizes)
    for file, count in (("prompts", 4 * arguments.responses), ("validation", 8)):
        make_prompts(runs / f"{file}.jsonl", count, PROMPT_WORDS, sizes["vocab_size"])
    found: dict[str, Any] = {"card": name(), "date": time.strftime("%Y-%m-%d")}
    found |= {"matrix_rate": matrix_rate(), "copy_rate": copy_rate()}
    import torch

    torch.cuda.empty_cache()
    output = runs / "run"
    begun = time.monotonic()
    with Memory() as memory:
        command = [sys.executable, "-m", "cool_rlhf.run", *settings(runs, output, arguments)]
        run = subprocess.Popen(command, start_new_session=True)
        while run.poll() is None and len(rows_of(output)) < arguments.updates:
            if time.monotonic() - begun > arguments.seconds:
                break
            time.sleep(0.5)
        if run.poll() is None:  # what it would go on to write, the optimisers' 40 GB, nobody reads
            os.killpg(run.pid, signal.SIGKILL)
    found |= {"seconds_in_all": time.monotonic() - begun, "peak_gib": memory.peak_gib, "rows": []}
    for row in rows_of(output)[: arguments.updates]:
        work = operations(row, arguments.responses, PROMPT_WORDS + 7)
        own = {part: row[f"time/{part}"] for part in PARTS}
        shares = {
            "train": work["train"] / own["train"] / found["matrix_rate"],
            "all": sum(work.values()) / sum(own.values()) / found["matrix_rate"],
        }
        found["rows"].append({**row, "operations": work, "shares": shares})
        parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in own.items())
        rates = ", ".join(f"{part} {100 * share:.0f} %" for part, share in shares.items())
        print(f"update {row['step']}: {parts}; share of the card's rate: {rates}", flush=True)
    arguments.results.write_text(f"{json.dumps(found, indent=1)}\n", encoding="utf-8")
    print(f"{found['card']}: {found['matrix_rate'] / 1e12:.0f} TFLOP/s, peak {memory.peak_gib:.1f} GiB")
    if len(found["rows"]) < arguments.updates:
        sys.exit(f"only {len(found['rows'])} of {arguments.updates} updates were made: see {output / 'logs'}")


if __name__ == "__main__":
    main()
