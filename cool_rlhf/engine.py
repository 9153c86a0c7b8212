"""DeepSpeed behind the TrainEngine protocol: the only module that imports it."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import numpy as np
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from cool_rlhf.models.lora import exported_weights
from cool_rlhf.schedule import derive_seed

T = TypeVar("T")

# Names in a saved state.
_POSITION = "position.pt"
_RANDOM = "random_{}.pt"  # of each rank
_MASTER = "master"
_MOMENTS = ("exp_avg", "exp_avg_sq")

# The shared-memory collective is compiled at first use, for about a minute; gloo serves CPU ranks without it.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


class DeepSpeedEngine:
    """One rank's share of a module that DeepSpeed trains with AdamW.

    The process group must be described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Micro-batches are cut by
    tokens, so losses arrive already divided by the whole batch's count and are summed, never averaged, over
    micro-batches and ranks.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        *,
        zero_stage: int,
        weight_decay: float,
        gradient_clip: float,
        betas: tuple[float, float],
    ) -> None:
        """Train ``module``, in place, in its own dtype: float32, or bfloat16 with float32 master weights. Linear layers
        that are float32 in a bfloat16 module, such as a scalar head, go on computing in float32.

        DeepSpeed sums bfloat16 gradients in float32 from ZeRO stage 1 on only, so that stage 0 means 1 there: the same
        numbers, with the optimiser's state shared out.
        """
        init_process_group()
        bf16 = any(parameter.dtype == torch.bfloat16 for parameter in module.parameters())
        self.zero_stage = max(zero_stage, 1) if bf16 else zero_stage
        self._heads = _float32_heads(module) if bf16 else []
        masters = [head.weight.detach().clone() for head in self._heads]
        self._engine, *_ = deepspeed.initialize(
            model=_Entry(module),
            optimizer=torch.optim.AdamW(parameter_groups(module, weight_decay), lr=0.0, betas=betas, fused=True),
            config=deepspeed_config(self.zero_stage, gradient_clip, bf16),
        )
        self.module = module
        self.device = torch.device(self._engine.device)
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        for head, master in zip(self._heads, masters, strict=True):
            self._set_full(head.weight, _MASTER, master.to(self.device))
        self._refresh_heads()

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return self._engine(function, *arguments)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; the caller's denominators are global, so the sum is wanted.
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        # Without ZeRO DeepSpeed clips, but does not record the norm.
        norm = None if self.zero_stage else _gradient_norm(self.module)
        self._engine.step()
        self._refresh_heads()
        return float(self._engine.get_global_grad_norm()) if norm is None else norm

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        heads = {id(head.weight): head for head in self._heads}
        for name, parameters, weight in exported_weights(self.module):
            with deepspeed.zero.GatheredParameters(parameters, enabled=self.zero_stage == 3):
                head = heads.get(id(parameters[0]))
                yield name, weight() if head is None else head.exact_weight().detach()

    def save(self, folder: Path) -> None:
        """Every trained parameter in float32 with its moments, one file each, the same files however the state is
        shared out, so another number of ranks or another ZeRO stage can go on from them; and each rank's random
        state."""
        steps = self._steps()
        if steps:
            self._link_moments()
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(random_state(), folder / _RANDOM.format(self.rank))
        if self.rank == 0:
            torch.save({"steps": steps, "ranks": self.world_size}, folder / _POSITION)
        for name, parameter in self._trained():
            state = {_MASTER: self._full(parameter, _MASTER)}
            if steps:
                state |= {moment: self._full(parameter, moment) for moment in _MOMENTS}
            if self.rank == 0:
                save_file(
                    {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()},
                    folder / f"{name}.safetensors",
                )

    def load(self, folder: Path) -> None:
        """Go on from what ``save`` left, under whatever sharding. Among another number of ranks each draws from a seed
        of its own."""
        position = torch.load(folder / _POSITION, weights_only=False)
        self._begin_moments(position["steps"])
        for name, parameter in self._trained():
            for key, value in load_file(folder / f"{name}.safetensors").items():
                self._set_full(parameter, key, value.to(self.device))
        self._refresh_heads()
        if position["ranks"] == self.world_size:
            set_random_state(torch.load(folder / _RANDOM.format(self.rank), weights_only=False))
        else:
            set_random_state(torch.load(folder / _RANDOM.format(0), weights_only=False))
            seed_all(derive_seed("rank", random.getrandbits(64), self.rank))

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad)

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._engine.optimizer
        return optimizer.optimizer if self.zero_stage else optimizer  # type: ignore[attr-defined]

    def _steps(self) -> int:
        """Optimiser steps so far; a moment exists from the first one on."""
        states = list(self._adamw.state.values())
        return int(states[0]["step"]) if states else 0

    def _begin_moments(self, steps: int) -> None:
        """Moments of zero after ``steps`` steps, to be filled; none where there was no step."""
        optimizer, adamw = self._engine.optimizer, self._adamw
        adamw.state.clear()
        if steps == 0:
            return
        if self.zero_stage == 0:
            held = [parameter for _, parameter in self._trained()]
        elif self.zero_stage == 3:
            held = optimizer.fp32_partitioned_groups_flat
        else:
            held = [flat for group in adamw.param_groups for flat in group["params"]]
        for flat in held:
            step = torch.tensor(float(steps), device=flat.device)
            adamw.state[flat] = {"step": step, **{moment: torch.zeros_like(flat) for moment in _MOMENTS}}
        self._link_moments()

    def _link_moments(self) -> None:
        """Have each parameter find its moments in ZeRO's flat ones. DeepSpeed does that after the first group's first
        step, when the second group has none yet."""
        if self.zero_stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _full(self, parameter: nn.Parameter, key: str) -> Tensor:
        """The float32 master weight or a moment, gathered from all ranks."""
        if self.zero_stage == 0:
            return parameter.detach() if key == _MASTER else self._adamw.state[parameter][key]
        full: Tensor
        full = safe_get_full_fp32_param(parameter) if key == _MASTER else safe_get_full_optimizer_state(parameter, key)
        return full

    def _set_full(self, parameter: Tensor, key: str, value: Tensor) -> None:
        if self.zero_stage == 3:
            # DeepSpeed's setter for whole tensors stumbles over the padding of the last rank's partition.
            size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = F.pad(value.flatten(), (0, size * self.world_size - value.numel()))
            part = padded[self.rank * size : (self.rank + 1) * size]
            if key == _MASTER:
                safe_set_local_fp32_param(parameter, part)
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(value)
            else:
                safe_set_local_optimizer_state(parameter, part, key)
        elif key == _MASTER:
            parameter.data.copy_(value)
            if self.zero_stage:
                safe_set_full_fp32_param(parameter, value)
        elif self.zero_stage:
            safe_set_full_optimizer_state(parameter, value, key)
        else:
            self._adamw.state[parameter][key].copy_(value)

    def _refresh_heads(self) -> None:
        for head in self._heads:
            master = safe_get_full_fp32_param(head.weight)
            with deepspeed.zero.GatheredParameters([head.weight], enabled=self.zero_stage == 3):
                head.remainder.copy_(master.view_as(head.weight) - head.weight.detach().float())


class _Entry(nn.Module):
    """DeepSpeed counts micro-batches and gathers weights around the root module's call, so every pass enters here."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(self.model, *arguments)


class _Float32Linear(nn.Linear):
    """A linear layer computed in float32 though DeepSpeed casts every parameter to bfloat16, and ZeRO-3 cannot hold two
    dtypes at all: what the cast takes off the master weight is kept in ``remainder`` and added back."""

    remainder: Tensor

    def exact_weight(self) -> Tensor:
        return self.weight.float() + self.remainder

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.float(), self.exact_weight())


def _float32_heads(module: nn.Module) -> list[_Float32Linear]:
    """Turn the float32 linear layers of a bfloat16 module into such layers, in place."""
    heads: list[_Float32Linear] = []
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float32:
            if layer.bias is not None:
                raise NotImplementedError("a float32 layer with a bias in a bfloat16 model")
            layer.__class__ = _Float32Linear
            layer.register_buffer("remainder", torch.zeros_like(layer.weight), persistent=False)
            heads.append(layer)  # type: ignore[arg-type]
    return heads


def _gradient_norm(module: nn.Module) -> float:
    return float(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))


def init_process_group() -> None:
    """Join this role's ranks: NCCL where a GPU is visible, else gloo."""
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(
            dist_backend="nccl" if torch.cuda.is_available() else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    # Under ZeRO-3 a parameter may already be partitioned: its own shape is then empty and ds_shape tells.
    matrices = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) > 1]
    vectors = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def deepspeed_config(zero_stage: int, gradient_clip: float, bf16: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks for it; batches here are cut by tokens
        "gradient_accumulation_steps": 1,
        "gradient_clipping": gradient_clip,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        # Below ZeRO-2 the sum of a whole step crosses over, once: in bfloat16 it would be rounded even on one rank.
        "communication_data_type": "fp32" if zero_stage < 2 else None,
        "zero_optimization": {"stage": zero_stage, "overlap_comm": torch.cuda.is_available()},
        # One torch AdamW everywhere: DeepSpeed's own would compile at first use on a CPU.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def random_state() -> dict[str, Any]:
    """The state of every generator a rank draws from."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def seed_all(seed: int) -> None:
    """Begin every generator anew."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # CUDA's too


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
