import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from cool_rlhf.config import RewardConfig
from reward.losses import reward_loss
from reward.pairs import EncodedPair
from reward.training import pair_scores, reward_update, train_reward

SETTINGS = {
    "gamma": 2.0,
    "penalty_weight": 0.02,
    "bound": 5.0,
    "detach_focal": False,
    "use_margin": True,
    "learning_rate": 0.0,
}


@pytest.fixture
def pairs() -> list[EncodedPair]:
    generator = torch.Generator().manual_seed(6)
    shapes = ((9, 4, 0.0), (3, 12, 0.5), (7, 7, 0.0), (2, 5, 1.0), (15, 6, 0.0))
    return [
        EncodedPair(torch.randint(0, 40, (a,), generator=generator), torch.randint(0, 40, (b,), generator=generator), m)
        for a, b, m in shapes
    ]


def last_head(model, tokens):
    return model.v_head(model.model(input_ids=tokens[None], use_cache=False).last_hidden_state[0, -1])[0]


@pytest.mark.parametrize("cut", [[[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]], [[4, 1], [], [0, 3, 2], []]])
def test_gradient_is_that_of_the_loss_over_the_whole_batch(tiny_scalar_model, torch_engine, pairs, cut):
    model = tiny_scalar_model(1)
    chosen = torch.stack([last_head(model, pair.chosen) for pair in pairs])
    rejected = torch.stack([last_head(model, pair.rejected) for pair in pairs])
    loss = reward_loss(chosen, rejected, margin=torch.tensor([pair.margin for pair in pairs]))
    loss.backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()

    engine = torch_engine(model)
    parts = [[pairs[index] for index in part] for part in cut]
    shares = reward_update(engine, parts, pair_count=len(pairs), **SETTINGS)
    assert (engine.gradient - wanted).norm() <= 1e-5 * wanted.norm()
    assert shares["loss/reward"] == pytest.approx(loss.item(), rel=1e-5)
    assert shares["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
    assert shares["score/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-4)
    assert shares["score/rejected"] == pytest.approx(rejected.mean().item(), rel=1e-4)


def test_a_few_steps_put_the_chosen_first(tiny_scalar_model, torch_engine, pairs):
    engine = torch_engine(tiny_scalar_model(1))
    settings = {**SETTINGS, "learning_rate": 3e-3}
    accuracies = [reward_update(engine, [pairs], pair_count=len(pairs), **settings)["accuracy"] for _ in range(60)]
    assert accuracies[0] < 1
    assert accuracies[-1] == 1


def test_batches_hold_tokens_of_whole_pairs(pairs, recording_trainer):
    trainer = recording_trainer()
    train_reward(trainer, pairs, RewardConfig(batch_tokens=28, warmup_fraction=0.0), seed=1, observer=trainer)
    assert sorted(id(pair) for batch in trainer.batches for pair in batch) == sorted(map(id, pairs))
    for batch, (_, _, row) in zip(trainer.batches, trainer.rows, strict=True):
        assert row["tokens"] == sum(len(pair.chosen) + len(pair.rejected) for pair in batch) <= 28
        assert row["pairs"] == len(batch)
    assert trainer.rates[0] == pytest.approx(1e-5)
    assert trainer.rates[-1] == pytest.approx(5e-6)


def test_a_resumed_training_goes_on_as_it_would_have(pairs, recording_trainer):
    settings = RewardConfig(batch_tokens=14, epochs=3)
    whole, rest = recording_trainer(), recording_trainer()
    train_reward(whole, pairs, settings, seed=1, observer=whole)
    train_reward(rest, pairs, settings, seed=1, observer=rest, start=5)
    assert [list(map(id, batch)) for batch in rest.batches] == [list(map(id, batch)) for batch in whole.batches[5:]]
    assert rest.rates == whole.rates[5:]


def test_without_focal_factor_and_barrier_it_is_the_plain_bradley_terry_loss(tiny_scalar_model, torch_engine, pairs):
    model = tiny_scalar_model(1)
    margin = torch.tensor([pair.margin for pair in pairs])
    for use_margin, lead in ((True, margin), (False, torch.zeros_like(margin))):
        chosen = torch.stack([last_head(model, pair.chosen) for pair in pairs])
        rejected = torch.stack([last_head(model, pair.rejected) for pair in pairs])
        plain = -torch.nn.functional.logsigmoid(chosen - rejected - lead).mean()
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(plain, list(model.parameters()))])
        engine = torch_engine(model)
        settings = {**SETTINGS, "gamma": 0.0, "penalty_weight": 0.0, "use_margin": use_margin}
        shares = reward_update(engine, [pairs], pair_count=len(pairs), **settings)
        assert shares["loss/reward"] == pytest.approx(plain.item(), rel=1e-6)
        assert (engine.gradient - wanted).norm() <= 1e-5 * wanted.norm()


def test_gradient_checkpointing_leaves_the_gradient_as_it_is(tiny_scalar_model, torch_engine, pairs):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_scalar_model(1)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        engine = torch_engine(model)
        reward_update(engine, [pairs[:3], pairs[3:]], pair_count=len(pairs), **SETTINGS)
        gradients.append(engine.gradient)
    assert model.is_gradient_checkpointing
    assert torch.equal(*gradients)


def test_held_out_pairs_are_judged_while_training_and_at_the_end(tiny_scalar_model, torch_engine, pairs, ready):
    engine = torch_engine(tiny_scalar_model(1))
    held = [replace(pair, domain=domain) for pair, domain in zip(pairs, "abaab", strict=True)]

    class Trainer:
        rows: ClassVar[list] = []

        def update(self, batch, rate):
            return ready(reward_update(engine, [batch], pair_count=len(batch), **SETTINGS))

        def scores(self, asked):
            assert asked == held  # few enough to be looked at as a whole each time
            return ready(pair_scores(engine, [asked[:2], [], asked[2:]]))

        def record(self, step, steps, metrics):
            self.rows.append(metrics)

    trainer = Trainer()
    settings = RewardConfig(batch_tokens=1, epochs=1, evaluate_every=2, learning_rate=1e-3)
    train_reward(trainer, pairs, settings, seed=1, observer=trainer, validation=held)
    judged = [index + 1 for index, row in enumerate(trainer.rows) if "validation/accuracy" in row]
    assert judged == [2, 4, 5]
    row = trainer.rows[-1]
    chosen, rejected = torch.tensor(
        [[last_head(engine.module, side).item() for side in (pair.chosen, pair.rejected)] for pair in held]
    ).T
    margin = torch.tensor([pair.margin for pair in held])
    for name, where in (("", range(5)), ("/a", [0, 2, 3]), ("/b", [1, 4])):
        where = list(where)
        assert row[f"validation/accuracy{name}"] == pytest.approx((chosen > rejected)[where].float().mean().item())
        loss = reward_loss(chosen[where], rejected[where], margin=margin[where])
        assert row[f"validation/loss{name}"] == pytest.approx(loss.item(), rel=1e-4)


def test_only_a_glimpse_is_taken_on_the_way(pairs, recording_trainer, ready, monkeypatch):
    monkeypatch.setattr("reward.training.GLIMPSE", 3)
    trainer = recording_trainer()
    asked = []
    trainer.scores = lambda batch: asked.append(len(batch)) or ready([(1.0, 0.0)] * len(batch))
    settings = RewardConfig(batch_tokens=1, evaluate_every=2)
    train_reward(trainer, pairs, settings, seed=1, observer=trainer, validation=pairs)
    assert asked == [3, 3, 5]


def test_pairs_are_judged_without_dropout(tiny_scalar_model, torch_engine, pairs):
    model = tiny_scalar_model(1)
    model.model.norm = torch.nn.Sequential(model.model.norm, torch.nn.Dropout(0.5))
    engine = torch_engine(model.train())
    assert pair_scores(engine, [pairs]) == pair_scores(engine, [pairs])
    assert model.training


def test_snapshots_are_asked_for_when_nothing_is_ahead(pairs, recording_trainer):
    trainer = recording_trainer()
    train_reward(trainer, pairs, RewardConfig(batch_tokens=1, save_every=2), seed=1, observer=trainer)
    assert trainer.saved == [(2, 2), (4, 4)]  # after the last step the model itself is written


@pytest.mark.parametrize("seed", [1, 2])
def test_scores_far_outside_the_bound_come_back(tiny_scalar_model, torch_engine, pairs, seed: int):
    """Large head, every pair with both labels, bfloat16; experiments/score_bound does it twenty times and longer."""
    model = tiny_scalar_model(seed).to(torch.bfloat16)
    model.v_head.float()
    with torch.no_grad():
        model.v_head.weight.mul_(100)
    contradictory = [*pairs, *(EncodedPair(pair.rejected, pair.chosen, 0.0) for pair in pairs)]
    engine = torch_engine(model)
    assert torch.tensor(pair_scores(engine, [contradictory])).abs().max() > 20
    settings = {**SETTINGS, "learning_rate": 0.05}
    for _ in range(400):
        shares = reward_update(engine, [contradictory], pair_count=len(contradictory), **settings)
        assert all(math.isfinite(share) for share in shares.values())
    assert torch.tensor(pair_scores(engine, [contradictory])).abs().max() < 5
