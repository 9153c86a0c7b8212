"""Dialogues in one text, as hh-rlhf writes them, and prompts that two texts share."""

from __future__ import annotations

import json
from typing import Any

import numpy
import pytest

from cool_rlhf.data.messages import RowError, is_transcript, read_transcript
from cool_rlhf.data.rows import RowRules, SameResponseError, parse_chat, parse_preference, parse_prompt

RULES = RowRules()
ASKED = "\n\nHuman: Where is it?\n\nAssistant: Where is what?\n\nHuman: The key.\n\nAssistant:"
TURNS = [
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "Where is what?"},
    {"role": "user", "content": "The key."},
]


def test_a_dialogue_in_one_text_becomes_its_turns() -> None:
    said = "a list:\n\n- one\n\n- Human: two"
    read = read_transcript(f"{ASKED} {said}\n", "chosen")
    assert read == [*TURNS, {"role": "assistant", "content": said}]


def test_line_ends_of_other_systems_part_turns_too() -> None:
    texts = {name: f"{ASKED} {said}".replace("\n", "\r\n") for name, said in (("chosen", "Here."), ("rejected", "No."))}
    assert parse_preference(texts, RULES)["chosen"] == [*TURNS, {"role": "assistant", "content": "Here."}]
    asked, open_turn = ASKED.replace("\n", "\r\n"), {"prompt": ASKED, "chosen": " Here.", "rejected": " No."}
    assert parse_prompt({"prompt": asked}, RULES)["messages"] == TURNS
    assert parse_preference({**open_turn, "prompt": asked}, RULES) == parse_preference(open_turn, RULES)


def test_a_prompt_that_has_no_open_turn_stands_before_whole_dialogues() -> None:
    texts = {name: f"Human: why?\n\nAssistant: {name}" for name in ("chosen", "rejected")}
    assert parse_preference({"prompt": "Human: why?", **texts}, RULES) == parse_preference(texts, RULES)


@pytest.mark.parametrize(
    "asked", ["Be kind.\n\nHuman: why?\n\nAssistant:", "Human: why?\nAssistant:", "why?\r\nAssistant: ", "Assistant:"]
)
def test_an_open_turn_of_no_dialogue_is_refused(asked: str) -> None:
    with pytest.raises(RowError, match="`prompt` ends in `Assistant:` but is no dialogue"):
        parse_preference({"prompt": asked, "chosen": "so", "rejected": "no"}, RULES)
    with pytest.raises(RowError, match="`prompt` ends in `Assistant:` but is no dialogue"):
        parse_prompt({"prompt": asked}, RULES)
    with pytest.raises(RowError, match=r"`chosen` (ends in|has text before|is a dialogue without)"):
        parse_preference({"chosen": f"{asked} so", "rejected": f"{asked} no"}, RULES)


@pytest.mark.parametrize("text", ["Human: who wrote that?", "I say:\n\nAssistant: hi", "The Human: a film"])
def test_a_text_that_speaks_of_speakers_is_no_dialogue(text: str) -> None:
    assert not is_transcript(text)
    assert parse_prompt({"prompt": text}, RULES)["messages"] == [{"role": "user", "content": text}]


def written(turns: Any) -> list[tuple[str, str]]:
    """A list in each of the texts that a table without lists may hold, with what reads it."""
    by_python = "ast.literal_eval(text)"
    by_numpy = by_python if len(turns) == 1 else r'ast.literal_eval(text.replace("}\n", "},"))'
    return [
        (json.dumps(turns), "json.loads(text)"),
        (" " + json.dumps(turns, indent=1, ensure_ascii=False) + "\n", "json.loads(text)"),
        (str(turns), by_python),
        (str(numpy.array(turns)), by_numpy),
    ]


QUESTION = [{"role": "user", "content": "where's my hat, André?"}]
REPLY = [{"role": "assistant", "content": "here \\d"}]
SHARED_REPLY = [{"from": "gpt", "value": "here"}]


@pytest.mark.parametrize("reply", [REPLY, SHARED_REPLY, QUESTION + REPLY])
def test_a_list_of_messages_that_is_written_as_text_is_not_taken_for_what_somebody_says(reply: Any) -> None:
    for text, reader in written(reply):
        cases: list[tuple[Any, str, dict[str, Any]]] = [
            (parse_preference, "chosen", {"prompt": "why?", "chosen": text, "rejected": "no"}),
            (parse_preference, "rejected", {"prompt": "why?", "chosen": "so", "rejected": text}),
            (parse_preference, "chosen", {"chosen": text, "rejected": text.replace("here", "there")}),
            (parse_preference, "prompt", {"prompt": text, "chosen": "so", "rejected": "no"}),
            (parse_prompt, "prompt", {"prompt": text}),
            (parse_prompt, "chosen", {"chosen": text, "rejected": text.replace("here", "there")}),
            (parse_chat, "completion", {"prompt": "why?", "completion": text}),
            (parse_chat, "prompt", {"prompt": text, "completion": "so"}),
            (parse_chat, "messages", {"messages": text}),
        ]
        for parse, field, row in cases:
            with pytest.raises(RowError) as caught:
                parse(row, RULES)
            said = f"is a list of messages written as text: make it a list, in Python by {reader}"
            assert (caught.value.field, caught.value.problem) == (field, said)


@pytest.mark.parametrize(
    "text",
    [
        '[{"name": "Ann"}, {"name": "Bob"}] Which is the longer list?',
        '[{"name": "Ann"}]',
        '[{"role": "user"}]',
        '[{"role": "user", "content": "hi"}, 3]',
        f"{json.dumps(QUESTION)} How many messages are these?",
        f"Read {json.dumps(QUESTION)}",
        "[{broken",
        "[{" * 5000,
        "[1, 2]",
        "[]",
    ],
)
def test_a_text_that_only_begins_with_a_bracket_stays(text: str) -> None:
    assert parse_prompt({"prompt": text}, RULES)["messages"] == [{"role": "user", "content": text}]
    pair = parse_preference({"prompt": "why?", "chosen": text, "rejected": "no"}, RULES)
    assert pair["chosen"][-1]["content"] == text


def test_what_somebody_says_in_a_message_or_a_policy_has_sampled_may_be_a_list_of_messages() -> None:
    text = json.dumps(REPLY)
    said = {"role": "assistant", "content": text}
    assert parse_chat({"messages": [*QUESTION, said]}, RULES)["messages"][-1] == said
    row = {"prompt": QUESTION, "chosen": text, "rejected": "no"}
    assert parse_preference(row, RowRules(sampled=True))["chosen"][-1] == said


def test_pairs_of_whole_dialogues_share_their_prompt() -> None:
    parsed = parse_preference({"chosen": f"{ASKED} On the table.", "rejected": f"{ASKED} No."}, RULES)
    assert parsed["chosen"] == [*TURNS, {"role": "assistant", "content": "On the table."}]
    assert parsed["rejected"] == [*TURNS, {"role": "assistant", "content": "No."}]


@pytest.mark.parametrize("whole", [True, False])
def test_a_prompt_that_ends_where_the_assistant_speaks(whole: bool) -> None:
    before = ASKED if whole else ""
    row = {"prompt": ASKED, "chosen": f"{before} On the table.", "rejected": f"{before} No."}
    parsed = parse_preference(row, RULES)
    assert parsed["chosen"] == [*TURNS, {"role": "assistant", "content": "On the table."}]
    assert parse_prompt({"prompt": ASKED}, RULES)["messages"] == TURNS


def test_a_plain_prompt_before_whole_dialogues_is_not_said_twice() -> None:
    row = {"prompt": "why?", "chosen": "\n\nHuman: why?\n\nAssistant: so", "rejected": "no"}
    parsed = parse_preference(row, RULES)
    assert [turn["content"] for turn in parsed["chosen"]] == ["why?", "so"]
    assert [turn["content"] for turn in parsed["rejected"]] == ["why?", "no"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is", ["blue.", "black."]),
        ("Count: one two", "Count: one two three", "Count: one", ["two", "two three"]),
        ("a\nb c", "a\nd", "a", ["b c", "d"]),
    ],
)
def test_plain_texts_share_whole_words(chosen: str, rejected: str, prompt: str, answers: list[str]) -> None:
    parsed = parse_preference({"chosen": chosen, "rejected": rejected}, RULES)
    assert [turn["content"] for turn in parsed["chosen"]] == [prompt, answers[0]]
    assert [turn["content"] for turn in parsed["rejected"]] == [prompt, answers[1]]


def test_a_prompt_under_another_name_is_not_guessed() -> None:
    with pytest.raises(RowError, match="`prompt` is missing: is `question` meant"):
        parse_preference({"question": "Which?", "chosen": "The red", "rejected": "The blue"}, RULES)


def test_equal_dialogues_prefer_nothing_in_their_domain() -> None:
    row = {"chosen": f"{ASKED} No.", "rejected": f"{ASKED} No.", "domain": "harmless"}
    with pytest.raises(SameResponseError) as caught:
        parse_preference(row, RULES)
    assert caught.value.domain == "harmless"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("\n\nAssistant: hi", "chosen"),
        ("Well.\n\nHuman: why?\n\nAssistant: so", "chosen"),
        ("\n\nHuman: why?", "chosen"),
        ("\n\nHuman: why?\n\nAssistant:", "chosen[1].content"),
        ("\n\nHuman:\n\nAssistant: so", "chosen[0].content"),
    ],
)
def test_bad_dialogues_are_named(text: str, field: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_preference({"chosen": text, "rejected": "\n\nHuman: why?\n\nAssistant: no"}, RULES)
    assert caught.value.field == field
