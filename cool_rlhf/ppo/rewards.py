"""What a response is rewarded for: the conditional reward model, rules, or a weighted sum of both, by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cool_rlhf.ppo.experience import by_domain, to_score
from cool_rlhf.protocols import Future, Prompt, Rollout, Rule, Scorer


@dataclass(frozen=True)
class Recipe:
    """Reward of a domain's responses: Σ weight · (score under the condition) + Σ weight · (value of the rule)."""

    conditions: Mapping[str, float]  # name → weight
    rules: Mapping[str, tuple[Rule, float]]  # ``module:function`` → the function and its weight

    @property
    def paying(self) -> list[str]:
        """The conditions that add to the reward, those that weigh most first."""
        return sorted(
            (name for name, weight in self.conditions.items() if weight > 0), key=lambda name: -self.conditions[name]
        )

    def gold(self, values: Mapping[str, float]) -> float | None:
        """What the rules alone say, by the ``values`` that they gave: Σ weight · value. A rule that weighs nothing in
        the reward only watches, and weighs 1 here. None without rules."""
        if not self.rules:
            return None
        return sum((weight or 1.0) * values[name] for name, (_, weight) in self.rules.items())


@dataclass(frozen=True)
class Reward:
    """The reward of one response and what it is made of."""

    total: float
    model: float  # the conditions' part of the total, weighted
    rule: float  # the rules' part, weighted
    conditions: Mapping[str, float]  # the reward model's score under each, as it gave it
    rules: Mapping[str, float]  # each rule's value, as it gave it


def recipe_for(recipes: Mapping[str, Recipe], domain: str) -> Recipe:
    """Without a recipe, the reward model under the domain's own condition (report, section 4.2.3)."""
    return recipes.get(domain) or Recipe({domain: 1.0}, {})


@dataclass(frozen=True)
class PendingRewards:
    """The Future of a batch's rewards: the rules have been asked, and the reward model is at work."""

    recipes: Sequence[Recipe]  # of each response
    values: Sequence[Mapping[str, float]]  # of each response's rules
    scores: Future[list[float]]  # of each response under its recipe's conditions, all in one list

    def result(self) -> list[Reward]:
        """In the order of the rollouts."""
        scores = iter(self.scores.result())
        return [
            _combine(recipe, {name: next(scores) for name in recipe.conditions}, rules)
            for recipe, rules in zip(self.recipes, self.values, strict=True)
        ]


def ask_rewards(scorer: Scorer, rollouts: Sequence[Rollout], recipes: Mapping[str, Recipe]) -> PendingRewards:
    """Ask the reward model for each response under every condition of its domain's recipe, all at once, and run the
    rules here while it works."""
    used = [recipe_for(recipes, rollout.prompt.domain) for rollout in rollouts]
    asked = [
        replace(to_score(rollout), condition=name)
        for recipe, rollout in zip(used, rollouts, strict=True)
        for name in recipe.conditions
    ]
    scores = scorer.score(asked)
    values = [
        apply_rules(recipe, rollout.prompt, rollout.response, rollout.finished)
        for recipe, rollout in zip(used, rollouts, strict=True)
    ]
    return PendingRewards(used, values, scores)


def apply_rules(recipe: Recipe, prompt: Prompt, response: str, finished: bool) -> dict[str, float]:
    """Every rule's value of one response."""
    return {
        name: rule(prompt.messages, response, prompt.domain, prompt.answer, finished)
        for name, (rule, _) in recipe.rules.items()
    }


def part_metrics(
    rollouts: Sequence[Rollout], rewards: Sequence[Reward], recipes: Mapping[str, Recipe], name: str
) -> dict[str, float]:
    """Means of the parts for domains with a recipe: ``NAME/model/DOMAIN`` and ``NAME/rule/DOMAIN`` as they enter the
    reward, ``NAME/condition/DOMAIN/CONDITION`` unweighted, and where there are several rules each one's value as
    ``NAME/rule/DOMAIN/RULE``."""
    pairs = zip(rollouts, rewards, strict=True)
    mixed = [(rollout, reward) for rollout, reward in pairs if rollout.prompt.domain in recipes]
    metrics: dict[str, float] = {}
    told = [rollout for rollout, _ in mixed]
    metrics |= by_domain(told, [reward.model if reward.conditions else None for _, reward in mixed], f"{name}/model")
    metrics |= by_domain(told, [reward.rule if reward.rules else None for _, reward in mixed], f"{name}/rule")
    for domain in sorted({rollout.prompt.domain for rollout, _ in mixed}):
        own = [reward for rollout, reward in mixed if rollout.prompt.domain == domain]
        for condition in recipes[domain].conditions:
            metrics[f"{name}/condition/{domain}/{condition}"] = sum(r.conditions[condition] for r in own) / len(own)
        if len(recipes[domain].rules) > 1:
            for rule in recipes[domain].rules:
                metrics[f"{name}/rule/{domain}/{rule}"] = sum(reward.rules[rule] for reward in own) / len(own)
    return metrics


def _combine(recipe: Recipe, conditions: Mapping[str, float], rules: Mapping[str, float]) -> Reward:
    model = sum(weight * conditions[name] for name, weight in recipe.conditions.items())
    rule = sum(weight * rules[name] for name, (_, weight) in recipe.rules.items())
    return Reward(model + rule, model, rule, conditions, rules)
