import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cool_rlhf.ppo.losses import (
    Clip,
    clipped_tokens,
    clipped_value_loss_per_token,
    policy_loss,
    policy_loss_per_token,
    value_loss,
)

YES = torch.ones(4, dtype=torch.bool)


@pytest.fixture
def four_tokens():
    """Ratios 1.5, 0.5, 1.5, 0.5 with advantages 2, 2, −1, −1."""
    old = torch.tensor([-1.0, -2.0, -0.5, -3.0])
    logprobs = (old + torch.tensor([1.5, 0.5, 1.5, 0.5]).log()).requires_grad_()
    return logprobs, old, torch.tensor([2.0, 2.0, -1.0, -1.0])


def test_policy_loss_worked_by_hand(four_tokens):
    # clip 0.2, clamped ratios 1.2, 0.8, 1.2, 0.8; −min of the two products:
    # −min(3, 2.4) = −2.4    −min(1, 1.6) = −1    −min(−1.5, −1.2) = 1.5    −min(−0.5, −0.8) = 0.8
    per_token = policy_loss_per_token(*four_tokens, YES, Clip.symmetric(0.2))
    torch.testing.assert_close(per_token, torch.tensor([-2.4, -1.0, 1.5, 0.8]))
    torch.testing.assert_close(policy_loss(*four_tokens, YES, 0.2), torch.tensor(-1.1 / 4))


def test_policy_gradient_is_ratio_times_advantage_and_stops_where_clipped(four_tokens):
    logprobs, old, advantages = four_tokens
    policy_loss(logprobs, old, advantages, YES, 0.2).backward()
    # −ρA / 4 where not clipped: −0.5·2/4 and 1.5·1/4
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -0.25, 0.375, 0.0]))
    assert clipped_tokens(logprobs, old, advantages, YES, Clip.symmetric(0.2)).tolist() == [True, False, False, True]


def test_value_loss_worked_by_hand():
    # ½·1² = 0.5 and ½·2² = 2 over two tokens; the third is not a response token
    loss = value_loss(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 4.0, 0.0]), torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx(1.25)


def plain_policy_loss(logprobs, old, advantages, mask, clip):
    losses = []
    for new, before, advantage, here in zip(logprobs, old, advantages, mask, strict=True):
        if here:
            ratio = math.exp(new - before)
            losses.append(-min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage))
    return sum(losses) / len(losses) if losses else 0.0


token = st.tuples(st.floats(-5, 0, width=32), st.floats(-5, 0, width=32), st.floats(-3, 3, width=32), st.booleans())


@settings(deadline=None, max_examples=60)
@given(tokens=st.lists(token, min_size=1, max_size=8), clip=st.floats(0.05, 0.5))
def test_any_mask_against_plain_python(tokens, clip):
    columns = [[row[k] for row in tokens] for k in range(4)]
    tensors = [torch.tensor(column, dtype=torch.float64) for column in columns[:3]]
    loss = policy_loss(*tensors, torch.tensor(columns[3]), clip)
    assert loss.item() == pytest.approx(plain_policy_loss(*columns, clip), rel=1e-9, abs=1e-12)
    squares = [(a - b) ** 2 / 2 for a, b, here in zip(columns[0], columns[2], columns[3], strict=True) if here]
    mean = sum(squares) / max(1, len(squares))
    assert value_loss(tensors[0], tensors[2], torch.tensor(columns[3])).item() == pytest.approx(mean, abs=1e-12)


def test_garbage_outside_the_mask_reaches_neither_loss_nor_gradient():
    mask = torch.tensor([True, False])
    nan = float("nan")
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    policy_loss(logprobs, torch.tensor([-1.0, nan]), torch.tensor([1.0, nan]), mask, 0.2).backward()
    assert logprobs.grad.tolist() == [-1.0, 0.0]
    values = torch.tensor([1.0, nan], requires_grad=True)
    value_loss(values, torch.tensor([0.0, nan]), mask).backward()
    assert values.grad.tolist() == [1.0, 0.0]


def test_unequal_sides_worked_by_hand(four_tokens):
    # clip 0.3 below and 0.6 above, ratios 1.5, 0.5, 1.5, 0.5: only the last is beyond, 0.5 < 0.7
    per_token = policy_loss_per_token(*four_tokens, YES, Clip(0.3, 0.6, 0.0))
    torch.testing.assert_close(per_token, torch.tensor([-3.0, -1.0, 1.5, 0.7]))
    assert clipped_tokens(*four_tokens, YES, Clip(0.3, 0.6, 0.0)).tolist() == [False, False, False, True]


def test_the_dual_clip_bounds_what_a_negative_advantage_costs():
    # Ratios 5, 5, 2 with advantages −1, 1, −1 and a bound of 3: the loss of the first is 3 rather than 5, without a
    # gradient; a positive advantage and a ratio below the bound are left alone.
    old = torch.zeros(3)
    logprobs = torch.tensor([5.0, 5.0, 2.0]).log().requires_grad_()
    advantages, clip = torch.tensor([-1.0, 1.0, -1.0]), Clip(0.2, 0.2, 3.0)
    losses = policy_loss_per_token(logprobs, old, advantages, YES[:3], clip)
    torch.testing.assert_close(losses, torch.tensor([3.0, -1.2, 2.0]))
    losses.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, 0.0, 2.0]))
    assert clipped_tokens(logprobs, old, advantages, YES[:3], clip).tolist() == [True, True, False]


@pytest.mark.parametrize("clip", [Clip(0.2, 0.2, 0.0), Clip(0.3, 0.6, 0.0), Clip(0.2, 0.4, 3.0)])
def test_a_token_counts_as_clipped_where_it_has_no_gradient(clip):
    ratios = torch.linspace(0.11, 5.06, 100).repeat(2)  # none of them on an edge
    advantages = torch.ones(200) * torch.tensor([1.0, -1.0]).repeat_interleave(100)
    logprobs = ratios.log().requires_grad_()
    mask = torch.arange(200) % 7 > 0
    policy_loss_per_token(logprobs, torch.zeros(200), advantages, mask, clip).sum().backward()
    stopped = clipped_tokens(logprobs, torch.zeros(200), advantages, mask, clip)
    assert torch.equal(stopped, mask & (logprobs.grad == 0))
    assert stopped[:100].any()
    assert stopped[100:].any()


def test_clipped_value_loss_worked_by_hand():
    # clip 0.5, old value 0 throughout; V, R → near V, ½·max of squares:
    # 2, 1 → 0.5: ½·max(1, 0.25) = 0.5, gradient V − R = 1;  0.8, 1 → 0.5: ½·max(0.04, 0.25) = 0.125, stopped;
    # 0.3, 1 → 0.3: ½·0.49, gradient −0.7;                    9, 1 outside the mask
    values = torch.tensor([2.0, 0.8, 0.3, 9.0], requires_grad=True)
    mask = torch.tensor([True, True, True, False])
    losses = clipped_value_loss_per_token(values, torch.zeros(4), torch.ones(4), mask, 0.5)
    torch.testing.assert_close(losses, torch.tensor([0.5, 0.125, 0.245, 0.0]))
    losses.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([1.0, 0.0, -0.7, 0.0]))


@settings(deadline=None, max_examples=60)
@given(tokens=st.lists(token, min_size=1, max_size=8), bound=st.floats(1.1, 4), high=st.floats(0.05, 2))
def test_clips_only_ever_bound(tokens, bound, high):
    columns = [torch.tensor([row[k] for row in tokens], dtype=torch.float64) for k in range(3)]
    mask = torch.tensor([row[3] for row in tokens])
    plain = policy_loss_per_token(*columns, mask, Clip(0.2, high, 0.0))
    dual = policy_loss_per_token(*columns, mask, Clip(0.2, high, bound))
    assert (dual <= plain + 1e-12).all()
    assert (dual <= torch.where(columns[2] < 0, bound * columns[2].abs(), math.inf) + 1e-9).all()
    assert not dual[~mask].any()
    values, returns, old = columns
    clipped = clipped_value_loss_per_token(values, old, returns, mask, high)
    assert (clipped >= torch.where(mask, (values - returns).square() / 2, 0.0) - 1e-12).all()
    assert not clipped[~mask].any()
