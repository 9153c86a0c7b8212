from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cool_rlhf.compose import compose
from cool_rlhf.instructions import KINDS, Instruction
from cool_rlhf.metric_names import validation_metrics
from cool_rlhf.ppo.loop import train_ppo
from cool_rlhf.ppo.rewards import Recipe
from cool_rlhf.ppo.validation import ask_validation, held_out_loss, instruction_metrics, validate
from cool_rlhf.protocols import Prompt, Rollout


def starts_with_one(messages, response, domain, answer, finished) -> float:
    return float(response[0] == "1")


def test_recipes_reach_training_and_validation(make_world, data, settings):
    world = make_world()
    recipes = {"a": Recipe({}, {"m:one": (starts_with_one, 2.0)})}
    train_ppo(world.models, replace(data, recipes=recipes), settings, seed=1, observer=world)
    for row in world.rows:
        assert row["reward/score/a"] == row["reward/rule/a"] == pytest.approx(2 * row["gold/a"])
        assert row["unfinished"] == 1 - row["finished"]
    assert world.rows[-1]["validation/score/a"] == pytest.approx(2 * world.rows[-1]["validation/gold/a"])
    assert "validation/rule/a" in world.rows[-1]
    assert "reward/model/a" not in world.rows[-1]


def test_without_a_gold_rule_for_all_gold_is_what_the_rules_gave(make_world, data, settings):
    world = make_world()
    recipes = {"a": Recipe({"a": 1.0}, {"m:one": (starts_with_one, 2.0)})}
    train_ppo(world.models, replace(data, gold=lambda _: None, recipes=recipes), settings, seed=1, observer=world)
    for row in world.rows:
        assert row["gold"] == row["gold/a"] == row["reward/rule/a"]
        assert "gold/b" not in row
    last = world.rows[-1]
    assert last["validation/gold"] == last["validation/gold/a"] == last["validation/rule/a"]


def test_what_validation_adds_changes_nothing_of_the_training(make_world, data, settings):
    plain, watched = make_world(), make_world()
    train_ppo(plain.models, data, settings, seed=1, observer=plain)
    more = replace(data, held_out_texts=[torch.tensor([0, 1, 2]), torch.tensor([0, 3, 3])])
    train_ppo(watched.models, more, replace(settings, validation_conditions=["b"]), seed=1, observer=watched)
    assert torch.equal(plain.table.rows, watched.table.rows)
    for before, after in zip(plain.rows, watched.rows, strict=True):
        untimed = {n: v for n, v in before.items() if not n.startswith(("time/", "tokens_per_second"))}
        assert untimed.items() <= after.items()
    row = watched.rows[-1]
    assert "validation/lm_loss" in row
    assert row["validation/under/b"] == pytest.approx((row["validation/under/b/a"] + row["validation/under/b/b"]) / 2)
    assert row["validation/under/b/b"] == row["validation/score/b"], "of its own domain it is the score"


def test_the_loss_is_the_mean_over_predictions():
    loss = held_out_loss([torch.tensor([0.0, -1.0, -2.0]), torch.tensor([0.0, -6.0])])
    assert loss == {"validation/lm_loss": pytest.approx(3.0)}


def test_texts_are_read_at_temperature_1_beside_the_sampling(make_world, data, settings):
    world = make_world()
    policy_logprobs, asked = world.models.policy.logprobs, []

    def logprobs(sequences, *, begins=None, temperature=None, keep=False):
        asked.append((temperature, world.log[-1]))
        return policy_logprobs(sequences, begins=begins, temperature=temperature, keep=keep)

    world.models.policy.logprobs = logprobs
    told = replace(data, held_out_texts=[torch.tensor([0, 1, 2])])
    pending = ask_validation(world.models, told, settings, seed=1, version=world.publish())
    assert asked == [(1.0, "sample")]
    assert "validation/lm_loss" in validate(world.models, told, settings, world, 1, pending)


def test_validation_does_not_wait_behind_the_next_steps_responses(make_world, data, settings):
    world = make_world()
    train_ppo(world.models, data, settings, seed=1, observer=world)
    validated = [place for place, ids in enumerate(world.sampled) if ids[0] == "q32"]
    assert validated == [2, 5, 8, 11], "steps 1 and 2 have been sampled, not 3"


def test_shares_of_instructions_by_kind():
    prompt = Prompt("p", [{"role": "user", "content": "?"}], "default", None)
    instructions = [Instruction(kind, prompt, lambda said: said == "yes") for kind in ("x", "x", "y")]

    def answer(text: str, finished: bool = True) -> Rollout:
        return Rollout(prompt, torch.zeros(1), torch.zeros(1), torch.zeros(1), finished, 1, text)

    answers = [answer(" yes\n"), answer("no"), answer("yes", finished=False)]
    assert instruction_metrics(instructions, answers) == pytest.approx(
        {"validation/instructions": 1 / 3, "validation/instructions/x": 0.5, "validation/instructions/y": 0.0}
    )
    assert instruction_metrics([], []) == {}


def test_instructions_are_asked_behind_the_prompts_and_not_scored(make_world, data, settings):
    world = make_world()
    prompt = Prompt("told", [{"role": "user", "content": "say"}], "default", None)
    told = [Instruction("x", prompt, lambda said: True)]
    train_ppo(world.models, replace(data, instructions=told), settings, seed=1, observer=world)
    held_out = [ids for ids in world.sampled if ids[-1] == "told"]
    assert held_out == [[*(f"q{k}" for k in range(32, 40)), "told"]] * 4
    assert world.rows[-1]["validation/instructions"] == 1.0
    assert len(world.shown[8][0]) == 8
    assert "validation/score/default" not in world.rows[-1]


@pytest.mark.parametrize(("mode", "better"), [("max", max), ("min", min), (None, min)])
def test_the_best_checkpoint_goes_by_any_metric_in_either_direction(make_world, data, settings, mode, better):
    world = make_world()
    settings = replace(settings, best_metric="validation/kl", best_mode=mode)
    state = train_ppo(world.models, data, settings, seed=1, observer=world)
    found = [row["validation/kl"] for row in world.rows[2:] if "validation/kl" in row]
    assert state.best == better(found)
    assert len({round(value, 6) for value in found}) > 1
    assert [kept for kept in world.kept if kept[0] == "best"][-1][2] == better(found)


def test_names_said_beforehand_are_those_that_come(make_world, data, settings):
    world = make_world()
    config = compose(
        [
            "+experiment=demo",
            "conditions.a=A",
            "conditions.b=B",
            "ppo.rewards={a:{conditions:{a:1.0,b:0.5},rules:{m\\:one:1.0,m\\:two:1.0}}}",
            "ppo.validation_conditions=[b]",
            "ppo.validation_instructions=10",
        ]
    )
    prompt = Prompt("told", [{"role": "user", "content": "say"}], "default", None)
    recipes = {"a": Recipe({"a": 1.0, "b": 0.5}, {"m:one": (starts_with_one, 1.0), "m:two": (starts_with_one, 1.0)})}
    full = replace(
        data,
        recipes=recipes,
        held_out_texts=[torch.tensor([0, 1, 2])] * 2,
        instructions=[Instruction(kind, prompt, lambda said: True) for kind in KINDS],
    )
    train_ppo(world.models, full, replace(settings, validation_conditions=["b"]), seed=1, observer=world)
    came = {name for name in world.rows[-1] if name.startswith("validation/")}
    said = set(validation_metrics(config))
    assert came <= said
    none_of_them = {"default", *compose(["+experiment=demo"]).conditions}  # no prompt is of these
    assert {name.split("/")[2] for name in said - came} == none_of_them | {"b"}
    assert "validation/gold/b" in said - came  # a domain without a gold rule
    assert all(math.isfinite(world.rows[-1][name]) for name in came)
