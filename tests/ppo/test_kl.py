import math

import pytest
import torch

from cool_rlhf.ppo.kl import kl_estimate


@pytest.mark.parametrize(
    ("kind", "expected"),
    # d = 0.5 and d = −1
    [("k1", [0.5, -1.0]), ("k2", [0.125, 0.5]), ("k3", [math.exp(-0.5) - 0.5, math.e - 2])],
)
def test_numbers_worked_by_hand(kind, expected):
    estimate = kl_estimate(torch.tensor([-1.0, -3.0]), torch.tensor([-1.5, -2.0]), kind)
    torch.testing.assert_close(estimate, torch.tensor(expected))


@pytest.fixture
def policies():
    logits = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.4, -0.6, 0.2], dtype=torch.float64).log_softmax(0)
    return logits, reference


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_mean_over_the_policy_is_the_divergence(policies, kind):
    logits, reference = policies
    logprobs = logits.log_softmax(0)
    divergence = (logprobs.exp() * (logprobs - reference)).sum()
    torch.testing.assert_close((logprobs.exp() * kl_estimate(logprobs, reference, kind)).sum(), divergence)


@pytest.mark.parametrize(("kind", "right"), [("k1", False), ("k2", True), ("k3", False)])
def test_as_a_loss_only_k2_has_the_gradient_of_the_divergence(policies, kind, right):
    logits, reference = policies
    logprobs = logits.log_softmax(0)
    (wanted,) = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits)
    logprobs = logits.log_softmax(0)
    (got,) = torch.autograd.grad((logprobs.exp().detach() * kl_estimate(logprobs, reference, kind)).sum(), logits)
    assert torch.allclose(got, wanted) is right
    if kind == "k1":
        torch.testing.assert_close(got, torch.zeros_like(got))


def test_k3_is_never_negative():
    assert (kl_estimate(torch.randn(1000), torch.randn(1000), "k3") >= 0).all()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
