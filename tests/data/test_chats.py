"""Every way to write a chat reads the same; what is wrong with one is named by its own field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cool_rlhf.data.loading import check_sources, load_chats
from cool_rlhf.data.rows import RowError, RowRules, parse_chat, parse_preference, parse_prompt
from cool_rlhf.protocols import UserError

RULES = RowRules()


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def shared(speaker: str, value: Any) -> dict[str, Any]:
    """As ShareGPT writes a turn."""
    return {"from": speaker, "value": value}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


ASK, SAID = [turn("user", "why?")], [turn("assistant", "so")]
FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": ASK + SAID},
    "prompt and completion": {"prompt": "why?", "completion": "so"},
    "conversational prompt and completion": {"prompt": ASK, "completion": SAID},
    "a completion of parts": {"prompt": [turn("user", parts("why?"))], "completion": [turn("assistant", parts("so"))]},
    "a completion that repeats the prompt": {"prompt": [turn("user", parts("why?"))], "completion": ASK + SAID},
    "a dialogue in one text": {"prompt": "\n\nHuman: why?\n\nAssistant:", "completion": " so"},
    "ShareGPT": {"conversations": [shared("human", "why?"), shared("gpt", "so")]},
    "ShareGPT's newer names": {"conversations": [shared("user", "why?"), shared("assistant", "so")]},
    "conversations of messages": {"conversations": ASK + SAID},
    "parts": {"messages": [turn("user", parts("wh", "y?")), turn("assistant", parts("so"))]},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_write_a_chat_reads_the_same(form: str) -> None:
    assert parse_chat(FORMS[form], RULES) == {"messages": ASK + SAID, "domain": "default"}


def test_files_of_every_form_are_checked_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    sources = []
    for index, row in enumerate(FORMS.values()):
        sources += [str(tmp_path / f"{index}.jsonl"), str(tmp_path / f"{index}.parquet")]
        Path(sources[-2]).write_text(json.dumps(row), encoding="utf-8")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), sources[-1])
    mixed = str(tmp_path / "mixed.parquet")  # in which every row has every column, null where it has nothing
    rows = [FORMS[name] for name in ("messages", "conversational prompt and completion", "ShareGPT")]
    rows += [{"conversations": [{"from": None, "value": None, **said} for said in ASK + SAID]}]
    pyarrow.parquet.write_table(_table(rows), mixed)
    assert check_sources("sft", [*sources, mixed]) == 2 * len(FORMS) + len(rows)
    assert all(chat["messages"] == ASK + SAID for chat in load_chats([*sources, mixed]))


def _table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    message = {"role": pyarrow.string(), "content": pyarrow.string()}
    messages = pyarrow.list_(pyarrow.struct(message))
    either = pyarrow.list_(pyarrow.struct({**message, "from": pyarrow.string(), "value": pyarrow.string()}))
    columns = {"messages": messages, "prompt": messages, "completion": messages, "conversations": either}
    return pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(columns))


def test_a_system_turn_and_several_turns_of_both() -> None:
    said = [shared("system", "be kind"), shared("human", "hi"), shared("gpt", "hi!"), shared("human", "why?")]
    messages = [turn("system", "be kind"), turn("user", "hi"), turn("assistant", "hi!"), *ASK, *SAID]
    assert parse_chat({"conversations": [*said, shared("gpt", "so")]}, RULES)["messages"] == messages
    assert parse_chat({"prompt": messages[:-1], "completion": "so"}, RULES)["messages"] == messages


def test_turns_read_the_same_in_prompts_and_pairs() -> None:
    said = [shared("human", "why?")]
    assert parse_prompt({"prompt": said}, RULES)["messages"] == ASK
    pair = {"prompt": said, "chosen": [*said, shared("gpt", "so")], "rejected": [turn("assistant", parts("no"))]}
    plain = {"prompt": "why?", "chosen": "so", "rejected": "no"}
    assert parse_preference(pair, RULES) == parse_preference(plain, RULES)


def test_messages_come_first_and_what_stands_beside_them_is_no_slip() -> None:
    beside = {"prompt": "who?", "prompt_id": "f0e3", "conversation_id": 3, "completions": 1}
    assert parse_chat({"messages": ASK + SAID, **beside}, RULES)["messages"] == ASK + SAID
    assert parse_chat({**FORMS["ShareGPT"], "conversation_id": 3}, RULES)["messages"] == ASK + SAID


@pytest.mark.parametrize("label", [None, True, 1, 1.0, "True", "true"])
def test_a_completion_that_is_labelled_as_wanted_is_learnt(label: Any) -> None:
    row = {"prompt": "why?", "completion": "so", "label": label}
    assert parse_chat(row, RULES)["messages"] == ASK + SAID
    assert parse_chat({"messages": ASK + SAID, "label": 0}, RULES)["messages"] == ASK + SAID, "another column there"


def test_turns_that_are_not_to_be_learnt_keep_their_weight_in_chats_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    bad, good = ({**turn("assistant", text), "weight": weight} for text, weight in (("bad", 0), ("so", 1)))
    unlearnt = {**turn("assistant", "bad"), "weight": 0}
    said = [*ASK, unlearnt, *ASK, *SAID]
    sources = []
    for index, row in enumerate(
        [
            {"messages": [*ASK, bad, *ASK, good]},
            {"messages": [*ASK, {**bad, "weight": 0.0}, *ASK, {**good, "weight": None}]},
            {"conversations": [*ASK, {**shared("gpt", "bad"), "weight": False}, *ASK, shared("gpt", "so")]},
            {"prompt": [*ASK, bad, *ASK], "completion": [good]},
        ]
    ):
        assert parse_chat(row, RULES)["messages"] == said
        sources.append(str(tmp_path / f"{index}.jsonl"))
        Path(sources[-1]).write_text(json.dumps(row), encoding="utf-8")
    assert [chat["messages"] for chat in load_chats(sources)] == [said] * len(sources)
    prompt, plain = [*ASK, {**bad, "weight": 0.5}, *ASK], [*ASK, turn("assistant", "bad"), *ASK]
    assert parse_prompt({"prompt": prompt}, RULES)["messages"] == plain
    pair = parse_preference({"prompt": prompt, "chosen": [good], "rejected": [bad]}, RULES)
    assert (pair["chosen"], pair["rejected"]) == ([*plain, *SAID], [*plain, turn("assistant", "bad")])


CALLS: dict[str, Any] = {
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    "function_call": {"name": "weather", "arguments": None},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_beside_what_the_assistant_says_is_not_lost(name: str) -> None:
    called = {**SAID[0], name: CALLS[name]}
    for parse, row, field in (
        (parse_chat, {"messages": [*ASK, called]}, "messages[1]"),
        (parse_chat, {"messages": [*ASK, {**called, "content": None}, *ASK, *SAID]}, "messages[1]"),
        (parse_preference, {"prompt": ASK, "chosen": [called], "rejected": "no"}, "chosen[0]"),
        (parse_prompt, {"prompt": [*ASK, called, *ASK]}, "prompt[1]"),
    ):
        with pytest.raises(RowError, match=r"alone: write it there, as <\|action_start\|><\|plugin\|>") as caught:
            parse(row, RULES)
        assert caught.value.field == f"{field}.{name}"
    for nothing in (None, [], {}, "", {"name": None, "arguments": None}):
        assert parse_chat({"messages": [*ASK, {**called, name: nothing}]}, RULES)["messages"] == ASK + SAID


BAD: dict[str, list[tuple[dict[str, Any], str]]] = {
    "messages": [
        ({"prompt": "why?", "response": "so"}, "is missing; the row's fields: `prompt`, `response`"),
        ({"messages": None}, "is null"),
        ({"messages": [*ASK, {**SAID[0], "weight": 0}]}, "gives every turn of the assistant the weight 0"),
        ({"messages": [*ASK, {**SAID[0], "weight": 0.5}]}, "gives a turn the weight '0.5': it must be 1, or 0 where"),
        ({"messages": [*ASK, {**SAID[0], "weight": "0"}]}, "gives a turn the weight '0': it must be 1, or 0 where"),
        ({"instruction": "why?", "output": "so"}, "is missing"),
    ],
    "prompt": [({"completion": "so"}, "is missing"), ({"prompt": ASK + SAID, "completion": "so"}, "ends in the assis")],
    "completion": [
        ({"prompt": "why?", "completion": " "}, "is empty"),
        ({"prompt": "why?", "completion": 3}, "must be a string or a list of messages, not a number"),
        ({"prompt": "why?", "completion": []}, "is an empty list"),
        ({"prompt": "why?", "completion": [turn("user", "who?"), *SAID]}, "which is not the one of `prompt`"),
        ({"prompt": "why?", "completion": [*SAID, *ASK]}, "ends in the user's turn"),
    ],
    "completion[1].content[0].type": [
        ({"prompt": "why?", "completion": [*SAID, turn("assistant", [{"type": "image_url"}])]}, "is 'image_url'"),
    ],
    "conversations": [
        ({"conversations": "why?"}, "must be a list of messages"),
        ({"conversations": [shared("human", "why?")]}, "ends in the user's turn"),
    ],
    "conversations[0].from": [
        (
            {"conversations": [shared("tool", "42"), shared("gpt", "so")]},
            "is 'tool': it must be one of human, user, gpt, assistant, system",
        ),
        ({"conversations": [shared(["human"], "why?")]}, "is ['human']"),
        ({"conversations": [shared("gpt", "so")]}, "nobody to answer"),
    ],
    "conversations[1].value": [
        ({"conversations": [shared("human", "why?"), shared("gpt", "")]}, "is empty"),
        ({"conversations": [shared("human", "why?"), turn("x", "so") | {"role": None, "from": "gpt"}]}, "not null"),
    ],
    "conversation": [({"conversation": ASK + SAID}, "is `conversations` meant?")],
    "label": [
        ({"prompt": "why?", "completion": "so", "label": label}, "SFT would imitate")
        for label in (False, 0, 0.0, "False", "false", "0", "", "bad", 2, [True])
    ],
    "completon": [({"prompt": "why?", "completon": "so"}, "is `completion` meant?")],
    "promt": [({"promt": "why?", "completion": "so"}, "is `prompt` meant?")],
}


@pytest.mark.parametrize(("field", "row", "said"), [(field, *case) for field, cases in BAD.items() for case in cases])
def test_what_is_wrong_with_a_chat_is_named_by_its_field(field: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_chat(row, RULES)
    assert caught.value.field == field
    assert said in caught.value.problem


def test_the_sentence_names_file_row_and_field(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    rows = [FORMS["ShareGPT"], {"conversations": [shared("observation", "42")]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        check_sources("sft", [str(path)])
    said = f"data.sft: {path}, row 2: field `conversations[0].from` is 'observation': it must be one of "
    assert str(caught.value).startswith(said)
