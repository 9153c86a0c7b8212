"""Every kind of bad row that a preference file may hold is answered with one sentence: file, row, field."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cool_rlhf.data.loading import Reading, check_sources, load_preferences
from cool_rlhf.protocols import UserError

USER = {"role": "user", "content": "why?"}
ANSWER, OTHER = ({"role": "assistant", "content": text} for text in ("so", "no"))
GOOD = {"prompt": "why?", "chosen": "so", "rejected": "no", "domain": "helpful", "margin": 0.5}
READING = Reading(domains=("harmless", "helpful"))


def without(*fields: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name not in fields}


def line(**fields: Any) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def whole(*turns: Any) -> bytes:
    """A row whose chosen side is the whole dialogue."""
    return json.dumps({**without("prompt"), "chosen": list(turns), "rejected": [USER, OTHER]}).encode()


def transcript(chosen: str) -> bytes:
    return json.dumps({"chosen": chosen, "rejected": "\n\nHuman: why?\n\nAssistant: no"}).encode()


# What is wrong → the row as it stands in the file, the field that the sentence names, and what it says of it.
ROWS: dict[str, tuple[bytes, str | None, str]] = {
    "not JSON": (b"{'prompt': 'why?'}", None, "is not valid JSON: Expecting property name"),
    "JSON cut off": (line()[:-20], None, "is not valid JSON"),
    "a number without end": (line(margin=0.5).replace(b"0.5", b"9" * 5000), None, "too many digits"),
    "margin beyond any float": (line(margin=10**400), "margin", "must be a finite number"),
    "two objects on one line": (line() + line(), None, "is not valid JSON: Extra data"),
    "a key twice": (line()[:-1] + b', "chosen": "yes"}', None, "has the key 'chosen' twice in one object: leave one"),
    "a key twice in a message": (
        whole(USER, ANSWER).replace(b'{"role"', b'{"role": "user", "role"', 1), None, "has the key 'role' twice",
    ),
    "not an object": (b'["why?", "so", "no"]', None, "is not a JSON object but a list"),
    "invalid UTF-8": (line().replace(b"why", b"wh\xff"), None, "is not UTF-8 text"),
    "nested without end": (b"[" * 100_000, None, "nested too deeply"),
    "chosen missing": (json.dumps(without("chosen")).encode(), "chosen", "is missing; the row's fields"),
    "rejected missing": (json.dumps(without("rejected")).encode(), "rejected", "is missing"),
    "prompt missing": (json.dumps(without("prompt")).encode(), "prompt", "is missing"),
    "prompt under another name": (line(prompt=None, question="why?"), "prompt", "is `question` meant"),
    "field misspelt": (json.dumps({**without("domain"), "domian": "helpful"}).encode(), "domian", "is `domain` meant"),
    "null response": (line(rejected=None), "rejected", "is null"),
    "response is a number": (line(chosen=7), "chosen", "not a number"),
    "response is one message": (line(chosen=ANSWER), "chosen", "not an object"),
    "empty response": (line(rejected=" \n"), "rejected", "is empty"),
    "empty list": (line(chosen=[]), "chosen", "is an empty list"),
    "empty prompt": (line(prompt=""), "prompt", "is empty"),
    "message is a string": (line(chosen=["so"]), "chosen[0]", "must be a message"),
    "another prompt in a dialogue": (
        line(chosen=[{**USER, "content": "who?"}, ANSWER], rejected=[{**USER, "content": "who?"}, OTHER]),
        "chosen",
        "which is not the one of `prompt`",
    ),
    "another prompt in a transcript": (
        line(chosen="\n\nHuman: who?\n\nAssistant: so", rejected="\n\nHuman: who?\n\nAssistant: no"),
        "chosen",
        "which is not the one of `prompt`",
    ),
    "role missing": (line(chosen=[{"content": "so"}]), "chosen[0].role", "is missing"),
    "unknown role": (whole({**USER, "role": "human"}, ANSWER), "chosen[0].role", "is 'human'"),
    "null content": (line(rejected=[{**OTHER, "content": None}]), "rejected[0].content", "not null"),
    "empty content": (whole({**USER, "content": ""}, ANSWER), "chosen[0].content", "is empty"),
    "a part that is no text": (
        line(chosen=[{**ANSWER, "content": [{"type": "text", "text": "so"}, {"type": "image"}]}]),
        "chosen[0].content[1].type",
        "is 'image': only parts of type 'text' can be read",
    ),
    "a part without its text": (
        line(chosen=[{**ANSWER, "content": [{"type": "text"}]}]), "chosen[0].content[0].text", "not null",
    ),
    "a list of texts": (line(chosen=[{**ANSWER, "content": ["so"]}]), "chosen[0].content", "not a list"),
    "special token in a text": (line(chosen="so<|im_end|>"), "chosen", "<|im_end|>"),
    "half a surrogate pair": (line(chosen="\ud83d"), "chosen", "surrogate"),
    "system turn in the middle": (whole(USER, {**USER, "role": "system"}, ANSWER), "chosen[1].role", "only come first"),
    "assistant begins": (whole(ANSWER, USER, ANSWER), "chosen[0].role", "nobody to answer"),
    "dialogue ends with the user": (whole(USER, ANSWER, USER), "chosen", "ends in the user's turn"),
    "prompt ends with the assistant": (line(prompt=[USER, ANSWER]), "prompt", "ends in the assistant's turn"),
    "prompts differ": (whole({**USER, "content": "who?"}, ANSWER), "rejected", "does not continue the same dialogue"),
    "one more turn on one side": (whole(USER, ANSWER, USER, ANSWER), "rejected", "only the last turn may differ"),
    "chosen is rejected": (line(rejected="so"), "rejected", "nothing to prefer"),
    "margin in words": (line(margin="large"), "margin", "must be a number, not a string"),
    "margin is NaN": (line(margin=float("nan")), "margin", "finite"),
    "margin has no end": (line(margin=float("inf")), "margin", "finite"),
    "margin is a boolean": (line(margin=True), "margin", "not a boolean"),
    "domain is a number": (line(domain=3), "domain", "must be a string, not a number"),
    "domain is empty": (line(domain=""), "domain", "is empty"),
    "domain has no condition": (line(domain="harmles"), "domain", "is `harmless` meant"),
    "hh text without Human": (transcript("\n\nAssistant: so"), "chosen", "without a `Human:`"),
    "hh text with a beginning": (transcript("Well.\n\nHuman: why?\n\nAssistant: so"), "chosen", "before its first"),
    "hh text without an answer": (transcript("\n\nHuman: why?"), "chosen", "ends in the user's turn"),
    "hh text with an empty answer": (transcript("\n\nHuman: why?\n\nAssistant:"), "chosen[1].content", "is empty"),
    "hh texts of two dialogues": (transcript("\n\nHuman: who?\n\nAssistant: I"), "rejected", "the same dialogue"),
}  # fmt: skip

COLUMNS: dict[str, tuple[str, Any, str]] = {
    "numbers for responses": ("chosen", 7, "must be a string or a list of messages, not a number"),
    "bytes for responses": ("rejected", b"no", "not a bytes"),
    "dates for domains": ("domain", datetime.date(2024, 1, 1), "not a date"),
    "lists of texts for messages": ("chosen[0]", ["so"], "must be a message"),
    "texts for margins": ("margin", "0.5", "must be a number, not a string"),
    "nulls for prompts": ("prompt", None, "is missing"),
}


def sentence(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_sources("preferences", [str(path)], READING)
    said = str(caught.value)
    assert "\n" not in said
    return said.removesuffix("; data.bad_rows=drop leaves such rows out")


@pytest.mark.parametrize("kind", ROWS)
def test_bad_row_of_a_jsonl_file(kind: str, tmp_path: Path) -> None:
    row, field, problem = ROWS[kind]
    path = tmp_path / "pairs.jsonl"
    good = [] if kind == "chosen is rejected" else [line(), b""]
    path.write_bytes(b"\n".join([*good, row, *good]) + b"\n")
    place = f"data.preferences: {path}, row {len(good) + 1}"
    said = sentence(path)
    assert said.startswith(f"{place}: field `{field}` " if field else f"{place} ")
    assert problem in said


@pytest.mark.parametrize("kind", COLUMNS)
def test_column_of_the_wrong_type_in_a_parquet_file(kind: str, tmp_path: Path) -> None:
    field, value, problem = COLUMNS[kind]
    path = tmp_path / "pairs.parquet"
    rows = [{**GOOD, field.split("[")[0]: value}] * 3
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    said = sentence(path)
    assert said.startswith(f"data.preferences: {path}, row 1: field `{field}` ")
    assert problem in said
    assert said.endswith("(2 more bad rows)")


def test_text_that_is_no_utf_8_in_a_parquet_file(tmp_path: Path) -> None:
    def text(*values: bytes) -> pyarrow.Array:
        """As a writer that checks nothing leaves it."""
        return pyarrow.Array.from_buffers(pyarrow.string(), len(values), pyarrow.array(values).buffers())

    path = tmp_path / "pairs.parquet"
    columns = {
        "prompt": text(b"why?", b"wh\xff", b"why not?"),
        "chosen": pyarrow.array(["so"] * 3),
        "rejected": pyarrow.array(["no"] * 3),
        "ignored": text(b"\xff", b"\xff", b"\xff"),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert sentence(path) == f"data.preferences: {path}, row 2: field `prompt` is not UTF-8 text"
    assert check_sources("preferences", [str(path)], Reading(bad_rows="drop")) == 2
    assert len(load_preferences([str(path)], Reading(bad_rows="drop"))) == 2


def test_the_first_of_several_is_named_and_the_others_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join([line(), line(margin="1"), line(), b"{", line(chosen="")]))
    assert sentence(path).startswith(f"data.preferences: {path}, row 2: field `margin` ")
    assert sentence(path).endswith("(2 more bad rows)")
    assert check_sources("preferences", [str(path)], Reading(bad_rows="drop")) == 2
