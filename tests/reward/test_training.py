import pytest
import torch

from cool_rlhf.config import RewardConfig
from reward.losses import reward_loss
from reward.pairs import EncodedPair
from reward.training import reward_update, train_reward

SETTINGS = {
    "gamma": 2.0,
    "penalty_weight": 0.02,
    "bound": 5.0,
    "detach_focal": False,
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
