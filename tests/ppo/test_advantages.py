import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cool_rlhf.ppo.advantages import gae, whiten


def test_numbers_worked_by_hand():
    # γ 0.9, λ 0.5, so γλ = 0.45. Responses are tokens 1, 3, 4; token 2 is another speaker's.
    # t=4: δ = 2 − 0.25 = 1.75                  A = 1.75                          R = 1.75 + 0.25     = 2
    # t=3: δ = 0 + 0.9·0.25 − 1 = −0.775        A = −0.775 + 0.45·1.75 = 0.0125   R = 0.0125 + 1      = 1.0125
    # t=1: δ = 1 + 0.9·1 − 0.5 = 1.4            A = 1.4 + 0.45·0.0125 = 1.405625  R = 1.405625 + 0.5  = 1.905625
    rewards = torch.tensor([[9.0, 1.0, 9.0, 0.0, 2.0]])
    values = torch.tensor([[9.0, 0.5, 9.0, 1.0, 0.25]])
    mask = torch.tensor([[False, True, False, True, True]])
    advantages, returns = gae(rewards, values, mask, 0.9, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.0, 1.405625, 0.0, 0.0125, 1.75]]))
    torch.testing.assert_close(returns, torch.tensor([[0.0, 1.905625, 0.0, 1.0125, 2.0]]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_values_of_any_type_are_reckoned_with_in_float32_at_least(dtype):
    rewards = torch.tensor([[0.3, -0.7, 0.1]])
    values, mask = torch.tensor([[1, 0, 2]]), torch.ones(1, 3, dtype=torch.bool)
    exact = gae(rewards, values.float(), mask, 0.97, 0.9)
    for made, expected in zip(gae(rewards, values.to(dtype), mask, 0.97, 0.9), exact, strict=True):
        assert made.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(made, expected, check_dtype=False)
    with_rewards, _ = gae(rewards.to(dtype).double(), values, mask, 0.97, 0.9)
    torch.testing.assert_close(gae(rewards.to(dtype), values, mask, 0.97, 0.9)[0], with_rewards, check_dtype=False)


def test_without_discount_and_decay_the_return_is_the_reward_to_come():
    rewards = torch.tensor([[0.0, -0.1, -0.2, 1.0]])
    values = torch.tensor([[0.3, 0.7, -2.0, 0.4]])
    _, returns = gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), 1.0, 1.0)
    torch.testing.assert_close(returns, torch.tensor([[0.7, 0.7, 0.8, 1.0]]))


def by_sums(rewards: list[float], values: list[float], mask: list[bool], discount: float, trace_decay: float):
    """The definition, Σ_k (γλ)^k δ_{t+k}, over the response tokens alone, in plain Python."""
    kept = [t for t, here in enumerate(mask) if here]
    deltas = []
    for k, t in enumerate(kept):
        following = values[kept[k + 1]] if k + 1 < len(kept) else 0.0
        deltas.append(rewards[t] + discount * following - values[t])
    advantages, returns = [0.0] * len(mask), [0.0] * len(mask)
    for k, t in enumerate(kept):
        advantages[t] = sum((discount * trace_decay) ** n * delta for n, delta in enumerate(deltas[k:]))
        returns[t] = advantages[t] + values[t]
    return advantages, returns


numbers = st.floats(-4, 4, width=32)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=6, max_size=6), min_size=1, max_size=4),
    discount=st.floats(0, 1),
    trace_decay=st.floats(0, 1),
)
def test_any_mask_against_the_definition(rows, discount, trace_decay):
    rewards, values, mask = (torch.tensor([[token[k] for token in row] for row in rows]) for k in range(3))
    advantages, returns = gae(rewards.double(), values.double(), mask, discount, trace_decay)
    for row in range(len(rows)):
        plain = by_sums(rewards[row].tolist(), values[row].tolist(), mask[row].tolist(), discount, trace_decay)
        torch.testing.assert_close(advantages[row], torch.tensor(plain[0], dtype=torch.float64))
        torch.testing.assert_close(returns[row], torch.tensor(plain[1], dtype=torch.float64))


def test_what_stands_outside_the_mask_is_never_read():
    mask = torch.tensor([[False, True, True, False, True, False]])
    rewards, values = torch.randn(1, 6), torch.randn(1, 6)
    clean = gae(rewards, values, mask, 0.97, 0.9)
    garbage = torch.tensor(float("nan"))
    dirty = gae(torch.where(mask, rewards, garbage), torch.where(mask, values, garbage), mask, 0.97, 0.9)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert torch.all(b[~mask] == 0)


def test_a_gap_changes_nothing():
    rewards, values = torch.randn(1, 3), torch.randn(1, 3)
    without, _ = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.9, 0.8)
    places = torch.tensor([1, 2, 6])
    wide = torch.zeros(3, 1, 8)
    wide[0, 0, places], wide[1, 0, places], wide[2, 0, places] = rewards[0], values[0], 1.0
    gapped, _ = gae(wide[0], wide[1], wide[2].bool(), 0.9, 0.8)
    torch.testing.assert_close(gapped[:, places], without)


def test_whitening_worked_by_hand():
    # 1, 3, 8: mean 4, squares 9 + 1 + 16 = 26, deviation √(26/3)
    values = torch.tensor([[1.0, 99.0, 3.0], [float("nan"), 8.0, 99.0]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    deviation = (26 / 3) ** 0.5
    expected = torch.tensor([[-3 / deviation, 0.0, -1 / deviation], [0.0, 4 / deviation, 0.0]])
    torch.testing.assert_close(whiten(values, mask), expected)


@pytest.mark.parametrize("mask", [[False, False], [True, False], [True, True]])
def test_equal_advantages_whiten_to_nothing(mask):
    assert whiten(torch.tensor([2.5, 2.5]), torch.tensor(mask)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [0.1, 0.3, -0.7])
@pytest.mark.parametrize("count", [3, 7, 10])
def test_equal_advantages_whiten_to_nothing_where_their_mean_is_rounded(value, count):
    assert not whiten(torch.full((1, count), value), torch.ones(1, count, dtype=torch.bool)).any()


@settings(deadline=None, max_examples=60)
@given(tokens=st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=1, max_size=12))
def test_any_mask_whitens_to_mean_zero_and_variance_one(tokens):
    values = torch.tensor([float(value) for value, _ in tokens], dtype=torch.float64)
    mask = torch.tensor([here for _, here in tokens])
    white = whiten(values, mask)
    assert torch.equal(white[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))
    kept = white[mask]
    if len(values[mask].unique()) > 1:
        assert abs(float(kept.mean())) < 1e-12
        assert float(kept.square().mean()) == pytest.approx(1)
        assert torch.equal(kept.argsort(stable=True), values[mask].argsort(stable=True)), "the order stays"
    else:
        assert not kept.any()
