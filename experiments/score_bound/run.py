"""Do scores come back from far outside the bound? Adversarial starts: a head whose weights are 10 to 100 times too
large, pairs that stand with both labels, bfloat16. Prints a row per start and the shares over all."""

from __future__ import annotations

import argparse
import os
import socket

import torch

from cool_rlhf.engine import DeepSpeedEngine
from cool_rlhf.models import attention
from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForRewardModel
from cool_rlhf.models.linear import use_onednn
from reward.pairs import EncodedPair
from reward.training import pair_scores, reward_update

BOUND, VOCABULARY = 5.0, 256


def contradictory_pairs(seed: int, count: int = 64) -> list[EncodedPair]:
    """Random conversations of 8 to 48 tokens; every pair stands twice, with opposite labels."""
    generator = torch.Generator().manual_seed(seed)

    def side() -> torch.Tensor:
        length = int(torch.randint(8, 49, (1,), generator=generator))
        return torch.randint(0, VOCABULARY, (length,), generator=generator)

    pairs = [(side(), side()) for _ in range(count // 2)]
    return [EncodedPair(a, b, 0.0) for left, right in pairs for a, b in ((left, right), (right, left))]


def adversarial_engine(seed: int, scale: float) -> DeepSpeedEngine:
    torch.manual_seed(seed)
    model = InternLM2ForRewardModel(
        InternLM2Config(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
        )
    )
    model.set_attn_implementation(attention.NAME)
    with torch.no_grad():
        model.v_head.weight.copy_(torch.randn(1, 64) * scale / 65**0.5)  # a fresh head has scale 1
    model.to(torch.bfloat16)
    model.v_head.float()
    use_onednn(model)
    model.train()
    return DeepSpeedEngine(model, zero_stage=0, weight_decay=0.01, gradient_clip=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=2e-2)
    parser.add_argument("--penalty-weight", type=float, default=0.02)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # as workers of the project do
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))

    rows = [
        "| start | head × | furthest score before | after | inside (−5, 5) after |",
        "| --- | --- | --- | --- | --- |",
    ]
    inside = total = 0
    for seed in range(arguments.starts):
        scale = 10 * 10 ** (seed / max(1, arguments.starts - 1))
        pairs, engine = contradictory_pairs(seed), adversarial_engine(seed, scale)
        before = torch.tensor(pair_scores(engine, [pairs]))
        order = torch.Generator().manual_seed(seed)
        for step in range(arguments.steps):
            part = [pairs[index] for index in torch.randperm(len(pairs), generator=order)[:16]]
            metrics = reward_update(
                engine,
                [part],
                pair_count=len(part),
                gamma=2.0,
                penalty_weight=arguments.penalty_weight,
                bound=BOUND,
                detach_focal=False,
                use_margin=True,
                learning_rate=arguments.learning_rate,
            )
            if not all(value == value and abs(value) < float("inf") for value in metrics.values()):
                raise SystemExit(f"start {seed}, step {step}: {metrics}")
        after = torch.tensor(pair_scores(engine, [pairs]))
        good = int((after.abs() < BOUND).sum())
        inside, total = inside + good, total + after.numel()
        rows.append(
            f"| {seed} | {scale:.0f} | {before.abs().max():.0f} | {after.abs().max():.2f} | {good}/{after.numel()} |"
        )
    print("\n".join(rows))  # at the end: DeepSpeed prints in between
    print(f"\ninside: {inside} of {total} ({inside / total:.2%}); no NaN or infinite number in any step")


if __name__ == "__main__":
    main()
