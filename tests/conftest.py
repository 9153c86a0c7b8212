"""What tests of several packages share: an engine of one process, tiny models, and a reader of W&B's files."""

from __future__ import annotations

import json
import logging
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.models import attention
from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForCausalLM, InternLM2ForRewardModel
from cool_rlhf.protocols import TrainEngine

# How long an example takes tells of the machine, which others may be using.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


class TorchEngine:
    """A TrainEngine of one rank: plain AdamW, float32. ``gradient`` is what the last step was made of."""

    def __init__(self, module: PreTrainedModel) -> None:
        self.module = module
        self.device = torch.device("cpu")
        self.rank = 0
        self.world_size = 1
        self.gradient = torch.empty(0)
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.0)
        self._closed = False

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.module, *arguments)

    def backward(self, loss: Tensor, last: bool) -> None:
        assert not self._closed, "backward after the last micro-batch of a step"
        loss.backward()
        self._closed = last

    def step(self, learning_rate: float) -> float:
        assert self._closed, "step before the last micro-batch"
        for name, parameter in self.module.named_parameters():
            assert parameter.grad is not None, f"{name} was not touched"
        self.gradient = torch.cat([parameter.grad.flatten() for parameter in self.module.parameters()])
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._closed = False
        return float(self.gradient.norm())

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.module.state_dict().items()

    def save(self, folder: Path) -> None:
        torch.save((self.module.state_dict(), self._optimizer.state_dict()), folder / "engine.pt")

    def load(self, folder: Path) -> None:
        weights, optimizer = torch.load(folder / "engine.pt")
        self.module.load_state_dict(weights)
        self._optimizer.load_state_dict(optimizer)


@dataclass(frozen=True)
class Ready:
    """A Future that is already here, and of rollouts a Sampling whose last ones were finished first."""

    value: Any

    def result(self) -> Any:
        return self.value

    def portions(self) -> Iterator[list[tuple[int, Any]]]:
        items = list(enumerate(self.value))
        yield from (part for part in (items[len(items) // 3 :], items[: len(items) // 3]) if part)


class RecordingTrainer:
    """A trainer that learns nothing and keeps what it was given; it observes itself."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.rates: list[float] = []
        self.rows: list[tuple[int, int, dict[str, float]]] = []
        self.saved: list[tuple[int, int]] = []  # after which step, and how many had been sent by then

    def update(self, batch: Sequence[Any], learning_rate: float) -> Ready:
        self.batches.append(list(batch))
        self.rates.append(learning_rate)
        return Ready({"loss": 1.0})

    def record(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        self.rows.append((step, steps, metrics))

    def save(self, step: int) -> None:
        self.saved.append((step, len(self.batches)))


def read_offline_history(output_dir: Path) -> list[dict[str, Any]]:
    """What ``wandb sync`` would upload: the rows of every offline file in the order of their steps."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    rows: dict[int, dict[str, Any]] = {}
    for file in sorted(output_dir.glob("wandb/offline-run-*/*.wandb")):
        for payload in wandb_records(file.read_bytes()):
            record = messages.Record()
            record.ParseFromString(payload)
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                step = items.pop("_step")
                assert step not in rows
                rows[step] = {name: value for name, value in items.items() if not name.startswith("_")}
    assert list(rows) == list(range(len(rows)))
    return list(rows.values())


def wandb_records(content: bytes) -> Iterator[bytes]:
    """Payloads of a W&B run file: a 7-byte header, then LevelDB's log format (blocks of 32 KiB, whose records are whole
    or cut into first, middle and last)."""
    assert content[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(content):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def names_not_in_docs(names: Iterable[str]) -> list[str]:
    """Of names of metrics those that docs/metrics.md does not have. A part in capitals there stands for any domain,
    condition, rule, policy or kind."""
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    written = re.findall(r"`([a-z][a-zA-Z_:/]*)`", text)
    known = [re.compile(re.sub(r"[A-Z]+(:[A-Z]+)?", "[^/]+", name)) for name in written]
    return sorted(name for name in set(names) if not any(pattern.fullmatch(name) for pattern in known))


VOCABULARY = 40


def _tiny(kind: type[PreTrainedModel], seed: int) -> PreTrainedModel:
    config = InternLM2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.set_attn_implementation(attention.NAME)
    return model


@contextmanager
def _ray(cpus: int) -> Iterator[None]:
    import ray  # late: most tests have no need of it

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=2**27,
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture(scope="session")
def local_ray() -> Callable[[int], AbstractContextManager[None]]:
    """A Ray of one machine with so many CPUs, up within the context."""
    return _ray


@pytest.fixture
def ready() -> type[Ready]:
    return Ready


@pytest.fixture
def recording_trainer() -> type[RecordingTrainer]:
    return RecordingTrainer


@pytest.fixture
def undocumented() -> Callable[[Iterable[str]], list[str]]:
    """Of names of metrics those that docs/metrics.md lacks."""
    return names_not_in_docs


@pytest.fixture
def offline_history() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads the rows that a run logged to W&B offline."""
    return read_offline_history


@pytest.fixture
def torch_engine() -> Callable[[PreTrainedModel], TrainEngine]:
    return TorchEngine


@pytest.fixture
def tiny_causal_lm() -> Callable[[int], PreTrainedModel]:
    """Makes an InternLM2 of two layers and 40 words from a seed."""
    return lambda seed: _tiny(InternLM2ForCausalLM, seed)


@pytest.fixture
def tiny_scalar_model() -> Callable[[int], PreTrainedModel]:
    """The same with a scalar head."""
    return lambda seed: _tiny(InternLM2ForRewardModel, seed)


@pytest.fixture
def bare_model(tmp_path: Path) -> Path:
    """What is looked at of a checkpoint before it is loaded: its tokenizer, its config, and that it has weights."""
    folder = tmp_path / "model"
    train_tokenizer(["why is it so? " * 9], 640).save_pretrained(folder)
    fields = {"model_type": "internlm2", "vocab_size": 640, "max_position_embeddings": 200}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "model.safetensors").touch()
    return folder
