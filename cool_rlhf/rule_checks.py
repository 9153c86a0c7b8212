"""Whether what PPO is to reward and what looks at its policies can be had, found out before anything is trained. Every
check raises UserError."""

from __future__ import annotations

from collections.abc import Iterable

from cool_rlhf.config import Config, has_paths
from cool_rlhf.preflight import NEEDS_PPO, NEEDS_REWARD, conditions_of
from cool_rlhf.protocols import UserError
from cool_rlhf.rules.loading import load_rule
from reward.conditions import DEFAULT_DOMAIN, Conditions, UnknownConditionError

TRIED_PROMPTS = 8  # of each domain


def check_rules(config: Config) -> None:
    """Every function that the config names is there and takes what a rule is given; rules that PPO rewards by give a
    finite number for an empty response to the first prompts of their domain; a reward model that is given knows the
    conditions; the judge that labels within rounds answers; and the detectors that installed packages add are
    detectors."""
    if config.stage in NEEDS_REWARD and config.reward.path is None and config.collect.prompts > 0:
        load_rule(config.collect.labeller, "collect.labeller")
    if config.stage == "pipeline" and has_paths(config):
        _check_paths(config)
    if config.stage not in NEEDS_PPO:
        return
    _check_trained_conditions(config)
    for domain, recipe in config.ppo.rewards.items():
        for name in recipe.rules:
            load_rule(name, f"ppo.rewards.{domain}.rules")
    rules = any(recipe.rules for recipe in config.ppo.rewards.values())
    if config.data.domain_weights or rules or config.reward.path is not None:
        _try_on_prompts(config)


def _check_paths(config: Config) -> None:
    online = config.online
    if online.labeller == "rule":
        load_rule(config.annotate.rule, "annotate.rule")
    if online.labeller == "judge" and (online.pairs > 0 or online.review):
        from cool_rlhf.annotate import make_judge  # late: it imports the endpoint's client

        make_judge(config).check()
    if online.fast_path:
        from cool_rlhf.online.detectors import all_detectors  # late: it imports NumPy and SciPy

        all_detectors(online.without_detectors)


def _check_trained_conditions(config: Config) -> None:
    named = {f"ppo.rewards.{domain}": list(recipe.conditions) for domain, recipe in config.ppo.rewards.items()}
    named["ppo.validation_conditions"] = config.ppo.validation_conditions
    if config.reward.path is None or not any(named.values()):
        return
    trained = Conditions(conditions_of(config.reward.path))
    for key, names in named.items():
        for name in names:
            try:
                trained.prompt(name)
            except UnknownConditionError as error:
                raise UserError(f"{key}: of the reward model {config.reward.path}, {error}") from error


def _check_domains(reward_model: str, domains: Iterable[str]) -> None:
    """A domain without a recipe is scored under the condition of its name."""
    trained = Conditions(conditions_of(reward_model))
    for domain in sorted(domains):
        try:
            trained.prompt(domain)
        except UnknownConditionError as error:
            raise UserError(
                f"data.prompts holds prompts of domain {domain!r}, but of the reward model {reward_model}, {error}; "
                f"say by ppo.rewards.{domain}.conditions what to score them under ({{{DEFAULT_DOMAIN}: 1.0}}: nothing)"
            ) from error


def _try_on_prompts(config: Config) -> None:
    from cool_rlhf.inputs import Inputs  # late: what reads prompts imports torch
    from cool_rlhf.ppo.rewards import apply_rules

    inputs = Inputs(config)
    inputs.prompt_stream(config.seed)
    recipes = inputs.recipes
    if config.reward.path is not None:
        asked = (*inputs.prompts, *inputs.validation)
        _check_domains(config.reward.path, {prompt.domain for prompt in asked} - recipes.keys())
    left = {domain: TRIED_PROMPTS for domain, recipe in recipes.items() if recipe.rules}
    for prompt in inputs.prompts:
        if not any(left.values()):
            return
        if left.get(prompt.domain, 0) > 0:
            left[prompt.domain] -= 1
            apply_rules(recipes[prompt.domain], prompt, "", finished=True)
