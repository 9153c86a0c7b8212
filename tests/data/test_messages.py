"""Dialogues in one text, as hh-rlhf writes them, and prompts that two texts share."""

from __future__ import annotations

import pytest

from cool_rlhf.data.messages import RowError, is_transcript, read_transcript
from cool_rlhf.data.rows import RowRules, SameResponseError, parse_preference, parse_prompt

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
