"""One training in a process of its own: prints a line of JSON with when each step ended, by the clock and in time of
the processor, and the peak memory.

Run by run.py as ``python worker.py SIDE FAMILY PAIRS_FILE BATCH THREADS``; SIDE is ours or trl.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForRewardModel

Pair = tuple[list[int], list[int]]
Moment = tuple[float, float]  # by the clock, and in time of the processor; seconds
RATE = 1e-4
SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "num_labels": 1,
}


def now() -> Moment:
    return time.perf_counter(), time.process_time()


def make_model(family: str) -> PreTrainedModel:
    """The same weights on both sides, in float32."""
    torch.manual_seed(0)
    if family == "llama":
        model: PreTrainedModel = LlamaForSequenceClassification(LlamaConfig(**SHAPE))
    else:
        model = InternLM2ForRewardModel(InternLM2Config(**SHAPE))
    return model.float()


def train_ours(family: str, pairs: Sequence[Pair], batch: int) -> tuple[list[Moment], list[float]]:
    from cool_rlhf.engine import DeepSpeedEngine
    from cool_rlhf.models import attention
    from cool_rlhf.models.linear import use_onednn
    from reward.pairs import EncodedPair
    from reward.training import reward_update

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    model = make_model(family)
    model.set_attn_implementation(attention.NAME)
    use_onednn(model)  # as loading does
    model.train()
    engine = DeepSpeedEngine(model, zero_stage=0, weight_decay=0.0, gradient_clip=1.0)
    encoded = [EncodedPair(torch.tensor(chosen), torch.tensor(rejected), 0.0) for chosen, rejected in pairs]
    ends: list[Moment] = []
    losses: list[float] = []
    for start in range(0, len(encoded), batch):
        part = encoded[start : start + batch]
        metrics = reward_update(
            engine,
            [part],
            pair_count=len(part),
            gamma=0.0,
            penalty_weight=0.0,
            bound=5.0,
            detach_focal=False,
            use_margin=False,
            learning_rate=RATE,
        )
        ends.append(now())
        losses.append(metrics["loss/reward"])
    return ends, losses


def train_trl(family: str, pairs: Sequence[Pair], batch: int) -> tuple[list[Moment], list[float]]:
    """TRL with its faster settings for this size: no gradient checkpointing, no bfloat16, metrics as it keeps them."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    ends: list[Moment] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(now())

    class InOrder(RewardTrainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            losses.append(float(loss))
            return loss

    rows = {"chosen_ids": [chosen for chosen, _ in pairs], "rejected_ids": [rejected for _, rejected in pairs]}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<pad>",
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = InOrder(
            model=make_model(family),
            args=settings,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    return ends, losses


def main(side: str, family: str, file: str, batch: int, threads: int) -> None:
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # as workers of the project do
    torch.set_num_threads(threads)
    with open(file, encoding="utf-8") as source:
        pairs = json.load(source)
    ends, losses = (train_ours if side == "ours" else train_trl)(family, pairs, batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"ends": ends, "losses": losses, "peak_mib": peak}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
