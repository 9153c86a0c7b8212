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
from torch import Tensor
from transformers import PreTrainedModel

T = TypeVar("T")

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
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        init_process_group()
        dtype = next(module.parameters()).dtype
        self._engine, *_ = deepspeed.initialize(
            model=_Entry(module),
            optimizer=torch.optim.AdamW(parameter_groups(module, weight_decay), lr=0.0, betas=betas),
            config=deepspeed_config(zero_stage, gradient_clip, bf16=dtype == torch.bfloat16),
        )
        self.module = module
        self.device = torch.device(self._engine.device)
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self.zero_stage = zero_stage
        # DeepSpeed's wrappers record the norm; its plain fp32 path only clips.
        self._has_own_norm = zero_stage > 0 or dtype == torch.bfloat16

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return self._engine(function, *arguments)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; the caller's denominators are global, so the sum is wanted.
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._has_own_norm:
            self._engine.step()
            return float(self._engine.get_global_grad_norm())
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        self._engine.step()
        return norm

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage == 3):
                yield name, parameter.detach()

    def save(self, folder: Path) -> None:
        state = {"random": random_state()}
        self._engine.save_checkpoint(str(folder), tag="engine", client_state=state, save_latest=False)

    def load(self, folder: Path) -> None:
        path, state = self._engine.load_checkpoint(str(folder), tag="engine")
        if path is None:
            raise FileNotFoundError(f"no training state in {folder}")
        set_random_state(state["random"])


class _Entry(torch.nn.Module):
    """DeepSpeed counts micro-batches and gathers weights around the root module's call, so every pass enters here."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(self.model, *arguments)


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


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
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


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
