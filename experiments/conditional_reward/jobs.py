"""Which models the experiment trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from cool_rlhf.config import ModelConfig, RewardConfig, SFTConfig

MAX_LENGTH = 512
VOCABULARY = 4096
# Small batches and high rates: steps are what a small model lacks, not averaging.
SFT = SFTConfig(epochs=2, batch_tokens=4096, micro_batch_tokens=8192, max_length=MAX_LENGTH, learning_rate=2e-3)
REWARD = RewardConfig(
    epochs=2,
    batch_tokens=4096,
    micro_batch_tokens=8192,
    max_length=MAX_LENGTH,
    learning_rate=7e-4,
    final_learning_rate=3e-5,
)


@dataclass(frozen=True)
class Size:
    """A base model and how it and the reward models from it are trained."""

    shape: ModelConfig
    sft: SFTConfig = field(default_factory=lambda: SFT)
    reward: RewardConfig = field(default_factory=lambda: REWARD)
    dtype: str = "float32"


SIZES = {
    "small": Size(ModelConfig(hidden_size=64, layers=2, heads=2, kv_heads=1, ffn_size=192, max_positions=2048)),
    "base": Size(ModelConfig(hidden_size=128, layers=2, heads=4, kv_heads=2, ffn_size=384, max_positions=2048)),
    "large": Size(ModelConfig(hidden_size=128, layers=4, heads=4, kv_heads=2, ffn_size=384, max_positions=2048)),
    "150m": Size(  # for a GPU
        ModelConfig(hidden_size=1024, layers=12, heads=16, kv_heads=8, ffn_size=2816, max_positions=2048),
        replace(SFT, epochs=3, batch_tokens=8192, micro_batch_tokens=16384, learning_rate=6e-4),
        replace(REWARD, batch_tokens=8192, micro_batch_tokens=16384, learning_rate=1e-4, final_learning_rate=5e-6),
        "bfloat16",
    ),
}


@dataclass(frozen=True)
class Job:
    """One reward model. ``domain`` None trains on all domains; ``share`` of the prompts."""

    seed: int
    size: str = "base"
    conditions: bool = True
    domain: str | None = None
    share: float = 1.0
    gamma: float = REWARD.gamma
    penalty_weight: float = REWARD.penalty_weight

    @property
    def name(self) -> str:
        """What it is called, its seed apart: the arm of the experiment."""
        parts = [self.size] if self.size != "base" else []
        parts.append(f"only_{self.domain}" if self.domain else "with" if self.conditions else "without")
        parts += [f"share_{self.share:g}"] if self.share != 1 else []
        parts += [f"gamma_{self.gamma:g}"] if self.gamma != REWARD.gamma else []
        parts += [f"lambda_{self.penalty_weight:g}"] if self.penalty_weight != REWARD.penalty_weight else []
        return "_".join(parts)

    @property
    def folder(self) -> str:
        return f"{self.name}_seed_{self.seed}"


def all_jobs(seeds: Sequence[int], domains: Sequence[str]) -> Iterator[Job]:
    """What the claims need first, so that an early end leaves that."""
    for seed in seeds:
        yield Job(seed)
        yield Job(seed, conditions=False)
        for domain in domains:
            yield Job(seed, conditions=False, domain=domain)
    for seed in seeds:
        yield Job(seed, gamma=0.0)
        yield Job(seed, penalty_weight=0.0)
    for seed in seeds:
        for share in (0.25, 0.5):
            yield Job(seed, share=share)
    for seed in seeds:
        for size in ("small", "large", "150m"):
            yield Job(seed, size=size)
        yield Job(seed, size="150m", conditions=False)
