import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reward.losses import (
    focal_ranking_loss,
    focal_ranking_per_pair,
    log_barrier_penalty,
    log_barrier_per_score,
    reward_loss,
)


def as_published(delta: float, gamma: float) -> float:
    """−(1 − 2·max(0, P − ½))^γ · log P, as the report writes it; good for moderate Δ only."""
    p = 1 / (1 + math.exp(-delta))
    return -((1 - 2 * max(0.0, p - 0.5)) ** gamma) * math.log(p)


def slope(delta: float, gamma: float = 2.0, detach: bool = False) -> float:
    chosen = torch.tensor([delta], dtype=torch.float64, requires_grad=True)
    focal_ranking_per_pair(chosen, torch.zeros(1), gamma, detach_focal=detach).sum().backward()
    return chosen.grad.item()


def test_focal_loss_worked_by_hand():
    # Δ = 1: P = 0.7310586, log P = −0.3132617, factor (2·0.2689414)² = 0.2893180: loss 0.0906322
    # Δ = −1: P < ½, factor 1: loss −log 0.2689414 = 1.3132617
    loss = focal_ranking_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx((0.0906322 + 1.3132617) / 2, abs=1e-6)


@given(delta=st.floats(-8, 8), gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]))
def test_focal_loss_against_the_formula_as_published(delta, gamma):
    ours = focal_ranking_per_pair(torch.tensor([delta], dtype=torch.float64), torch.zeros(1), gamma)
    assert ours.item() == pytest.approx(as_published(delta, gamma), rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("delta", [-120.0, -20.0, 20.0, 120.0])
def test_extremes_stay_finite_and_point_the_right_way(delta, gamma):
    chosen = torch.tensor([delta], requires_grad=True)
    loss = focal_ranking_loss(chosen, torch.zeros(1), gamma)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(chosen.grad).all()
    assert chosen.grad.item() <= 0
    if delta < 0:
        assert loss.item() == pytest.approx(-delta)
        assert chosen.grad.item() == pytest.approx(-1.0)


def test_half_power_far_out_keeps_its_digits():
    # Δ = 20: 1 − P = 2.0611536e−9; √(2·2.0611536e−9) = 6.4205196e−5; times −log P = 2.0611536e−9
    loss = focal_ranking_loss(torch.tensor([20.0]), torch.zeros(1), gamma=0.5)
    assert loss.item() == pytest.approx(6.4205196e-5 * 2.0611536e-9, rel=1e-4)


def test_the_gradient_jumps_at_one_half_when_the_factor_is_differentiated():
    # On the left −σ(−Δ) = −½; on the right −½ − γ·½·log 2 = −½ − log 2 at γ = 2.
    assert slope(-1e-9) == pytest.approx(-0.5)
    assert slope(1e-9) == pytest.approx(-0.5 - math.log(2))
    assert slope(0.01) == pytest.approx(-1.18, abs=0.005)
    assert slope(0.0) == pytest.approx(-0.5)


def test_the_gradient_does_not_jump_when_the_factor_is_detached():
    assert slope(-1e-9, detach=True) == pytest.approx(-0.5)
    assert slope(1e-9, detach=True) == pytest.approx(-0.5)


@pytest.mark.parametrize("delta", [-1.7, -0.2, 0.3, 2.4])
def test_the_gradient_is_that_of_the_published_formula(delta):
    step = 1e-6
    numeric = (as_published(delta + step, 2.0) - as_published(delta - step, 2.0)) / (2 * step)
    assert slope(delta) == pytest.approx(numeric, rel=1e-6)


def test_gamma_zero_is_the_plain_ranking_loss():
    chosen, rejected = torch.randn(50), torch.randn(50)
    plain = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    torch.testing.assert_close(focal_ranking_loss(chosen, rejected, 0.0), plain)


def test_the_margin_is_subtracted_from_the_lead():
    with_margin = focal_ranking_per_pair(torch.tensor([3.0]), torch.tensor([1.0]), 2.0, margin=torch.tensor([1.5]))
    assert with_margin.item() == pytest.approx(as_published(0.5, 2.0), rel=1e-5)


def test_barrier_worked_by_hand():
    # x = 0: −2·log 5 = −3.2188758        x = 3: −(log 8 + log 2) = −2.7725887
    # x = ±4.9: −(log 9.9 + log 0.1) = 0.0100503, slope there 1/0.1 − 1/9.9 = 9.8989899
    # x = ±5.5: 0.0100503 + 0.6·9.8989899 = 5.9494443
    scores = torch.tensor([0.0, 3.0, 4.9, -4.9, 5.5, -5.5], dtype=torch.float64)
    expected = [-3.2188758, -2.7725887, 0.0100503, 0.0100503, 5.9494443, 5.9494443]
    torch.testing.assert_close(
        log_barrier_per_score(scores, 5.0), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert log_barrier_penalty(scores).item() == pytest.approx(sum(expected) / 6, abs=1e-6)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_value_and_slope_of_the_barrier_go_on_smoothly(side):
    around = side * torch.tensor([4.9 - 1e-7, 4.9, 4.9 + 1e-7, 5.0, 50.0], dtype=torch.float64)
    around.requires_grad_()
    values = log_barrier_per_score(around, 5.0)
    values.sum().backward()
    assert values[2].item() == pytest.approx(values[0].item(), abs=1e-5)
    assert torch.allclose(around.grad, torch.full_like(around, side * (10 - 1 / 9.9)), rtol=1e-5)


def test_bfloat16_scores_at_and_over_the_bound_are_finite_and_pushed_back():
    scores = torch.tensor([4.99, 5.0, -5.0, 7.0, -300.0], dtype=torch.bfloat16, requires_grad=True)
    loss = log_barrier_penalty(scores)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert (scores.grad * scores > 0).all()
    assert torch.isfinite(scores.grad).all()


def test_no_room_inside_the_bound_is_refused():
    with pytest.raises(ValueError, match="bound"):
        log_barrier_penalty(torch.zeros(1), bound=0.1)


def test_whole_loss_worked_by_hand():
    # Ranking of Δ = 1: 0.0906322. Barrier of 1 and 0: −(log 6 + log 4) = −3.1780538 and −3.2188758, mean −3.1984648.
    loss = reward_loss(torch.tensor([1.0]), torch.tensor([0.0]))
    assert loss.item() == pytest.approx(0.0906322 + 0.02 * -3.1984648, abs=1e-6)


def test_detached_focal_reaches_the_whole_loss():
    gradients = []
    for detach in (False, True):
        chosen = torch.tensor([0.5], requires_grad=True)
        reward_loss(chosen, torch.zeros(1), penalty_weight=0.0, detach_focal=detach).backward()
        gradients.append(chosen.grad.item())
    assert gradients[0] < gradients[1] < 0
    chosen = torch.tensor([0.5], requires_grad=True)
    reward_loss(chosen, torch.zeros(1), penalty_weight=0.0).backward()
    assert chosen.grad.item() == gradients[0], "the report's loss is differentiated as it stands"


def test_no_pairs_cost_nothing_and_one_pair_may_have_no_axis():
    none = torch.zeros(0)
    for loss in (focal_ranking_loss(none, none), log_barrier_penalty(none), reward_loss(none, none)):
        assert loss == 0
    chosen, rejected = torch.tensor(1.0), torch.tensor(-0.5)
    assert reward_loss(chosen, rejected) == reward_loss(chosen[None], rejected[None])
