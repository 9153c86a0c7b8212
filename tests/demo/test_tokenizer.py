"""The demo's tokenizer."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cool_rlhf.config import WorldConfig
from cool_rlhf.demo.tokenizer import LAST_TOKENS, train_tokenizer
from cool_rlhf.demo.world import World
from cool_rlhf.protocols import UserError

CHAT = [{"role": "user", "content": "What is 4 + 5?"}, {"role": "assistant", "content": "That is 4 + 5 = 9."}]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    world = World(WorldConfig(sft=1500, preferences=1, prompts=6, validation=6, test=6, pretrain=200), 1)
    return [turn["content"] for chat in world.sft for turn in chat["messages"]] + world.pretrain


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(texts, 768)


def test_special_tokens_stand_where_internlm2_has_them(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 768
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids(list(LAST_TOKENS)) == list(range(768 - 7, 768))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    for token in ("<s>", *LAST_TOKENS):
        assert len(tokenizer(f"a{token}b", add_special_tokens=False).input_ids) == 3


def test_round_trip_of_any_text(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    for text in [*texts[:200], "Größe: 100 %\n\tnaïve 漢字 🙂", '{"a": [1, 2]}', "  two  spaces "]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert 0 not in ids


def test_bos_comes_by_default_and_only_then(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("hello").input_ids[0] == 1
    assert 1 not in tokenizer("hello", add_special_tokens=False).input_ids


def test_chat_template_is_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert text == "<s><|im_start|>user\nWhat is 4 + 5?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False).endswith("= 9.<|im_end|>\n")
    assert all(len(tokenizer(role, add_special_tokens=False).input_ids) == 1 for role in ("user", "assistant"))


def test_repeatable_and_the_same_after_saving(tokenizer: PreTrainedTokenizerFast, texts: list[str], tmp_path) -> None:
    assert train_tokenizer(texts, 768).get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.apply_chat_template(CHAT, tokenize=False) == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 2)


def test_too_small_a_vocabulary_is_the_users_mistake(texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size is 200"):
        train_tokenizer(texts, 200)
