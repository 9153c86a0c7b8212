"""A small reward checkpoint, as the export leaves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForRewardModel
from reward.scoring import CONDITION_JOIN

Checkpoint = tuple[Path, InternLM2ForRewardModel]


def save_reward_model(folder: Path, conditions: dict[str, str]) -> Checkpoint:
    tokenizer = train_tokenizer(["a few words about a blue pirate, and a few more", "two and two"], 300)
    config = InternLM2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        reward_token_id=tokenizer.convert_tokens_to_ids("<|reward|>"),
    )
    torch.manual_seed(0)
    model = InternLM2ForRewardModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_checkpoint(
        folder,
        model.config,
        model.state_dict().items(),
        tokenizer,
        architecture="InternLM2ForRewardModel",
        conditions=conditions,
        condition_join=CONDITION_JOIN,
        dtype=torch.float32,
    )
    return folder, model


@pytest.fixture(scope="session")
def reward_checkpoint() -> Callable[[Path, dict[str, str]], Checkpoint]:
    return save_reward_model
