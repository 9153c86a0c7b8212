"""Whether what PPO is to reward and what looks at its policies can be had, found out before anything is trained. Every
check raises UserError."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import TYPE_CHECKING

from cool_rlhf.checks.domains import replaced_domains
from cool_rlhf.config import Config
from cool_rlhf.derived_settings import best_by, has_paths, judged_as
from cool_rlhf.evaluation.trained import as_trained
from cool_rlhf.metric_names import validation_metrics
from cool_rlhf.preflight import NEEDS_PPO, collects, conditions_of, held_out_reading
from cool_rlhf.protocols import Prompt, UserError
from cool_rlhf.rules.loading import NamedRule, load_named
from reward.conditions import DEFAULT_DOMAIN, Conditions, UnknownConditionError

if TYPE_CHECKING:
    from cool_rlhf.stages.inputs import Inputs  # what reads prompts imports torch

WORLD_RULE = "cool_rlhf.demo.gold:score"
TRIED_RESPONSES = ("", "So it is.")
TRIED_SECONDS = 20.0
TRIED_PROMPTS = 8  # of each domain, however slow a rule is

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Use:
    """What rules are for: ``judges`` gives those that judge responses to a prompt, each with the domain it judges them
    under; ``prompts`` are all that it will be about."""

    judges: Callable[[Prompt], Iterable[tuple[NamedRule, str]]]
    prompts: Callable[[Inputs], Iterable[Prompt]]


def check_rules(config: Config) -> None:
    """Every function that the config names is there, takes what a rule is given, and gives a finite number for
    responses to the prompts that it will be about; domains that are rewarded or weighed by name have prompts; a reward
    model that is given knows the conditions; validation gives what the best policy goes by; the judge that labels
    within rounds answers; and the detectors that installed packages add are detectors."""
    uses = _uses(config)
    if config.stage == "pipeline" and has_paths(config):
        _check_paths(config)
    if config.stage in NEEDS_PPO:
        _check_trained_conditions(config)

    from cool_rlhf.stages.inputs import Inputs

    inputs = Inputs(config)
    if config.stage in NEEDS_PPO:
        _check_asked_domains(config, inputs)
        if config.data.domain_weights:
            inputs.prompt_stream(config.seed)
        if config.reward.path is not None:
            asked = {prompt.domain for prompt in (*inputs.prompts, *inputs.validation)}
            _check_domains(config.reward.path, asked - config.ppo.rewards.keys())
        _check_best_metric(config, inputs)
    for use in uses:
        _try(use, inputs)


def _uses(config: Config) -> list[_Use]:
    """Of all rules that the stage asks, but for the embedded world's own rule on the embedded world's own prompts under
    their own conditions."""
    data, uses = config.data, []
    if collects(config):
        labeller = load_named(config.collect.labeller, "collect.labeller")
        if data.prompts or labeller.name != WORLD_RULE:
            under = judged_as(config)
            uses.append(
                _Use(
                    lambda prompt: [(labeller, domain) for domain in under.get(prompt.domain, [prompt.domain])],
                    lambda inputs: inputs.prompts,
                )
            )
    online = config.online
    labels = config.stage == "pipeline" and has_paths(config) and (online.pairs > 0 or online.review)
    if labels and online.labeller == "rule":
        people = load_named(config.annotate.rule, "annotate.rule")
        crossed = any(recipe.conditions.keys() - {domain} for domain, recipe in config.ppo.rewards.items())
        if data.prompts or data.validation_prompts or people.name != WORLD_RULE or crossed:
            uses.append(
                _Use(
                    lambda prompt: _people_for(people, prompt, config),
                    lambda inputs: inputs.round_prompts,
                )
            )
    evaluates = config.stage == "evaluate" and config.evaluate.samples_per_prompt > 0
    if evaluates or config.stage in NEEDS_PPO:
        rules = {
            domain: [(load_named(name, f"ppo.rewards.{domain}.rules"), domain) for name in recipe.rules]
            for domain, recipe in config.ppo.rewards.items()
        }
        if any(rules.values()):
            uses.append(_Use(lambda prompt: rules.get(prompt.domain, []), _evaluated if evaluates else _rewarded))
    return uses


def _people_for(people: NamedRule, prompt: Prompt, config: Config) -> list[tuple[NamedRule, str]]:
    """Pairs are labelled under the condition that pays most for the domain, patches under each that pays."""
    from cool_rlhf.ppo.rewards import Recipe

    recipe = config.ppo.rewards.get(prompt.domain)
    paying = Recipe(recipe.conditions, {}).paying if recipe else [prompt.domain]
    return [(people, condition) for condition in (paying if config.online.review else paying[:1])]


def _rewarded(inputs: Inputs) -> Iterable[Prompt]:
    """The prompts of validation and PPO, and those that the run will be evaluated on."""
    weights = inputs.config.data.domain_weights
    asked = (prompt for prompt in inputs.prompts if weights.get(prompt.domain, 1.0) > 0)
    return chain(inputs.validation, _tested(inputs), asked)


def _evaluated(inputs: Inputs) -> Iterable[Prompt]:
    trained = replace(inputs, config=as_trained(inputs.config))
    own = trained.config.data.prompts or trained.config.data.validation_prompts
    return _tested(inputs) if inputs.config.data.test_prompts or not own else trained.validation


def _tested(inputs: Inputs) -> Iterable[Prompt]:
    sources = inputs.config.data.test_prompts
    return inputs.load_prompts(sources, replace(held_out_reading(inputs.config), domains=None)) if sources else []


def _try(use: _Use, inputs: Inputs) -> None:
    """Have every prompt's rules judge a response without a word, a short one and the answer, each finished and cut.
    Once that has taken TRIED_SECONDS, only the first TRIED_PROMPTS of each domain are tried: a slow rule may fail on
    the others when they are asked."""
    begun, tried, left = time.monotonic(), Counter[tuple[str, str]](), 0
    for prompt in use.prompts(inputs):
        for rule, domain in use.judges(prompt):
            if tried[rule.name, domain] >= TRIED_PROMPTS and time.monotonic() - begun > TRIED_SECONDS:
                left += 1
                continue
            tried[rule.name, domain] += 1
            for response, finished in product((*TRIED_RESPONSES, prompt.answer or ""), (True, False)):
                rule(prompt.messages, response, domain, prompt.answer, finished)
    if left:
        names = ", ".join(sorted({name for name, _ in tried}))
        logger.warning("%s: so slow that it was not tried on %d of %d prompts", names, left, left + tried.total())


def _check_paths(config: Config) -> None:
    online = config.online
    if online.labeller == "judge" and (online.pairs > 0 or online.review):
        from cool_rlhf.stages.annotate import make_judge  # late: it imports the endpoint's client

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


def _check_asked_domains(config: Config, inputs: Inputs) -> None:
    """Of every domain that a recipe or a weight is for there is a prompt; of a recipe's, perhaps a test prompt alone.
    The weight of a source's domain stays where the user has replaced the source."""
    data = config.data
    named = {f"ppo.rewards.{domain}": domain for domain in config.ppo.rewards}
    weighed = data.domain_weights.keys() - replaced_domains(data)
    named |= {f"data.domain_weights.{domain}": domain for domain in sorted(weighed)}
    if not named:
        return
    there = {prompt.domain for prompt in (*inputs.prompts, *inputs.validation)}
    tested = {prompt.domain for prompt in _tested(inputs)} if config.ppo.rewards.keys() - there else set()
    for key, domain in named.items():
        if domain not in there | (tested if key.startswith("ppo.") else set()):
            raise UserError(
                f"{key}: no prompt is of domain {domain!r}, only of {', '.join(sorted(there))}: name one of these, or "
                "leave it out"
            )


def _check_best_metric(config: Config, inputs: Inputs) -> None:
    """The held-out prompts that validation reads give what the best policy is to go by."""
    metric, _ = best_by(config.ppo)
    if metric == "validation/lm_loss" and not inputs.held_out_texts:
        raise UserError(
            "ppo.best_metric is 'validation/lm_loss', but no pretraining texts are held out: name some in "
            "data.validation_pretrain"
        )
    if metric in validation_metrics(config, {}):  # whatever the prompts
        return
    asked: dict[str, bool] = {}
    for prompt in inputs.validation[: config.ppo.validation_prompts]:
        recipe = config.ppo.rewards.get(prompt.domain)
        ruled = recipe is not None and bool(recipe.rules)
        golden = ruled or inputs.world_score(prompt, "", True) is not None
        asked[prompt.domain] = asked.get(prompt.domain, False) or golden
    given = validation_metrics(config, asked)
    if metric not in given:
        raise UserError(
            f"ppo.best_metric is {metric!r}, which the held-out prompts do not give, as those that "
            f"validation reads are of {', '.join(sorted(asked))}; use one of {', '.join(given)}"
        )
