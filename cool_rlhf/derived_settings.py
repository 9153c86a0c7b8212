"""What follows from settings taken together."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cool_rlhf.config import Config, PPOConfig

FEWEST_VALIDATIONS = 4  # of a round, that the parting of score and gold is read off

BEST_LOW = ("validation/lm_loss", "validation/kl")  # what tells how much was lost


def shown_config(config: Config) -> dict[str, Any]:
    """The tree of settings as files, reports and W&B may show it: without what opens the annotation page."""
    tree = asdict(config)
    del tree["annotate"]["token"]
    return tree


def has_paths(config: Config) -> bool:
    """Whether the fast or the slow path runs between rounds. They mend the run's own reward model: one that was given
    is only asked."""
    online = config.online
    return online.prompts > 0 and (online.fast_path or online.pairs > 0) and config.reward.path is None


def learns_from_texts(ppo: PPOConfig) -> bool:
    """Whether PPO adds the loss on pretraining text."""
    return ppo.pretrain_coefficient > 0 and ppo.pretrain_ratio > 0


def judged_as(config: Config) -> dict[str, list[str]]:
    """``collect.judged_as`` among the domains that have a condition: an experiment's may name others than those."""
    known = {*config.conditions, "default"}
    found = {domain: [name for name in names if name in known] for domain, names in config.collect.judged_as.items()}
    return {domain: names for domain, names in found.items() if names}


def best_by(ppo: PPOConfig) -> tuple[str, str]:
    """The metric that the kept policy is best by, and whether the greatest (max) or the least (min) is: what the config
    says, and what follows where it leaves that open."""
    # By the score, the policy that exploits the reward model most would be kept of a round that ends for that.
    metric = ppo.best_metric or ("validation/gold" if ppo.stop_when_parted else "validation/score")
    return metric, ppo.best_mode or ("min" if metric in BEST_LOW else "max")


def validations(ppo: PPOConfig) -> int:
    """How many a round has: one at the end of the warm-up if there is any, then every so many iterations and one at
    the end."""
    return (ppo.critic_warmup > 0) + -(-ppo.iterations // ppo.validate_every)


def validation_share(config: Config) -> float:
    """Of the prompts of preferences, those that are held out: none where pairs are named for that."""
    return 0.0 if config.data.validation_preferences else config.reward.validation_share
