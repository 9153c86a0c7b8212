"""Reward training at 1.8B's shape with random weights on one GPU: fused varlen attention over packs against padding.

python experiments/benchmarks/gpu/reward_training.py --results FILE
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from card import copy_rate, flops_per_token, matrix_rate, name
from made import random_model, shape
from torch import Tensor

from cool_rlhf.data.packing import micro_batches
from cool_rlhf.engine import DeepSpeedEngine
from cool_rlhf.models import attention
from cool_rlhf.models.internlm2 import InternLM2ForRewardModel
from reward.losses import focal_ranking_per_pair, log_barrier_per_score
from reward.pairs import EncodedPair
from reward.training import reward_update

BATCH_TOKENS = 16384  # the report's
SETTINGS: dict[str, Any] = {
    "gamma": 2.0,
    "penalty_weight": 0.02,
    "bound": 5.0,
    "detach_focal": False,
    "use_margin": False,
    "learning_rate": 1e-6,
}


def make_pairs(count: int, shortest: int, longest: int, vocabulary: int) -> list[EncodedPair]:
    """Lengths evenly spread; nothing shared between the sides, so that both layouts compute the same tokens."""
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)

    def sequence() -> Tensor:
        return torch.randint(3, vocabulary, (rng.randint(shortest, longest),), generator=generator)

    return [EncodedPair(sequence(), sequence(), 0.0) for _ in range(count)]


def batches_of(pairs: Sequence[EncodedPair]) -> list[list[EncodedPair]]:
    groups = micro_batches([len(pair) for pair in pairs], BATCH_TOKENS)
    return [[pairs[index] for index in group] for group in groups]


def packed_step(engine: DeepSpeedEngine, batch: list[EncodedPair]) -> None:
    reward_update(engine, [batch], pair_count=len(batch), **SETTINGS)


def padded_step(engine: DeepSpeedEngine, batch: list[EncodedPair]) -> None:
    """The same step as others do it: all sequences side by side, padded to the longest, with a mask."""
    sequences = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
    longest = max(map(len, sequences))
    tokens = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1

    def score(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.squeeze(-1)

    scores = engine.forward(score, tokens.cuda(), mask.cuda())
    chosen, rejected = scores[: len(batch)], scores[len(batch) :]
    loss = focal_ranking_per_pair(chosen, rejected, SETTINGS["gamma"], None, False).mean()
    loss = loss + SETTINGS["penalty_weight"] * log_barrier_per_score(scores, SETTINGS["bound"]).mean()
    engine.backward(loss, last=True)
    engine.step(SETTINGS["learning_rate"])


LAYOUTS: dict[str, tuple[str, Callable[[DeepSpeedEngine, list[EncodedPair]], None]]] = {
    "fused varlen, packed": (attention.NAME, packed_step),
    "sdpa, padded": ("sdpa", padded_step),
}


def measure(engine: DeepSpeedEngine, layout: str, pairs: Sequence[EncodedPair], warmup: int) -> dict[str, float]:
    """Tokens a second over whole steps, padding not counted, the median step; and the peak of the card's memory."""
    implementation, step = LAYOUTS[layout]
    engine.module.set_attn_implementation(implementation)
    torch.cuda.reset_peak_memory_stats()
    rates, seconds = [], []
    for index, batch in enumerate(batches_of(pairs)):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        step(engine, batch)
        torch.cuda.synchronize()
        if index >= warmup:
            seconds.append(time.perf_counter() - begun)
            rates.append(sum(len(pair) for pair in batch) / seconds[-1])
    return {
        "tokens_per_second": statistics.median(rates),
        "seconds": statistics.median(seconds),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=160)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    found: dict[str, Any] = {"card": name(), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}
    found |= {"matrix_rate": matrix_rate(), "copy_rate": copy_rate()}
    sizes = shape()
    model = random_model(InternLM2ForRewardModel, sizes, "cuda")
    weights = sum(p.numel() for p in model.parameters()) - model.model.tok_embeddings.weight.numel()
    found["parameters"] = sum(p.numel() for p in model.parameters())
    model.train()
    engine = DeepSpeedEngine(model, zero_stage=1, weight_decay=0.0, gradient_clip=1.0)
    print(f"{found['card']}: {found['matrix_rate'] / 1e12:.0f} TFLOP/s, copy {found['copy_rate'] / 1e12:.2f} TB/s")
    print("| lengths | layout | checkpointing | tokens/s | share of the card's rate | seconds a step | peak GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found["rows"] = []
    for shortest, longest in ((128, 1024), (1024, 4096)):
        pairs = make_pairs(
            arguments.pairs if longest < 4000 else arguments.pairs // 3, shortest, longest, sizes["vocab_size"]
        )
        lengths = [len(side) for pair in pairs for side in (pair.chosen, pair.rejected)]
        seen = sum(length**2 / 2 for length in lengths) / sum(lengths)
        operations = 3 * flops_per_token(weights, sizes["hidden_size"], sizes["num_hidden_layers"], seen)
        for layout in LAYOUTS:
            for checkpointing in (False, True):
                if checkpointing:
                    engine.module.gradient_checkpointing_enable()
                else:
                    engine.module.gradient_checkpointing_disable()
                try:
                    one = measure(engine, layout, pairs, warmup=3)
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    print(f"| {shortest}–{longest} | {layout} | {checkpointing} | out of memory | | | |", flush=True)
                    continue
                share = operations * one["tokens_per_second"] / found["matrix_rate"]
                found["rows"].append(
                    {
                        "lengths": [shortest, longest],
                        "layout": layout,
                        "checkpointing": checkpointing,
                        "share": share,
                        **one,
                    }
                )
                print(
                    f"| {shortest}–{longest} | {layout} | {'yes' if checkpointing else 'no'} | "
                    f"{one['tokens_per_second']:,.0f} | {100 * share:.0f} % | {one['seconds']:.3f} | "
                    f"{one['peak_gib']:.1f} |",
                    flush=True,
                )
    arguments.results.write_text(f"{json.dumps(found, indent=1)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
