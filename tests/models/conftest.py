"""A small byte-level tokenizer with InternLM2's special tokens, and tiny models over it."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from cool_rlhf.config import ModelConfig
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.internlm2 import InternLM2ForCausalLM
from cool_rlhf.models.loading import fresh_causal_lm, load_scalar_model
from cool_rlhf.models.tokenizer import CHAT_TEMPLATE

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|reward|>"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_that_starts("<s>")


@pytest.fixture(scope="session", params=["<|begin_of_text|>", None])
def foreign_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Without ``<s>``: as Llama 3's and Qwen's, fresh weights may take over another family's."""
    return tokenizer_that_starts(request.param)


def tokenizer_that_starts(start: str | None) -> PreTrainedTokenizerFast:
    """Of dialogues with the token ``start`` in front, or none."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [start if token == "<s>" else token for token in SPECIAL if start or token != "<s>"]
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    model = Tokenizer(BPE(vocabulary, [], unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=start,
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture
def tiny() -> ModelConfig:
    return ModelConfig(hidden_size=128, layers=2, heads=4, kv_heads=2, ffn_size=160, max_positions=256, dtype="float32")


@pytest.fixture
def policy(tiny: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> InternLM2ForCausalLM:
    return fresh_causal_lm(tiny, tokenizer, seed=1)


@pytest.fixture
def chat_folder(policy: InternLM2ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    save_checkpoint(
        tmp_path / "chat",
        policy.config,
        policy.named_parameters(),
        tokenizer,
        architecture="InternLM2ForCausalLM",
        dtype=torch.float32,
    )
    return tmp_path / "chat"


@pytest.fixture
def reward_folder(chat_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    model = load_scalar_model(chat_folder, torch.float32, head="fresh", seed=2)
    save_checkpoint(
        tmp_path / "reward",
        model.config,
        model.named_parameters(),
        tokenizer,
        architecture="InternLM2ForRewardModel",
        conditions={"helpful": "Prefer the helpful answer.", "default": ""},
        condition_join="separate_system_turn",
        score_bound=4.0,
        dtype=torch.float32,
    )
    return tmp_path / "reward"
