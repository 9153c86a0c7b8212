"""The template, what is learnt from it, and what the reward model reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from cool_rlhf.data.chat import encode_chat, encode_prompt, encode_reward, render_turns, reward_text, token_id
from cool_rlhf.protocols import Message, UserError

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|reward|>"]


def byte_tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    """One token a byte, but for three words that merge across what a turn's start and its text would be."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<unk>", *alphabet, "ĊĊ", "Ċa", "ab"])}
    inner = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ"), ("Ċ", "a"), ("a", "b")], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZER = byte_tokenizer(SPECIAL)


def turn(role: str, content: str) -> Message:
    return Message(role=role, content=content)


DIALOGUE = [
    turn("system", "be kind"),
    turn("user", "hi"),
    turn("assistant", "abc"),
    turn("user", "more?"),
    turn("assistant", "a"),
]


def test_rendering_closes_every_turn() -> None:
    assert render_turns(DIALOGUE[:3]) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nabc<|im_end|>\n"
    )


def test_prompt_ends_where_the_assistant_begins() -> None:
    text = TOKENIZER.decode(encode_prompt(TOKENIZER, DIALOGUE[1:2]))
    assert text == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_chat_learns_what_the_assistant_says_and_its_end() -> None:
    tokens, mask = encode_chat(TOKENIZER, DIALOGUE)
    assert TOKENIZER.decode(tokens.tolist()) == "<s>" + render_turns(DIALOGUE)
    assert TOKENIZER.decode(tokens[mask].tolist()) == "abc<|im_end|>a<|im_end|>"
    assert not mask[-1], "the line break behind the last turn is never generated"


words = st.text(st.sampled_from("ab \nx"), min_size=1, max_size=6)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_training_sees_the_ids_that_generation_starts_from(turns: list[tuple[str, str]]) -> None:
    dialogue = [turn(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
    tokens, mask = encode_chat(TOKENIZER, dialogue)
    prompt = encode_prompt(TOKENIZER, dialogue[:-1])
    assert tokens[: len(prompt)].tolist() == prompt
    assert bool(mask[len(prompt)])
    assert not mask[len(prompt) - 1]


def test_condition_is_a_system_turn_before_the_dialogues_own() -> None:
    text = reward_text(DIALOGUE[:3], "short answers")
    assert text.startswith("<s><|im_start|>system\nshort answers<|im_end|>\n<|im_start|>system\nbe kind<|im_end|>\n")
    assert text.endswith("abc<|im_end|>\n<|reward|>")
    assert reward_text(DIALOGUE, None) == reward_text(DIALOGUE, "")


def test_unfinished_response_stays_open() -> None:
    assert reward_text(DIALOGUE, None, finished=False).endswith("<|im_start|>assistant\na<|reward|>")


def test_reward_tokens_are_those_of_the_whole_text() -> None:
    for finished in (True, False):
        whole = TOKENIZER.encode(reward_text(DIALOGUE, "short", finished), add_special_tokens=False)
        assert encode_reward(TOKENIZER, DIALOGUE, "short", finished, 4096).tolist() == whole


@pytest.mark.parametrize("length", [12, 30, 60])
def test_long_dialogue_loses_its_beginning_only(length: int) -> None:
    whole = encode_reward(TOKENIZER, DIALOGUE, None, True, 4096).tolist()
    cut = encode_reward(TOKENIZER, DIALOGUE, None, True, length).tolist()
    assert len(cut) == length < len(whole)
    assert cut == [whole[0], *whole[len(whole) - length + 1 :]]
    assert cut.count(token_id(TOKENIZER, "<|reward|>")) == 1


def test_cut_dialogue_keeps_its_condition() -> None:
    cut = TOKENIZER.decode(encode_reward(TOKENIZER, DIALOGUE, "short", True, 60).tolist())
    assert cut.startswith("<s><|im_start|>system\nshort<|im_end|>\n")
    assert cut.endswith("<|reward|>")


def test_tokenizer_without_the_reward_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"<\|reward\|>"):
        encode_reward(byte_tokenizer(SPECIAL[:-1]), DIALOGUE, None, True, 100)
