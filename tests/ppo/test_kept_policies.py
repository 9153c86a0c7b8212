"""Which policies and states of a round are kept, and where a round ends."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cool_rlhf.derived_settings import validations
from cool_rlhf.ppo.loop import early_iteration, keep_best, train_ppo
from cool_rlhf.ppo.state import PPOState
from cool_rlhf.protocols import UserError
from cool_rlhf.schedule import derive_seed


def test_a_finished_state_has_nothing_left_to_do(make_world, data, settings):
    world = make_world()
    state = train_ppo(world.models, data, settings, seed=1, observer=world)
    rows = len(world.rows)
    assert train_ppo(world.models, data, settings, seed=1, observer=world, start=state) == state
    assert len(world.rows) == rows


@pytest.mark.parametrize("ahead", [False, True])
def test_a_round_ends_where_score_and_gold_part(make_world, data, settings, ahead):
    world = make_world()
    world.parts_at = 4
    stopping = replace(settings, stop_when_parted=True, generate_ahead=ahead, old_logprobs="engine")
    state = train_ppo(world.models, data, stopping, seed=1, observer=world)
    assert [step for step, _ in world.steps] == [1, 2, 3, 4]
    asked = [seed for seed in world.seeds if seed != derive_seed(1, "validation")]
    assert len(asked) == 4, "no engine is left at work"
    assert (state.step, state.ended) == (4, True)
    assert world.states[-1] == state, "it is saved there, so that it stays ended"
    assert train_ppo(world.models, data, stopping, seed=1, observer=world, start=state) == state
    warned = make_world()
    warned.parts_at = 4
    assert train_ppo(warned.models, data, settings, seed=1, observer=warned).step == 8, "off by default"


def test_a_round_that_ends_where_score_and_gold_part_keeps_the_policy_of_best_gold(make_world, data, settings):
    world = make_world()
    world.parts_at = 8
    data = replace(data, gold=lambda rollout: -float(world.rewards[int(rollout.response[0]), int(rollout.response[1])]))
    stopping = replace(settings, iterations=20, policy_learning_rate=0.1, stop_when_parted=True)
    state = train_ppo(world.models, data, stopping, seed=1, observer=world)
    gold = {step: world.rows[step - 1]["validation/gold"] for step in (4, 6, 8)}
    best = max(gold, key=lambda step: gold[step])
    assert best != max(gold, key=lambda step: world.rows[step - 1]["validation/score"])
    assert [step for kind, step, *_ in world.kept if kind == "best"][-1] == best
    assert (state.ended, state.best) == (True, gold[best])


@pytest.mark.parametrize(("warmup", "iterations", "every"), [(0, 6, 2), (2, 6, 4), (1, 2, 5), (1, 5, 1)])
def test_a_round_has_as_many_validations_as_are_announced(make_world, data, settings, warmup, iterations, every):
    world = make_world()
    settings = replace(settings, critic_warmup=warmup, iterations=iterations, validate_every=every)
    train_ppo(world.models, data, settings, seed=1, observer=world)
    assert len(world.shown) == validations(settings)


@pytest.mark.parametrize(("share", "kept"), [(0.1, [3]), (0.5, [4]), (1.0, [4])])
def test_a_round_that_ends_before_its_early_policy_keeps_the_last_as_that(make_world, data, settings, share, kept):
    world = make_world()
    world.parts_at = 4
    stopping = replace(settings, stop_when_parted=True, early_snapshot=share)
    train_ppo(world.models, data, stopping, seed=1, observer=world)
    assert [entry for entry in world.kept if entry[0] == "early"] == [("early", step) for step in kept]


def test_checkpoints_come_every_so_often_and_at_the_end(make_world, data, settings):
    world = make_world()
    train_ppo(world.models, data, settings, seed=1, observer=world)
    assert [state.step for state in world.states] == [3, 6, 8]
    assert [state.prompts for state in world.states] == [48, 96, 128]


def test_a_run_that_goes_on_past_its_early_iteration_keeps_the_next_policy_as_that(make_world, data, settings):
    """As one does whose iterations are made fewer after it was stopped."""
    first, second = make_world(), make_world()
    train_ppo(first.models, data, replace(settings, early_snapshot=1.0), seed=1, observer=first)
    stopped = next(state for state in first.states if state.step == 6)
    train_ppo(second.models, data, settings, seed=1, observer=second, start=stopped)
    assert [entry for entry in second.kept if entry[0] == "early"] == [("early", 7)]


def test_the_best_and_the_early_policy_are_kept(make_world, data, settings):
    world = make_world()
    state = train_ppo(world.models, data, settings, seed=1, observer=world)
    scores = {step: row["validation/score"] for step, row in enumerate(world.rows, 1) if "validation/score" in row}
    expected, best = [], float("-inf")
    for step in (4, 6, 8):  # step 2 is the warm-up's: its policy is the reference
        if scores[step] > best:
            best = scores[step]
            expected.append(("best", step, best))
    assert [kept for kept in world.kept if kept[0] == "best"] == expected
    assert state.best == best
    assert [kept for kept in world.kept if kept[0] == "early"] == [("early", 3)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_policy_that_has_diverged_is_not_kept_as_the_best(settings, value):
    """Nothing would ever be better than it."""
    kept: list[tuple[int, float]] = []
    observer = SimpleNamespace(keep_best=lambda step, value: kept.append((step, value)))
    state = PPOState(step=settings.critic_warmup + 1)
    for row in ({"validation/score": value}, {"validation/score": 0.5, "loss/policy": value}):
        state = keep_best(state, row, settings, observer)
        assert (state.best, kept) == (None, [])
    state = keep_best(state, {"validation/score": 0.5}, settings, observer)
    assert (state.best, kept) == (0.5, [(state.step, 0.5)])


@pytest.mark.parametrize(("share", "iterations", "expected"), [(0.1, 400, 40), (0.1, 6, 1), (0.5, 9, 4), (0.0, 9, 1)])
def test_early_means_a_share_of_the_iterations(settings, share, iterations, expected):
    assert early_iteration(replace(settings, early_snapshot=share, iterations=iterations)) == expected


def test_a_metric_that_validation_does_not_give_is_named(make_world, data, settings):
    world = make_world()
    with pytest.raises(UserError, match="validation/gold/a"):
        train_ppo(world.models, data, replace(settings, best_metric="validation/gold/c"), seed=1, observer=world)
