from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from cool_rlhf.data.streams import TextPosition
from cool_rlhf.ppo.kl import adapted_coefficient
from cool_rlhf.ppo.loop import minibatches, train_ppo
from cool_rlhf.ppo.state import PPOState, learning_rates, ppo_state, shaping
from cool_rlhf.protocols import StaleWeightsError
from cool_rlhf.schedule import derive_seed


def untimed(rows: list[dict]) -> list[dict]:
    """What does not depend on how fast the machine was."""
    return [{n: v for n, v in row.items() if not n.startswith(("time/", "tokens_per_second"))} for row in rows]


def test_the_policy_reaches_the_optimum_of_reward_less_divergence(make_world, data, settings):
    # Reward less β·KL(π ‖ π_ref) over whole responses is greatest at π*(y) ∝ π_ref(y) · exp(r(y) / β).
    world = make_world()
    settings = replace(
        settings,
        iterations=60,
        critic_warmup=10,
        prompts_per_iteration=256,
        kl_coefficient=0.5,
        learning_rate_schedule="cosine",
        policy_learning_rate=0.1,
        epochs=2,
        validate_every=1000,
    )
    train_ppo(world.models, data, settings, seed=1, observer=world)

    def responses(table) -> torch.Tensor:
        rows = table.rows.detach().softmax(-1)
        return rows[0][:, None] * rows[1:]

    best = responses(world.reference_table) * (world.rewards / 0.5).exp()
    best /= best.sum()
    start = (responses(world.reference_table) - best).abs().sum() / 2
    end = (responses(world.table) - best).abs().sum() / 2
    assert start > 0.4
    assert end < 0.06


def test_each_step_asks_in_the_order_of_the_method(make_world, data, settings):
    world = make_world()
    train_ppo(world.models, data, replace(settings, iterations=1, critic_warmup=1), seed=1, observer=world)
    validation = ["[validate]", "logprobs", "score"]
    portion = ["logprobs", "score"]  # asked for while others are still sampled
    judged = [*portion, *portion, "[score]", "[train]", "critic"]
    sampled = ["sample", "sample"]  # validation's responses, then the next step's
    first = ["[generate]", "sample", *judged, "[sync]", *sampled, "[train]", *validation]
    second = ["[generate]", *judged, "policy", "[sync]", "publish", "sample", "[train]", *validation]
    assert world.log == ["publish", *first, *second]


def test_rows_carry_the_names_of_the_contract(make_world, data, settings):
    world = make_world()
    train_ppo(world.models, data, settings, seed=1, observer=world)
    assert world.steps == [(step, 8) for step in range(1, 9)]
    always = {"reward/score", "reward/score/a", "reward/score/b", "kl", "response_length", "loss/value", "gold/a"}
    always |= {"time/generate", "time/score", "time/train", "time/sync", "time/other", "tokens_per_second"}
    for step, row in enumerate(world.rows, start=1):
        assert always <= set(row)
        assert "gold/b" not in row
        assert (row.get("warmup") is True) == (step <= 2) == ("loss/policy" not in row) == ("loss/pretrain" not in row)
        assert ("validation/score" in row) == (step in (2, 4, 6, 8))
    held_out = {"validation/score/a", "validation/gold/a", "validation/kl", "validation/response_length"}
    assert held_out <= set(world.rows[-1])
    assert world.rows[1]["validation/kl"] == 0  # the policy is still the reference


def test_validations_show_what_they_sampled(make_world, data, settings):
    world = make_world()
    train_ppo(world.models, data, settings, seed=1, observer=world)
    assert list(world.shown) == [2, 4, 6, 8]
    for step, (rollouts, scores, gold) in world.shown.items():
        row = world.rows[step - 1]
        assert [rollout.prompt for rollout in rollouts] == list(data.validation)
        assert row["validation/score"] == pytest.approx(sum(scores) / 8)
        known = [value for value in gold if value is not None]
        assert len(known) == 4
        assert row["validation/gold"] == row["validation/gold/a"] == pytest.approx(sum(known) / 4)


def test_the_policy_is_frozen_until_the_critic_is_warm(make_world, data, settings):
    world = make_world()
    train_ppo(world.models, data, replace(settings, iterations=0, critic_warmup=3), seed=1, observer=world)
    assert torch.equal(world.table.rows, world.reference_table.rows)
    assert world.log.count("critic") == 3
    assert world.log.count("publish") == 1


def test_prompts_follow_the_stream_and_validation_its_own(make_world, data, settings):
    world = make_world()
    train_ppo(world.models, data, settings, seed=1, observer=world)
    drawn = [ids for ids in world.sampled if len(ids) == 16]
    assert sorted(drawn[0] + drawn[1]) == sorted(f"q{k}" for k in range(32))
    held_out = [ids for ids in world.sampled if len(ids) == 8]
    assert held_out == [[f"q{k}" for k in range(32, 40)]] * 4
    by_size = {
        size: [s for s, ids in zip(world.seeds, world.sampled, strict=True) if len(ids) == size] for size in (8, 16)
    }
    assert len(set(by_size[16])) == 8  # every step draws anew
    assert len(set(by_size[8])) == 1  # validations differ by the policy alone


def test_pretraining_text_is_half_of_the_tokens(make_world, data, settings):
    world = make_world()
    train_ppo(world.models, data, settings, seed=1, observer=world)
    # 16 sequences of 3 tokens: 24 tokens of text at each of the six policy steps, a token less where one would be alone
    assert len(world.texts) == 6
    for texts in world.texts:
        assert 23 <= sum(map(len, texts)) <= 24


MOVING = {"normalise_rewards": True, "kl_target": 0.02, "kl_horizon": 100, "kl_coefficient": 0.5, "stop_kl": 0.01}


@pytest.mark.parametrize("changes", [{}, MOVING, {**MOVING, "kl_in": "loss", "kl_estimator": "k3", "epochs": 3}])
def test_a_resumed_run_is_the_same_run(make_world, data, settings, changes):
    settings = replace(settings, validate_every=1, **changes)  # so that both validate where the first one ends
    whole = make_world()
    last = train_ppo(whole.models, data, settings, seed=1, observer=whole)

    first = make_world()
    train_ppo(first.models, data, replace(settings, iterations=1), seed=1, observer=first)
    assert [state.step for state in first.states] == [3]
    second = make_world()
    second.restore(first.saved)
    saved = ppo_state(json.loads(json.dumps(asdict(first.states[0]))))  # as a snapshot keeps it
    assert saved == first.states[0]
    resumed = train_ppo(second.models, data, settings, seed=1, observer=second, start=saved)
    assert untimed(second.rows) == untimed(whole.rows[3:])
    assert resumed == last
    assert torch.equal(second.table.rows, whole.table.rows)
    assert [kept for kept in whole.kept if kept[1] > 3] == second.kept


def test_responses_sampled_ahead_are_one_update_behind_except_after_a_save(make_world, data, settings):
    settings = replace(
        settings, generate_ahead=True, old_logprobs="engine", iterations=6, critic_warmup=1, save_every=4
    )
    world = make_world()
    train_ppo(world.models, data, settings, seed=1, observer=world)
    assert [row["updates_behind"] for row in world.rows] == [0, 0, 1, 1, 0, 1, 1]
    assert world.sampled[0] != world.sampled[1]
    generated = [place for place, asked in enumerate(world.log) if asked == "sample"]
    between = world.log[generated[0] + 1 : generated[1]]
    assert set(between) == {"score", "logprobs"}  # the second before the first one's update


def test_a_resumed_run_that_samples_ahead_is_the_same_run(make_world, data, settings):
    settings = replace(
        settings, generate_ahead=True, engine_correction=2.0, iterations=5, save_every=3, validate_every=1
    )
    whole = make_world()
    last = train_ppo(whole.models, data, settings, seed=1, observer=whole)
    assert any(row["updates_behind"] for row in whole.rows[3:])

    first = make_world()
    train_ppo(first.models, data, replace(settings, iterations=1), seed=1, observer=first)
    second = make_world()
    second.restore(first.saved)
    assert first.states[-1].step == 3
    assert train_ppo(second.models, data, settings, seed=1, observer=second, start=first.states[-1]) == last
    assert untimed(second.rows) == untimed(whole.rows[3:])
    assert torch.equal(second.table.rows, whole.table.rows)


def test_another_seed_is_another_run(make_world, data, settings):
    runs = []
    for seed in (1, 2):
        world = make_world()
        train_ppo(world.models, data, settings, seed=seed, observer=world)
        runs.append(untimed(world.rows))
    assert runs[0] != runs[1]


def test_a_prompt_is_answered_as_often_as_asked(make_world, data, settings):
    world = make_world()
    several = replace(settings, prompts_per_iteration=8, samples_per_prompt=2)
    state = train_ppo(world.models, data, several, seed=1, observer=world)
    trained = [
        asked for asked, seed in zip(world.sampled, world.seeds, strict=True) if seed != derive_seed(1, "validation")
    ]
    assert all(len(asked) == 16 and asked[::2] == asked[1::2] and len(set(asked)) == 8 for asked in trained)
    first = [prompt.id for prompt in data.prompts.take(0, 8)]
    assert trained[0][::2] == first
    assert state.prompts == 8 * state.step
    once = make_world()
    train_ppo(once.models, data, settings, seed=1, observer=once)
    assert world.batches == once.batches, "as many responses"


def test_weights_that_did_not_arrive_stop_the_run(make_world, data, settings):
    world = make_world()
    settings = replace(settings, critic_warmup=0)
    world.publish()
    world.push = False
    with pytest.raises(StaleWeightsError):
        train_ppo(world.models, data, settings, seed=1, observer=world)


def test_rollouts_of_another_version_stop_the_run(make_world, data, settings):
    world = make_world()
    honest = world.models.sampler.sample

    def stale(prompts, *, seed, version):
        rollouts = honest(prompts, seed=seed, version=version).result()
        return world.ready([*rollouts[:-1], replace(rollouts[-1], policy_version=version - 1)])

    world.models.sampler.sample = stale
    with pytest.raises(StaleWeightsError, match="version"):
        train_ppo(world.models, data, settings, seed=1, observer=world)


def test_epochs_and_minibatches_are_optimiser_steps(make_world, data, settings):
    world = make_world()
    settings = replace(settings, epochs=2, minibatches=3, iterations=1, critic_warmup=0)
    train_ppo(world.models, data, settings, seed=1, observer=world)
    assert world.batches == [5, 5, 6, 5, 5, 6]
    assert world.log.count("policy") == 6


def test_passes_are_kept_of_models_that_the_step_trains(make_world, data, settings):
    """Not the policy's while the critic warms up, nor those of validation."""
    for keeps in (False, True):
        world = make_world()
        changed = replace(settings, keep_passes=keeps, critic_warmup=1, iterations=1, validate_every=1)
        train_ppo(world.models, data, changed, seed=1, observer=world)
        warmup = [("policy", False), ("critic", keeps)] * 2  # responses come in two portions
        step = [("policy", keeps), ("critic", keeps)] * 2
        assert world.kept_passes == [*warmup, ("policy", False), *step, ("policy", False)]


def test_every_epoch_sees_everything_once_in_its_own_order(settings):
    parts = minibatches(list(range(10)), replace(settings, epochs=2, minibatches=4), seed=3)
    first, second = sum(parts[:4], []), sum(parts[4:], [])  # noqa: RUF017
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert minibatches([1, 2], replace(settings, minibatches=5), seed=3) in ([[1], [2]], [[2], [1]])


def test_learning_rates(settings):
    constant = replace(settings, policy_learning_rate=1.0, critic_learning_rate=2.0)
    assert {learning_rates(done, constant) for done in range(8)} == {(2.0, 1.0)}
    cosine = replace(constant, learning_rate_schedule="cosine")
    assert learning_rates(0, cosine) == pytest.approx((2.0, 1.0))
    assert learning_rates(2, cosine)[1] == pytest.approx(1.0)  # the policy's begins after the warm-up
    assert learning_rates(7, cosine) == pytest.approx((0.2, 0.1))


def test_the_weight_of_entropy_follows_its_schedule(make_world, data, settings):
    for schedule, wanted in (("constant", [0.2] * 5), ("linear", [0.2, 0.15, 0.1, 0.05, 0.0])):
        world = make_world()
        chosen = replace(settings, entropy_coefficient=0.2, entropy_schedule=schedule, iterations=5, critic_warmup=2)
        train_ppo(world.models, data, chosen, seed=1, observer=world)
        assert world.entropy_in_loss == pytest.approx(wanted)
        told = [row["policy/entropy_coefficient"] for row in world.rows if "policy/entropy_coefficient" in row]
        assert told == pytest.approx(wanted if schedule == "linear" else [])


def test_the_coefficient_follows_its_target_once_the_policy_learns(make_world, data, settings):
    world = make_world()
    settings = replace(settings, kl_coefficient=0.5, kl_target=0.02, kl_horizon=100)
    state = train_ppo(world.models, data, settings, seed=1, observer=world)
    coefficients = [row["kl_coefficient"] for row in world.rows]
    assert coefficients[:3] == [0.5] * 3, "not in the warm-up, nor before an iteration has shown its divergence"
    for before, after, row in zip(coefficients[2:], coefficients[3:], world.rows[2:], strict=False):
        assert after == adapted_coefficient(before, row["kl"], 0.02, 16 / 100)
    assert len(set(coefficients)) > 3
    assert state.kl_coefficient == adapted_coefficient(coefficients[-1], world.rows[-1]["kl"], 0.02, 16 / 100)
    assert world.kl_in_loss == [0.0] * 6


def test_the_divergence_stands_in_the_reward_or_in_the_loss(make_world, data, settings):
    seen = {}
    for place in ("reward", "loss"):
        world = make_world()
        chosen = replace(settings, kl_in=place, kl_estimator="k2", kl_coefficient=0.5, iterations=3, critic_warmup=0)
        train_ppo(world.models, data, chosen, seed=1, observer=world)
        assert world.kl_in_loss == [0.5 if place == "loss" else 0.0] * 3
        seen[place] = world
    for place, world in seen.items():
        shaped = shaping(replace(settings, kl_in=place, kl_coefficient=0.5), PPOState())
        assert shaped.kl_coefficient == (0.5 if place == "reward" else 0.0)
        assert world.rows[-1]["kl"] != 0
    assert not torch.equal(seen["reward"].table.rows, seen["loss"].table.rows)


def test_an_iteration_stops_where_the_policy_has_moved_too_far(make_world, data, settings):
    world = make_world()
    settings = replace(settings, epochs=5, minibatches=2, iterations=1, critic_warmup=0, policy_learning_rate=0.2)
    moved: list[float] = []
    update = world.models.policy.update

    def watched(*arguments):
        future = update(*arguments)
        moved.append(future.result()["policy/moved"])
        return future

    world.models.policy.update = watched
    train_ppo(world.models, data, settings, seed=1, observer=world)
    assert len(moved) == 10
    assert world.rows[0]["policy/steps"] == 10
    limit = max(moved) / 3
    first = next(step for step, value in enumerate(moved, 1) if value > limit)
    assert 1 < first < 10
    unstopped, moved[:] = list(moved), []
    world = make_world()
    update = world.models.policy.update
    world.models.policy.update = watched
    train_ppo(world.models, data, replace(settings, stop_kl=limit), seed=1, observer=world)
    assert moved == unstopped[:first]
    assert world.rows[0]["policy/steps"] == first
    assert world.log.count("critic") == 10, "the critic learns from all minibatches"


@pytest.mark.parametrize("minibatches", [1, 2, 5, 16])
def test_the_volume_of_pretraining_text_does_not_depend_on_minibatches(make_world, data, settings, minibatches):
    # 16 sequences of 3 tokens at 0.3: 14.4 tokens an epoch, 28.8 in two.
    world = make_world()
    settings = replace(settings, pretrain_ratio=0.3, minibatches=minibatches, epochs=2, iterations=1, critic_warmup=0)
    state = train_ppo(world.models, data, settings, seed=1, observer=world)
    assert len(world.texts) == 2 * minibatches
    taken = [text for texts in world.texts for text in texts]
    assert 28 <= sum(map(len, taken)) <= 29
    # One stream, whatever takes from it: its pieces follow each other; what stands alone at a text's end is left out.
    whole, _ = data.pretrain.take(TextPosition(), 40)
    left = iter(torch.cat(whole).tolist())
    assert all(token in left for text in taken for token in text.tolist())
    assert state.pretrain.item in (3, 4)


def test_normalised_rewards_know_all_scores_so_far(make_world, data, settings):
    world = make_world()
    state = train_ppo(world.models, data, replace(settings, normalise_rewards=True), seed=1, observer=world)
    assert state.scores.count == 8 * 16
    means = [row["reward/score"] for row in world.rows]
    for step, row in enumerate(world.rows, 1):
        assert row["reward/running_mean"] == pytest.approx(sum(means[:step]) / step, abs=1e-6)
    assert "reward/running_mean" not in _rows_of_plain_run(make_world, data, settings)[0]


def _rows_of_plain_run(make_world, data, settings) -> list[dict]:
    world = make_world()
    train_ppo(world.models, data, replace(settings, iterations=1), seed=1, observer=world)
    return world.rows
