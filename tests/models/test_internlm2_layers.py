"""What of InternLM2's layers is computed in another way on a GPU."""

from __future__ import annotations

import copy

import pytest
import torch

from cool_rlhf.models.internlm2.layers_internlm2 import InternLM2RMSNorm


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the fused kernel needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_the_norm_is_the_same(dtype: torch.dtype) -> None:
    norm = InternLM2RMSNorm(256, 1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    results = []
    for device in ("cpu", "cuda"):
        own = copy.deepcopy(norm).to(device)
        states = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).to(device, dtype).requires_grad_()
        out = own(states)
        out.float().square().sum().backward()
        results.append([tensor.float().cpu() for tensor in (out, states.grad, own.weight.grad)])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for on_cpu, on_cuda in zip(*results, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=tolerance, atol=tolerance * on_cpu.abs().max().item())
