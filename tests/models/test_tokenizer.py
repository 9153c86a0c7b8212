"""Tokenizers: InternLM2's SentencePiece file against sentencepiece itself on real text, and what other families get."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from cool_rlhf.data.chat import encode_prompt
from cool_rlhf.models.tokenizer import CHAT_TEMPLATE, INTERNLM2_TOKENS, REWARD_TEMPLATE, load_tokenizer
from cool_rlhf.protocols import UserError

SHARED = Path(os.environ.get("COOL_RLHF_SHARED", Path(__file__).parents[3] / "shared")) / "data"
MODEL = SHARED / "tokenizer" / "internlm2.model"
needs_data = pytest.mark.skipif(
    not MODEL.is_file(), reason=f"InternLM2's tokenizer file is not at {MODEL}; set COOL_RLHF_SHARED to its folder"
)


def texts(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


@needs_data
def test_ids_equal_sentencepieces_on_real_text() -> None:
    tokenizer = load_tokenizer(MODEL)
    reference = sentencepiece.SentencePieceProcessor(str(MODEL))
    awkward = [
        "hello  world   \n\n  x\t",
        "你好，世界……  🙂 \u00a0 é",
        " lead",
        "a\r\nb",
        "1234 56",
        "ＥＦ——",
        "▁a b",
        "\x07\x7f",
    ]
    lines = [
        text
        for file in sorted(SHARED.glob("*/*.jsonl"))
        for row in file.read_text(encoding="utf-8").splitlines()[:150]
        for text in texts(json.loads(row))
        if "</s>" not in text  # sentencepiece spells control tokens out, chat tokenizers must not
    ]
    assert len(lines) > 3000
    wrong = [
        text
        for text in awkward + lines
        if tokenizer(text, add_special_tokens=False).input_ids != reference.encode(text)
    ]
    assert wrong == []
    assert [text for text in lines[:500] if tokenizer.decode(tokenizer(text).input_ids[1:]) != text] == []


@needs_data
def test_chat_tokens_stand_where_sentencepiece_has_placeholders(tmp_path) -> None:
    tokenizer = load_tokenizer(MODEL)
    reference = sentencepiece.SentencePieceProcessor(str(MODEL))
    for index, name in INTERNLM2_TOKENS.items():
        assert reference.id_to_piece(index) == f"[UNUSED_TOKEN_{index - 92397}]"
        assert tokenizer(name, add_special_tokens=False).input_ids == [index]
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer))
    assert ids == (1, 2, 2, 92544)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": " 你好  there\n"}, {"role": "assistant", "content": "Hi"}]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<s><|im_start|>user\n 你好  there\n<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert loaded(text, add_special_tokens=False).input_ids == tokenizer(text, add_special_tokens=False).input_ids
    assert loaded.decode(loaded(text, add_special_tokens=False).input_ids) == text


@needs_data
def test_released_folder_loads_without_its_remote_code(tmp_path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(MODEL.read_bytes())
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "tokenizer_class": "InternLM2Tokenizer",
        "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 92542
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<s>x"


def of_another_family(tokenizer, folder: Path, **settings: str) -> Path:
    """A folder with ``tokenizer`` but for its reward token."""
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] != "<|reward|>"]
    reward_id = fields["model"]["vocab"].pop("<|reward|>")
    last = max(fields["model"]["vocab"], key=fields["model"]["vocab"].get)
    fields["model"]["vocab"][last] = reward_id
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_other_families_get_the_chat_tokens_they_lack(tokenizer, tmp_path) -> None:
    loaded = load_tokenizer(of_another_family(tokenizer, tmp_path))
    assert loaded.pad_token == "</s>"
    assert len(loaded("<|reward|>", add_special_tokens=False).input_ids) == 1
    text = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"  # it has no token for the beginning
    assert loaded(text).input_ids == encode_prompt(loaded, [{"role": "user", "content": "Hi"}])


def test_a_template_that_writes_chatml_is_kept_with_what_else_it_can(tokenizer, tmp_path, caplog) -> None:
    own = "{% if tools %}<|im_start|>system\nTools: {{ tools }}<|im_end|>\n{% endif %}" + CHAT_TEMPLATE
    with caplog.at_level(logging.INFO):
        loaded = load_tokenizer(of_another_family(tokenizer, tmp_path, chat_template=own))
    assert loaded.chat_template == own
    assert not caplog.records


@pytest.mark.parametrize(
    "own",
    [
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}" + CHAT_TEMPLATE,
        CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim"),
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE,
        "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}",
    ],
)
def test_a_template_that_writes_something_else_gives_way_and_the_log_says_so(
    tokenizer, tmp_path, caplog, own: str
) -> None:
    """The policy is trained and sampled in ChatML, whatever its family's chat models speak."""
    folder = of_another_family(tokenizer, tmp_path, chat_template=own)
    assert load_tokenizer(folder).chat_template == CHAT_TEMPLATE  # before there is a log
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert load_tokenizer(folder).chat_template == CHAT_TEMPLATE
    (told,) = caplog.messages
    assert told.startswith(f"{folder}: its own chat template")


def test_a_reward_models_template_is_kept(tokenizer, tmp_path) -> None:
    folder = of_another_family(tokenizer, tmp_path, chat_template=REWARD_TEMPLATE)
    assert load_tokenizer(folder).chat_template == REWARD_TEMPLATE


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma", "llama", "internlm2"])
def test_a_model_without_its_tokenizers_files_is_refused(tmp_path, family: str) -> None:
    """Of some families transformers makes a tokenizer all the same, which loses every text."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(UserError, match=r"cannot load a tokenizer from .*\(.*tokenizer\.json.*\): check the path and"):
        load_tokenizer(tmp_path)


def test_what_is_no_tokenizer_is_the_users_mistake(tmp_path) -> None:
    with pytest.raises(UserError, match="no SentencePiece file"):
        load_tokenizer(tmp_path / "missing.model")
    (tmp_path / "broken.model").write_bytes(b"\xff\xfe no model")
    with pytest.raises(UserError, match="SentencePiece model"):
        load_tokenizer(tmp_path / "broken.model")
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        load_tokenizer(tmp_path)
