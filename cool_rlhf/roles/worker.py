"""One rank of a role: what all roles share. Everything heavy is imported in the actor's own process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import ray

from cool_rlhf.config import LoRAConfig
from cool_rlhf.imports import clear_memory, settle_memory, skip_unused_packages
from rollout.transport import send_tensors_plainly

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import TCPStore

    from cool_rlhf.protocols import TrainEngine

T = TypeVar("T")

LAST_PRIORITY = 19  # of a role's process, as `nice` counts: the lowest that there is


@dataclass(frozen=True)
class ModelSpec:
    """Which model a role loads: a language model, or one with a scalar head, kept or fresh."""

    path: str
    kind: Literal["language", "scalar"]
    dtype: str
    head: Literal["keep", "fresh"] = "keep"
    gradient_checkpointing: bool = False
    seed: int = 0
    lora: LoRAConfig | None = None
    micro_batch_tokens: int = 0  # of a scorer, which cuts its own; others are handed theirs already cut


@dataclass(frozen=True)
class TrainSpec:
    """How DeepSpeed trains it."""

    zero_stage: int
    weight_decay: float
    gradient_clip: float
    betas: tuple[float, float]


class FrozenEngine:
    """A model that is only asked. Its ranks are replicas that share the work out."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module.eval()

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(self.module, *arguments)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            yield name, parameter.detach()


class Worker:
    """A rank's process. ``connect`` comes first, then ``build``. ``trains``: whether DeepSpeed has a part in it."""

    trains = True

    def __init__(self, rank: int, world_size: int, threads: int) -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world_size))
        # oneDNN keeps its kernels by shape, and packs hardly ever repeat one: its default of 1,024 held 300 MB for
        # nothing.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
        skip_unused_packages()
        import torch

        torch.set_num_threads(threads)
        send_tensors_plainly()
        self.rank = rank
        self.store: TCPStore | None = None
        self.engine: Any = None

    def stand_back(self) -> None:
        """Take the lowest priority. The passes over finished responses wait for those still being sampled, not the
        other way round: at equal priorities they took an engine of one thread up to a third of its core."""
        os.setpriority(os.PRIO_PROCESS, 0, LAST_PRIORITY)

    def warm_up(self) -> None:
        """Import what ``build`` needs, which takes longer than loading a small model."""
        import cool_rlhf.models.loading

        if self.trains:
            import cool_rlhf.engine
            import cool_rlhf.models.lora  # noqa: F401

    def address(self) -> tuple[str, int]:
        """Where this rank hosts the store that the role's process group is made through: under the address that the
        cluster knows its machine by, for a host's own name may stand for the machine itself only. It listens from here
        on: a port that is free now may be taken when the model has been loaded."""
        from torch.distributed import TCPStore

        host = ray.util.get_node_ip_address()
        if self.store is None:
            self.store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self.store.port

    def connect(self, host: str, port: int) -> None:
        # As under torchrun every rank, the host's too, finds a store that is there already.
        os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")

    def build(self, model: ModelSpec, train: TrainSpec | None) -> None:
        """Load the model; with ``train``, join the other ranks and set DeepSpeed up."""
        import torch

        from cool_rlhf.models.loading import load_causal_lm, load_scalar_model, load_tokenizer

        torch.manual_seed(model.seed)
        dtype = getattr(torch, model.dtype)
        if model.kind == "language":
            module = load_causal_lm(model.path, dtype)
        else:
            module = load_scalar_model(model.path, dtype, head=model.head, seed=model.seed)
        if torch.cuda.is_available():
            torch.nn.Module.to(module, "cuda")
        self._dtype = dtype
        self._config = module.config
        self._architecture = type(module).__name__
        self._tokenizer = load_tokenizer(model.path)
        self.engine = FrozenEngine(module) if train is None else self._train_engine(module, model, train)

    def _train_engine(self, module: Any, model: ModelSpec, train: TrainSpec) -> TrainEngine:
        from cool_rlhf.engine import DeepSpeedEngine
        from cool_rlhf.models.lora import add_lora

        if model.lora is not None:
            add_lora(module, model.lora)
        if model.gradient_checkpointing:
            module.gradient_checkpointing_enable()
        module.train()
        return DeepSpeedEngine(
            module,
            zero_stage=train.zero_stage,
            weight_decay=train.weight_decay,
            gradient_clip=train.gradient_clip,
            betas=train.betas,
        )

    def settle(self) -> None:
        """The process holds what it will hold: nothing that is there now needs to be looked at for garbage again."""
        settle_memory()

    def unload(self) -> None:
        """Let go of the model; what was imported, and the process group, stay for the next one."""
        for name in vars(self).keys() - {"rank", "store"}:
            delattr(self, name)
        self.engine = None
        clear_memory()

    def save(self, folder: str) -> None:
        """Parameters, optimiser and random state of this rank."""
        self.engine.save(Path(folder))

    def load(self, folder: str) -> None:
        self.engine.load(Path(folder))

    def export(
        self,
        folder: str,
        conditions: Mapping[str, str] | None,
        condition_join: str | None,
        score_bound: float | None = None,
    ) -> None:
        """Write a Hugging Face checkpoint; rank 0 writes, the others take part in gathering."""
        from cool_rlhf.models.export import save_checkpoint

        if self.rank > 0:
            for _ in self.engine.named_weights():
                pass
            return
        save_checkpoint(
            Path(folder),
            self._config,
            self.engine.named_weights(),
            self._tokenizer,
            architecture=self._architecture,
            conditions=conditions,
            condition_join=condition_join,
            score_bound=score_bound,
            dtype=self._dtype,
        )
