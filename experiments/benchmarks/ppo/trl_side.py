"""TRL's PPOTrainer in a process of its own: prints a line of JSON, for every update when it ended and how many response
tokens it had.

Run by run.py as ``python trl_side.py FOLDER UPDATES PROMPTS NEW_TOKENS THREADS``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from inputs import END, token_ids
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


def main(folder: Path, updates: int, prompts: int, new_tokens: int, threads: int) -> None:
    """With its faster settings for this size: no gradient checkpointing, no bfloat16, one forward pass for all."""
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", eos_token=END, padding_side="left")
    end = tokenizer.eos_token_id
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    ends: list[float] = []
    tokens: list[int] = []
    generate = ppo_trainer.batch_generation

    def counted(model: Any, queries: Any, *rest: Any) -> Any:
        found = generate(model, queries, *rest)
        response = found[0][:, queries.shape[1] :]
        ended = (response == end).cumsum(1)
        tokens.append(int(((ended == 0) | ((ended == 1) & (response == end))).sum()))
        return found

    ppo_trainer.batch_generation = counted

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def model(kind: Any, name: str) -> Any:
        return kind.from_pretrained(folder / name, dtype=torch.float32)

    with tempfile.TemporaryDirectory() as output:
        settings = PPOConfig(
            output_dir=output,
            per_device_train_batch_size=prompts,
            local_rollout_forward_batch_size=prompts,
            total_episodes=updates * prompts,
            num_ppo_epochs=1,
            num_mini_batches=1,
            response_length=new_tokens,
            stop_token="eos",
            temperature=1.0,
            learning_rate=1e-6,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        dataset = Dataset.from_dict({"input_ids": [token_ids(tokenizer, row["prompt"]) for row in rows]})
        PPOTrainer(
            args=settings,
            processing_class=tokenizer,
            model=model(LlamaForCausalLM, "policy"),
            ref_model=model(LlamaForCausalLM, "policy"),
            reward_model=model(LlamaForSequenceClassification, "reward"),
            value_model=model(LlamaForSequenceClassification, "reward"),
            train_dataset=dataset,
            eval_dataset=dataset.select(range(prompts)),
            callbacks=[Clock()],
        ).train()
    print(json.dumps({"ends": ends, "tokens": tokens}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
