"""The values that each setting may have by itself, beyond its type."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable
from operator import attrgetter
from typing import Any

from cool_rlhf.config import Config
from cool_rlhf.protocols import UserError
from cool_rlhf.schedule import SCHEDULES

STAGES = ("pipeline", "sft", "reward", "ppo", "evaluate", "annotate", "plan", "check")

ROLES = ("trainer", "policy", "critic", "reference", "scorer")
TRAINING = ("sft", "reward")
FUNCTION = re.compile(r"[\w.]+:\w+")

_CHOICES: dict[str, tuple[Any, ...]] = {
    "stage": STAGES,
    "model.dtype": ("bfloat16", "float32"),
    "data.bad_rows": ("refuse", "drop", "drop_hub"),
    "reward.too_long": ("cut", "drop"),
    "ppo.kl_estimator": ("k1", "k2", "k3"),
    "ppo.kl_in": ("reward", "loss"),
    "ppo.kl_gradient": ("k2", "k3"),
    "ppo.old_logprobs": ("trainer", "engine"),
    "ppo.learning_rate_schedule": SCHEDULES,
    "ppo.entropy_schedule": SCHEDULES,
    "annotate.labeller": ("people", "rule", "judge"),
    "ppo.best_mode": ("max", "min"),
    "online.labeller": ("people", "rule", "judge"),
    "online.policy_from": ("clean", "last", "sft"),
    "logging.wandb_mode": ("auto", "online", "offline", "disabled"),
    "cluster.rollout.dtype": (None, "bfloat16", "float16", "float32"),
    **{f"cluster.{role}.zero_stage": (0, 1, 2, 3) for role in ROLES},
}

_AT_LEAST_ONE = (
    *(
        f"model.{size}"
        for size in ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "ffn_size", "max_positions")
    ),
    *(
        f"{section}.{count}"
        for section in TRAINING
        for count in ("epochs", "batch_tokens", "micro_batch_tokens", "max_length", "save_every")
    ),
    "reward.evaluate_every",
    "collect.samples_per_prompt",
    "collect.pairs_per_prompt",
    "sampling.max_new_tokens",
    "ppo.iterations",
    "ppo.prompts_per_iteration",
    "ppo.samples_per_prompt",
    "ppo.epochs",
    "ppo.minibatches",
    "ppo.kl_horizon",
    "ppo.micro_batch_tokens",
    "ppo.validate_every",
    "ppo.validation_prompts",
    "ppo.save_every",
    "online.rounds",
    "online.samples_per_prompt",
    "online.epochs",
    "online.judging_pairs",
    "annotate.overlap",
    "annotate.judge.requests",
    *(f"cluster.{role}.{count}" for role in ROLES for count in ("ranks", "threads")),
    "cluster.rollout.engines",
    "cluster.rollout.tensor_parallel_size",
    "cluster.rollout.threads",
    "cluster.rollout.max_concurrent",
)
_AT_LEAST_ZERO = (
    "seed",
    "collect.prompts",
    "collect.least_gap",
    *(f"{section}.{rate}" for section in TRAINING for rate in ("final_learning_rate", "weight_decay")),
    "reward.gamma",
    "reward.penalty_weight",
    "ppo.critic_warmup",
    "ppo.validation_texts",
    "ppo.validation_instructions",
    "ppo.kl_coefficient",
    "ppo.pretrain_coefficient",
    "ppo.pretrain_ratio",
    "ppo.weight_decay",
    "ppo.unfinished_penalty",
    "ppo.value_clip",
    "ppo.entropy_coefficient",
    "ppo.stop_kl",
    "ppo.kl_target",
    "ppo.reward_clip",
    "ppo.engine_correction",
    "online.prompts",
    "online.pairs",
    "online.replay",
    "online.least_replay",
    "online.final_learning_rate",
    "evaluate.samples_per_prompt",
    "evaluate.best_of",
    "annotate.port",
    "evaluate.baseline_pairs",
    *(f"cluster.{role}.{share}" for role in (*ROLES, "rollout") for share in ("cpus", "gpus")),
)
_ABOVE_ZERO = (
    "sft.learning_rate",
    "sft.gradient_clip",
    "reward.learning_rate",
    "reward.gradient_clip",
    "ppo.policy_learning_rate",
    "ppo.critic_learning_rate",
    "annotate.lease_minutes",
    "annotate.judge.timeout",
    "ppo.gradient_clip",
    "online.learning_rate",
    "cluster.rollout.cache_gib",
)
_SHARES = (
    "online.least_gain",
    "online.least_mended",
    "online.most_lost",
    "sft.warmup_fraction",
    "reward.warmup_fraction",
    "reward.condition_dropout",
    "ppo.discount",
    "ppo.trace_decay",
    "ppo.learning_rate_warmup",
    "ppo.final_learning_rate",
    "ppo.early_snapshot",
    "collect.label_noise",
)
_SHARES_ABOVE_ZERO = ("online.cheating", "sampling.top_p", "cluster.rollout.gpu_memory_utilization")


def check_ranges(config: Config) -> None:
    """Raises UserError for the first value that its setting may not have, whatever the others are."""
    for key, allowed in _CHOICES.items():
        _check_choice(key, attrgetter(key)(config), allowed)
    check_numbers(config, _AT_LEAST_ONE, lambda value: value >= 1, "it must be 1 or more")
    check_numbers(config, _AT_LEAST_ZERO, lambda value: value >= 0, "it must be 0 or more")
    check_numbers(config, _ABOVE_ZERO, lambda value: value > 0, "it must be above 0")
    check_numbers(config, _SHARES, lambda value: 0 <= value <= 1, "it must lie in [0, 1]")
    check_numbers(config, _SHARES_ABOVE_ZERO, lambda value: 0 < value <= 1, "it must be above 0 and at most 1")
    check_numbers(config, ["reward.validation_share"], lambda value: 0 <= value < 1, "it must lie in [0, 1)")
    check_numbers(config, ["reward.bound"], lambda value: value > 0.1, "it must be above 0.1, where the barrier ends")
    patches = "it must be 20 or more: a quarter of them judges a repair, which takes five"
    check_numbers(config, ["online.patches"], lambda value: value >= 20, patches)
    for section in (*TRAINING, "ppo"):
        betas = attrgetter(f"{section}.adam_betas")(config)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"{section}.adam_betas is {betas}: it must be two numbers in [0, 1)")
    engine = "it must be 0.01 or more, the least that vLLM samples at"
    check_numbers(config, ["sampling.temperature"], lambda value: value >= 0.01, engine)
    inside = ("ppo.clip", "online.significance")
    check_numbers(config, inside, lambda value: 0 < value < 1, "it must lie between 0 and 1")


def check_numbers(config: Config, keys: Iterable[str], allowed: Callable[[float], bool], wanted: str) -> None:
    """Raises UserError, which says what is ``wanted``, for the first of the settings that is not ``allowed``."""
    for key in keys:
        value = attrgetter(key)(config)
        if value is not None:
            check_number(f"{key} is", value, allowed, wanted)


def check_number(said: str, value: float, allowed: Callable[[float], bool] = lambda _: True, wanted: str = "") -> None:
    """Raises UserError, which begins with what is ``said`` of the value."""
    if not math.isfinite(value):
        raise UserError(f"{said} {value}: it must be a finite number")
    if not allowed(value):
        raise UserError(f"{said} {value}: {wanted}")


def _check_choice(key: str, value: Any, allowed: Collection[Any]) -> None:
    if value in allowed:
        return
    names = ["null" if choice is None else str(choice) for choice in allowed]
    near = difflib.get_close_matches(str(value), names, n=1)
    raise UserError(
        f"{key} is {value!r}: it must be one of {', '.join(names)}{f'; is {near[0]} meant?' if near else ''}"
    )
