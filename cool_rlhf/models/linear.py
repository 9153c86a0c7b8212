"""Linear layers whose float32 matrix products on a CPU run in oneDNN.

torch multiplies float32 matrices with MKL, which keeps to AVX2 on processors of other makers than its own; oneDNN uses
what the processor has. On a processor with full AVX-512 that is more than twice as fast, for the same sums in another
order; on one with AVX2 alone a training step takes a tenth longer, so MKL keeps it. bfloat16 products, and all of those
on a GPU, are torch's own in any case.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class OneDNNLinear(nn.Linear):
    """A linear layer without bias; only its float32 products on a CPU differ from ``nn.Linear``, by rounding."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32 and input.numel():
            return _Product.apply(input, self.weight)
        return super().forward(input)


def use_onednn(module: nn.Module) -> None:
    """Have the plain linear layers without bias of ``module`` compute so, in place, where that is faster."""
    if torch.backends.mkldnn.is_available() and "AVX512" in torch.backends.cpu.get_cpu_capability():
        swap_layers(module)


def swap_layers(module: nn.Module) -> None:
    """The same on any processor."""
    for layer in module.modules():
        if type(layer) is nn.Linear and layer.bias is None:
            layer.__class__ = OneDNNLinear


class _Product(torch.autograd.Function):
    """``input @ weight.T`` for (..., in) and (out, in)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        of_input = _product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = _outer(grad.flatten(0, -2).t(), input.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None
        return of_input, of_weight


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.T`` of two transposed matrices: the one on the left is copied, so the smaller one stands there."""
    return _product(left, right) if len(left) <= len(right) else _product(right, left).t()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.T``. The operator is the one that torch's compiler calls; no public one takes plain tensors."""
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
