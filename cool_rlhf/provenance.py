"""Which settings made each stage: a finished stage is only taken over by a run that would have made the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cool_rlhf.config import Config

# What may change without changing what a stage makes: how work is cut, watched and saved, and how long PPO goes on.
_FREE = {
    "sft": {"micro_batch_tokens"},
    "reward": {"micro_batch_tokens"},
    "ppo": {"micro_batch_tokens", "iterations", "save_every", "validate_every", "validation_prompts"},
}


def made_from(config: Config) -> dict[str, dict[str, Any]]:
    """Stage name → the settings that only it adds to those before it."""
    tree = asdict(config)
    data = tree["data"]

    def part(name: str) -> dict[str, Any]:
        return {key: value for key, value in tree[name].items() if key not in _FREE.get(name, set())}

    rounds = range(config.online.rounds)
    reward = {"reward": part("reward"), "conditions": tree["conditions"], "data": {"preferences": data["preferences"]}}
    ppo = {
        "ppo": part("ppo"),
        "sampling": tree["sampling"],
        "data": {key: data[key] for key in ("prompts", "validation_prompts", "pretrain")},
    }
    sources = {"sft": data["sft"], "domains": data["domains"], "world": data["world"]}
    return {
        "sft": {"seed": config.seed, "model": tree["model"], "sft": part("sft"), "data": sources},
        "collect": {"collect": tree["collect"], "sampling": tree["sampling"]},
        **{f"reward_{round}": reward for round in range(config.online.rounds + 1)},
        **{f"ppo_{round}": ppo for round in rounds},
        f"export_{config.online.rounds}": {},
    }
