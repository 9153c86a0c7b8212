"""What a run will go through, as far as config and rows tell before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from cool_rlhf.config import Config
from cool_rlhf.derived_settings import has_paths
from cool_rlhf.tracking.estimate import PlannedStage

# Seconds before the first step and after the last, on two cores with a model of a million parameters: processes start,
# DeepSpeed and vLLM load, weights are written. A larger model takes longer; what a run measures replaces them.
AROUND = {"sft": (12.0, 1.0), "collect": (15.0, 1.0), "reward": (12.0, 1.0), "ppo": (30.0, 1.0), "online": (5.0, 1.0)}
FORWARD = 1 / 3  # of a token's forward and backward pass, which is the unit of work
GENERATE = 1.0
RESPONSE_SHARE = 0.5  # of sampling.max_new_tokens, before anything was sampled


def run_plan(
    config: Config, finished: Collection[tuple[str, int]], tokens: Callable[[str], float]
) -> list[PlannedStage]:
    """The stages of ``config.stage`` in their order, less those that are (name, round) in ``finished``.

    Args:
        tokens: about how many tokens an epoch of ``sft`` or of ``reward`` reads, or a ``prompt`` has; asked only for
            what is planned.
    """
    given_reward = config.reward.path is not None
    needed = {
        "sft": config.sft.path is None,
        "collect": config.collect.prompts > 0 and not given_reward,
        "reward": not given_reward,
        "ppo": True,
    }
    names = list(needed)[: {"sft": 1, "reward": 3}.get(config.stage, 4)]
    stages = [(name, 0) for name in names if needed[name]]
    if config.stage == "pipeline":
        for round in range(config.online.rounds):
            stages += [("ppo", round)] if round else []
            stages += [("online", round), ("reward", round + 1)] if has_paths(config) else []
    return [_stage(config, name, round, tokens) for name, round in stages if (name, round) not in finished]


def _stage(config: Config, name: str, round: int, tokens: Callable[[str], float]) -> PlannedStage:
    warmup_steps = 0
    if name in ("collect", "ppo", "online") or round > 0:
        length = tokens("prompt") + RESPONSE_SHARE * config.sampling.max_new_tokens
    if name == "ppo":
        ppo = config.ppo
        steps, warmup_steps = ppo.critic_warmup + ppo.iterations, ppo.critic_warmup
        # Sampled once, read by four models, learnt from by two, one of them with pretraining text besides.
        each = GENERATE + 4 * FORWARD + ppo.epochs * (2 + ppo.pretrain_ratio)
        work = each * ppo.responses_per_iteration * length
    elif name == "online":
        policies = 3 if round == 0 else 2  # SFT's answers stay
        steps, work = 1, (GENERATE + 2 * FORWARD) * policies * config.online.prompts * length
    elif name == "reward" and round > 0:
        steps = max(1, math.ceil(_repair_tokens(config, round, length) / config.reward.batch_tokens))
        work = float(config.reward.batch_tokens)
    elif name == "collect":
        steps, work = 1, GENERATE * config.collect.prompts * config.collect.samples_per_prompt * length
    else:
        settings = config.sft if name == "sft" else config.reward
        steps, work = math.ceil(settings.epochs * tokens(name) / settings.batch_tokens), float(settings.batch_tokens)
    startup, ending = AROUND[name]
    return PlannedStage(name, round, steps, warmup_steps, work, startup, ending)


def _repair_tokens(config: Config, round: int, length: float) -> float:
    """What the reward model reads after ``round`` − 1 of every earlier round's labels, one pattern's patches each, and
    replay; ``length``: tokens of one conversation."""
    online = config.online
    new = round * (online.pairs + (online.patches if online.fast_path else 0))
    return online.epochs * (new + max(online.least_replay, online.replay * new)) * 2 * length
