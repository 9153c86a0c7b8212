import math

import pytest
import torch

from cool_rlhf.ppo.kl import adapted_coefficient, kl_estimate, kl_loss


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


def test_the_loss_has_the_value_of_its_kind_and_the_gradient_asked_for():
    # d = 0.5 and −1: gradients in log π are d for k2 and 1 − e^(−d) for k3
    reference = torch.tensor([-1.5, -2.0])
    k3 = torch.tensor([math.exp(-0.5) - 0.5, math.e - 2])
    for gradient, expected in (("k2", [0.5, -1.0]), ("k3", [1 - math.exp(-0.5), 1 - math.e])):
        logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
        loss = kl_loss(logprobs, reference, "k3", gradient)
        torch.testing.assert_close(loss, k3)
        loss.sum().backward()
        torch.testing.assert_close(logprobs.grad, torch.tensor(expected))
    for gradient in ("k2", "k3"):
        assert torch.equal(kl_loss(torch.tensor([-1.0]), torch.tensor([-1.5]), "k2", gradient), torch.tensor([0.125]))


def test_k3_with_the_gradient_of_k2_descends_the_divergence(policies):
    logits, reference = policies
    logprobs = logits.log_softmax(0)
    (wanted,) = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits)
    logprobs = logits.log_softmax(0)
    (got,) = torch.autograd.grad((logprobs.exp().detach() * kl_loss(logprobs, reference, "k3", "k2")).sum(), logits)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("kind", "gradient"), [("k1", "k2"), ("k3", "k1"), ("k4", "k2")])
def test_no_other_loss_is_taken(kind, gradient):
    with pytest.raises(ValueError, match="k2 or k3"):
        kl_loss(torch.zeros(1), torch.zeros(1), kind, gradient)


def test_the_coefficient_stays_positive_where_a_batch_is_a_whole_horizon() -> None:
    assert adapted_coefficient(0.05, 0.0, target=6.0, share=1.0) == pytest.approx(0.04, rel=1e-12)


@pytest.mark.parametrize(
    ("kl", "expected"),
    # target 6, share 0.1: errors 0, 0.1 (6.6), clamped 0.2 (60) and −0.2 (0, and an estimate below zero)
    [(6.0, 0.05), (6.6, 0.05 * 1.01), (60.0, 0.05 * 1.02), (0.0, 0.05 * 0.98), (-1.0, 0.05 * 0.98)],
)
def test_the_coefficient_follows_its_target(kl, expected):
    assert adapted_coefficient(0.05, kl, target=6.0, share=0.1) == pytest.approx(expected, rel=1e-12)
