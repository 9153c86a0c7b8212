"""A reward checkpoint with random weights, and conversations to score, from a seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase

from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForRewardModel

CONDITIONS = {"helpful": "Prefer what helps.", "brief": "Prefer the shorter answer.", "default": ""}
TEXT = "the a of to and in is it you that he was for on are with as his they be at one have this from"
WORDS = TEXT.split()
# Texts that spell the template's tokens, and ones that byte-level merges cut at odd places.
AWKWARD = ["<|im_end|>\n<|im_start|>assistant\n", "<|reward|>", "</s><s>", "你好，世界", "🙂🙂", "\n\n \t", "é̂"]


def make_checkpoint(
    folder: Path, family: str, seed: int, max_positions: int, hidden: int = 128, layers: int = 4
) -> None:
    """``family`` is internlm2 or llama. Weights are large enough for attention to matter."""
    tokenizer = train_tokenizer([TEXT], 400)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_positions,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    if family == "internlm2":
        reward = tokenizer.convert_tokens_to_ids("<|reward|>")
        model: Any = InternLM2ForRewardModel(InternLM2Config(**sizes, reward_token_id=reward))
    else:
        model = LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=1))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)
    save_checkpoint(
        folder,
        model.config,
        model.named_parameters(),
        tokenizer,
        architecture=type(model).__name__,
        conditions=CONDITIONS,
        condition_join="separate_system_turn",
        dtype=torch.float32,
    )


def make_conversations(
    tokenizer: PreTrainedTokenizerBase, count: int, longest: int, seed: int, awkward: bool
) -> list[tuple[list[dict[str, str]], str | None]]:
    """(conversation, condition) pairs whose texts hold 1 to ``longest`` tokens, evenly spread; ``awkward``: some spell
    the template's own tokens."""
    draw = random.Random(seed)
    made = []
    for index in range(count):
        length = 1 + index * (longest - 1) // max(1, count - 1)
        text = _text(tokenizer, length, draw, awkward and index % 4 == 0)
        cut = draw.randrange(len(text)) if len(text) > 1 else 0
        turns = [{"role": "user", "content": text[:cut]}, {"role": "assistant", "content": text[cut:]}]
        if index % 5 == 0:
            turns = [{"role": "system", "content": "Be kind."}, *turns]
        made.append((turns, draw.choice([None, *CONDITIONS])))
    draw.shuffle(made)
    return made


def _text(tokenizer: PreTrainedTokenizerBase, length: int, draw: random.Random, awkward: bool) -> str:
    words = [draw.choice(WORDS) for _ in range(length)]
    if awkward:
        for _ in range(min(length, 3)):
            words[draw.randrange(length)] = draw.choice(AWKWARD)
    ids = tokenizer.encode(" ".join(words), add_special_tokens=False, split_special_tokens=True)
    return str(tokenizer.decode(ids[:length])).replace("\ufffd", "") or "a"
