"""Products in oneDNN are those of plain torch, forward and backward, but for rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cool_rlhf.models.linear import OneDNNLinear, swap_layers, use_onednn


def twins(inputs: int, outputs: int) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(2)
    plain, swapped = (nn.Linear(inputs, outputs, bias=False) for _ in range(2))
    swapped.load_state_dict(plain.state_dict())
    swap_layers(nn.ModuleList([swapped]))
    assert type(swapped) is OneDNNLinear
    return plain, swapped


@pytest.mark.parametrize("shape", [(7,), (1, 300), (2, 3, 5)])
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 80), (80, 48)])
def test_output_and_gradients_are_those_of_a_plain_layer(inputs: int, outputs: int, shape: tuple[int, ...]) -> None:
    layers = twins(inputs, outputs)
    weight = torch.randn(*shape, outputs)
    found = []
    for layer in layers:
        torch.manual_seed(3)
        x = torch.randn(*shape, inputs, requires_grad=True)
        y = layer(x)
        (y * weight).sum().backward()
        found.append((y.detach(), x.grad, layer.weight.grad))
        assert layer.weight.grad.is_contiguous()
    for mine, expected in zip(found[1], found[0], strict=True):
        assert mine.shape == expected.shape
        assert (mine - expected).norm() <= 1e-6 * expected.norm()


def test_a_slice_of_another_tensor_is_read_where_it_lies() -> None:
    plain, swapped = twins(16, 8)
    wide = torch.randn(5, 4, 32).transpose(0, 1)[..., ::2]
    torch.testing.assert_close(swapped(wide), plain(wide), rtol=1e-5, atol=1e-6)


def test_recomputed_in_backward_it_gives_the_same_gradient() -> None:
    _, layer = twins(16, 16)
    x = torch.randn(6, 16)
    layer(layer(x)).square().sum().backward()
    expected = layer.weight.grad.clone()
    layer.weight.grad = None
    checkpoint(lambda states: layer(layer(states)).square(), x, use_reentrant=False).sum().backward()
    assert torch.equal(layer.weight.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_empty_inputs_stay_torchs_own(dtype: torch.dtype) -> None:
    plain, swapped = (layer.to(dtype) for layer in twins(16, 8))
    x = torch.randn(3, 16, dtype=dtype)
    assert torch.equal(swapped(x), plain(x))
    assert swapped(x[:0]).shape == (0, 8)
    assert twins(16, 8)[1](torch.empty(1, 0, 16)).shape == (1, 0, 8)


def test_layers_with_a_bias_and_of_other_classes_are_left_alone() -> None:
    class Own(nn.Linear):
        pass

    layers = nn.ModuleList([nn.Linear(4, 4), Own(4, 4, bias=False)])
    swap_layers(layers)
    assert [type(layer) for layer in layers] == [nn.Linear, Own]


@pytest.mark.parametrize(("capability", "swapped"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_layers_are_swapped_where_the_processor_gains_by_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, swapped: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    layers = nn.ModuleList([nn.Linear(4, 4, bias=False)])
    use_onednn(layers)
    assert (type(layers[0]) is OneDNNLinear) == swapped
