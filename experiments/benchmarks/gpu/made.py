"""What the GPU benchmarks start from: models of InternLM2 1.8B's shape with random weights, and a tokenizer in which
every id is a word of its own, so that the text of random tokens has as many tokens when the reward model reads it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cool_rlhf.demo.tokenizer import FIRST_TOKENS, LAST_TOKENS, with_chat_tokens
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForCausalLM, InternLM2ForRewardModel

MODELS = Path(__file__).parents[3] / "configs" / "model"
WORDS = ("system", "user", "assistant")


def shape(name: str = "internlm2_1_8b") -> dict[str, Any]:
    """The released configuration's sizes, from the project's own config of that name."""
    sizes = yaml.safe_load((MODELS / f"{name}.yaml").read_text(encoding="utf-8"))
    return {
        "vocab_size": sizes["vocab_size"],
        "hidden_size": sizes["hidden_size"],
        "intermediate_size": sizes["ffn_size"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "max_position_embeddings": sizes["max_positions"],
    }


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Every id but the special ones is a word between spaces."""
    count = vocabulary - len(LAST_TOKENS)
    words = [*FIRST_TOKENS, *WORDS]
    words += [f"w{number}" for number in range(count - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return with_chat_tokens(tokenizer)


def random_model(kind: type[Any], sizes: dict[str, Any], device: str) -> Any:
    """In bfloat16, a scalar head in float32."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = kind(InternLM2Config(**sizes))
    finally:
        torch.set_default_dtype(torch.float32)
    if kind is InternLM2ForRewardModel:
        model.v_head.float()
    return model


def make_checkpoints(folder: Path, device: str, sizes: dict[str, Any]) -> None:
    """``policy`` and ``reward`` in ``folder``."""
    tokenizer = word_tokenizer(sizes["vocab_size"])
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "reward_token_id": tokenizer.convert_tokens_to_ids("<|reward|>"),
    }
    for name, kind in (("policy", InternLM2ForCausalLM), ("reward", InternLM2ForRewardModel)):
        model = random_model(kind, {**sizes, **ids}, device)
        save_checkpoint(
            folder / name,
            model.config,
            model.state_dict().items(),
            tokenizer,
            architecture=kind.__name__,
            conditions={"default": ""} if name == "reward" else None,
            condition_join="separate_system_turn" if name == "reward" else None,
            dtype=torch.bfloat16,
        )


def make_prompts(file: Path, count: int, words: int, vocabulary: int) -> None:
    rng = random.Random(file.name)
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            text = " ".join(f"w{rng.randrange(vocabulary // 2)}" for _ in range(words))
            row = {"id": f"{file.stem} {number}", "prompt": [{"role": "user", "content": text}]}
            out.write(f"{json.dumps(row)}\n")
