"""What the experiment varies: arms are settings of PPO, studies compare some of them."""

from __future__ import annotations

from dataclasses import dataclass

DOMAINS = ("default", "brief", "thorough", "math", "format", "safety")

# Arm → settings beside those that all have. ``unconditional`` trains a reward model of its own on the same pairs, with
# every condition empty.
ARMS: dict[str, tuple[str, ...]] = {
    "default": (),
    "unconditional": tuple(f"conditions.{domain}=''" for domain in DOMAINS),
    # The given pairs alone: all of brief and thorough stand both ways there. Of the SFT model's own samples those that
    # the rule finds equal under one of the two do not.
    "conditional_opposed": ("collect.prompts=0",),
    "unconditional_opposed": ("collect.prompts=0", *(f"conditions.{domain}=''" for domain in DOMAINS)),
    "critic_sft": ("ppo.critic_init=sft",),
    "no_pretrain": ("ppo.pretrain_coefficient=0",),
    "kl_0": ("ppo.kl_coefficient=0",),
    "kl_0.2": ("ppo.kl_coefficient=0.2",),
    "kl_0.8": ("ppo.kl_coefficient=0.8",),
}
OWN_REWARD_MODEL = ("unconditional", "conditional_opposed", "unconditional_opposed")


@dataclass(frozen=True)
class Study:
    """``arms``: arm → what it is called there. ``columns``: measures of the table, ``curves``: metrics over steps;
    ``over``: what the curves are drawn over."""

    question: str
    arms: dict[str, str]
    columns: tuple[str, ...]
    curves: tuple[str, ...]
    over: str = "step"


STUDIES = {
    "critic_init": Study(
        "Does a critic learn faster from the reward model or from SFT (the report's figure 9, in kind)?",
        {"default": "from the reward model", "critic_sft": "from SFT"},
        ("gold", "score", "loss/value, first 10", "explained variance, first 10", "kl"),
        ("loss/value", "reward/score"),
    ),
    "pretrain_loss": Study(
        "What does the pretraining loss keep that PPO would forget?",
        {"default": "with", "no_pretrain": "without"},
        ("lm_loss, change", "instructions, change", "gold", "score", "kl"),
        ("validation/lm_loss", "validation/gold"),
    ),
    "kl": Study(
        "What do score and gold cost in divergence from the SFT model?",
        {"kl_0": "0", "default": "0.05", "kl_0.2": "0.2", "kl_0.8": "0.8"},
        ("kl", "score", "gold"),
        ("validation/score", "validation/gold"),
        over="validation/kl",
    ),
    "conditional_ppo": Study(
        "What does the policy gain from a reward model that is told which preference it judges by?",
        {"default": "conditional", "unconditional": "unconditional"},
        ("gold", "gold, brief", "gold, thorough", "gold, math", "gold, format", "gold, safety", "kl"),
        ("validation/gold/brief", "validation/gold/thorough"),
    ),
    "opposed_pairs": Study(
        "The same, where the reward model has seen brief and thorough on opposed pairs alone.",
        {"conditional_opposed": "conditional", "unconditional_opposed": "unconditional"},
        ("gold", "gold, brief", "gold, thorough", "gold, math", "gold, format", "gold, safety", "kl"),
        ("validation/gold/brief", "validation/gold/thorough"),
    ),
}
