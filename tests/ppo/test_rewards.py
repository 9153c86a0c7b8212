"""Rewards by recipe, worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from cool_rlhf.ppo.experience import to_score
from cool_rlhf.ppo.rewards import Recipe, ask_rewards, part_metrics
from cool_rlhf.protocols import Prompt, Rollout, ScoredConversation, UserError
from cool_rlhf.rules.loading import NamedRule

SCORES = {"helpful": 1.0, "harmless": -2.0, "maths": 0.1, "poetry": 0.3}


def rollout(domain: str, response: str = "fine", finished: bool = True) -> Rollout:
    prompt = Prompt(f"{domain} prompt", [{"role": "user", "content": "go on"}], domain, "42")
    tokens = torch.arange(3)
    return Rollout(prompt, tokens, tokens, torch.zeros(3), finished, 1, response)


@pytest.fixture
def scorer(ready):
    """Scores by condition alone, with one more for an unfinished response; remembers what it was asked."""

    class Scorer(SimpleNamespace):
        def score(self, conversations: list[ScoredConversation]):
            self.asked = list(conversations)
            return ready([SCORES[item.condition] + (not item.finished) for item in conversations])

    return Scorer()


def length(messages, response, domain, answer, finished) -> float:
    return len(response)


def whole(messages, response, domain, answer, finished) -> int:
    assert messages[-1]["content"] == "go on"
    assert answer == "42"
    return int(finished)


def test_without_recipes_it_is_the_reward_model_under_the_own_domain_to_the_bit(scorer):
    rollouts = [rollout("maths"), rollout("poetry", finished=False)]
    rewards = ask_rewards(scorer, rollouts, {}).result()
    assert [reward.total for reward in rewards] == [0.1, 0.3 + 1]
    assert scorer.asked == [to_score(each) for each in rollouts]
    assert part_metrics(rollouts, rewards, {}, "reward") == {}


def test_gold_is_what_rules_alone_say_those_that_only_watch_among_them():
    recipe = Recipe({"helpful": 0.7}, {"m:length": (length, 0.5), "m:whole": (whole, 0.0)})
    assert recipe.gold({"m:length": 3.0, "m:whole": 1.0}) == pytest.approx(2.5)
    assert Recipe({"helpful": 1.0}, {}).gold({}) is None


def test_conditions_that_pay_stand_by_their_weight() -> None:
    assert Recipe({"brief": 0.5, "watched": 0.0, "kind": 0.7, "loud": -1.0}, {}).paying == ["kind", "brief"]


def test_a_recipe_weighs_conditions_and_rules(scorer):
    recipes = {
        "chat": Recipe({"helpful": 0.7, "harmless": 0.3}, {"m:length": (length, 0.5), "m:whole": (whole, -2.0)}),
        "maths": Recipe({}, {"m:whole": (whole, 1.0)}),
    }
    rollouts = [rollout("maths"), rollout("chat", "abc"), rollout("poetry"), rollout("chat", "a", finished=False)]
    rewards = ask_rewards(scorer, rollouts, recipes).result()
    assert [item.condition for item in scorer.asked] == ["helpful", "harmless", "poetry", "helpful", "harmless"]
    # 0.7·1 − 0.3·2 + 0.5·3 − 2·1 = −0.4; unfinished 0.7·2 − 0.3·1 + 0.5·1 − 0 = 1.6
    assert [reward.total for reward in rewards] == pytest.approx([1.0, -0.4, 0.3, 1.6])
    assert part_metrics(rollouts, rewards, recipes, "reward") == pytest.approx(
        {
            "reward/model/chat": (0.1 + 1.1) / 2,
            "reward/rule/chat": (-0.5 + 0.5) / 2,
            "reward/rule/maths": 1.0,
            "reward/condition/chat/helpful": 1.5,
            "reward/condition/chat/harmless": -1.5,
            "reward/rule/chat/m:length": 2.0,
            "reward/rule/chat/m:whole": 0.5,
        }
    )


def test_rules_run_before_the_reward_model_is_waited_for():
    class Silent:
        def score(self, conversations):
            order.append("asked")
            return SimpleNamespace(result=lambda: order.append("waited for") or [0.1])

    order: list[str] = []
    rule = lambda *_: order.append("rule") or 1.0  # noqa: E731
    pending = ask_rewards(Silent(), [rollout("maths")], {"maths": Recipe({"maths": 1.0}, {"m:rule": (rule, 1.0)})})
    assert order == ["asked", "rule"]
    assert [reward.total for reward in pending.result()] == [1.1]


def test_a_rule_that_fails_on_a_response_ends_the_run_in_one_sentence(scorer):
    def odd(messages, response, domain, answer, finished) -> float:
        return 1.0 if finished else math.nan

    rule = NamedRule(odd, "m:odd", "ppo.rewards.chat.rules")
    recipes = {"chat": Recipe({}, {"m:odd": (rule, 1.0)})}
    assert ask_rewards(scorer, [rollout("chat")], recipes).result()[0].total == 1.0
    told = r"ppo\.rewards\.chat\.rules: the rule m:odd gave nan for an unfinished response to 'go on'"
    with pytest.raises(UserError, match=told):
        ask_rewards(scorer, [rollout("chat", finished=False)], recipes)
