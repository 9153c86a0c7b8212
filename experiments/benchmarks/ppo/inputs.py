"""What both sides start from: a policy, a reward model and prompts, the same files for each."""

from __future__ import annotations

import json
import math
import random
import string
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from cool_rlhf.demo.tokenizer import train_tokenizer

VOCABULARY = 512
PROMPT_TOKENS = 32
END = "<|im_end|>"
MARK = 2.0  # a feature that every token's embedding has, for the head to raise or sink a token's logit by


def make_inputs(folder: Path, prompts: int, mean_length: float | None) -> None:
    """``policy``, ``reward``, ``prompts.jsonl`` and ``validation.jsonl`` in ``folder``. Responses never end by
    themselves, or after ``mean_length`` tokens in the mean, geometrically distributed until the limit cuts them."""
    rng = random.Random(0)
    tokenizer = train_tokenizer([words(rng, 2000) for _ in range(20)], VOCABULARY)
    if len(tokenizer) != VOCABULARY:
        raise SystemExit(f"the tokenizer has {len(tokenizer)} tokens")
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    policy = LlamaForCausalLM(LlamaConfig(**shape))
    set_ends(policy, tokenizer, mean_length)
    reward = LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1))
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, count in (("prompts", prompts), ("validation", 8)):
        rows = [{"id": f"{name} {k}", "prompt": prompt(tokenizer, rng)} for k in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@torch.no_grad()
def set_ends(policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, mean_length: float | None) -> None:
    """No token has a logit of its own any more but those that end a response."""
    policy.model.embed_tokens.weight[:, 0] = MARK
    tokens = torch.randint(3, VOCABULARY, (16, 96))
    mark = float(policy.model(tokens).last_hidden_state[..., 0].mean())
    policy.lm_head.weight[:, 0] = 0.0
    never = -40.0 / mark
    for token in (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id, END):
        index = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else token
        policy.lm_head.weight[index, 0] = never
    if mean_length is not None:  # a probability of 1 / mean among tokens that are all about as likely
        logit = math.log((VOCABULARY - 3) / (mean_length - 1))
        policy.lm_head.weight[tokenizer.convert_tokens_to_ids(END), 0] = logit / mark


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices(string.ascii_lowercase[:12], k=rng.randint(2, 7))) for _ in range(count))


def prompt(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> list[dict[str, str]]:
    """A question that has ``PROMPT_TOKENS`` tokens with the chat template around it."""
    while True:
        text = words(rng, 8)
        while text:
            messages = [{"role": "user", "content": text}]
            length = len(token_ids(tokenizer, messages))
            if length == PROMPT_TOKENS:
                return messages
            if length < PROMPT_TOKENS:
                break
            text = text[:-1]


def token_ids(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
