"""What a row asks and answers as whole dialogues, from every form that the two are written in.

A row may name its prompt apart from what answers it (TRL's explicit prompt), or hold both in one (its implicit prompt);
each as text, as messages, or as hh-rlhf's dialogue in one text.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

import regex

from cool_rlhf.data.messages import (
    RowError,
    begins_as_transcript,
    checked_content,
    checked_conversation,
    checked_response,
    holds_turns,
    is_transcript,
    kind_of,
    leaves_turn_open,
    must_end_with_assistant,
    read_transcript,
    read_turn,
    refuse_written_messages,
    required,
    with_system_turn,
    without_weights,
)
from cool_rlhf.protocols import Conversation, Message

_OTHER_NAMES_OF_PROMPT = (
    *("question", "query", "instruction", "input", "post", "context"),
    *("messages", "conversations", "conversation", "history", "dialogue"),
)
_SYSTEM_COLUMNS = ("system", "system_prompt")

# What a common beginning ends in may be half a word: all behind the last blank; in scripts that put no blanks between
# words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) only a number, or a word of another script.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_HALF_WORD = regex.compile(
    rf"""
      (?<!\S) [^\s{_UNSPACED}]++ \Z
    # From where a run of letters begins alone: tried at each of them, a long one would take quadratic time.
    | (?<! [[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]] ) (?: (?![{_UNSPACED}]) \p{{M}} )*+ \K
      [[\p{{L}}\p{{N}}]--[{_UNSPACED}]] [[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]*+ \Z
    """,
    regex.VERSION1 | regex.VERBOSE,
)
_CHARACTER = regex.compile(r"\X")  # with the vowel signs and accents on it


def read_chat(row: Mapping[str, Any], field: str) -> Conversation:
    """A chat that stands in ``field``: ``messages``, ``conversations``, or a ``completion`` behind its ``prompt``."""
    if field == "completion":
        said = required(row, field)
        refuse_written_messages(said, field)
        prompt, sides = _named_prompt(required(row, "prompt"), {field: said})
        return _response(sides[field], field, prompt, sampled=False)
    messages = checked_conversation(required(row, field), field)
    must_end_with_assistant(messages, field)
    return messages


def read_pair(row: Mapping[str, Any], sampled: bool) -> tuple[Conversation, Conversation]:
    """``chosen`` and ``rejected`` of a pair as whole dialogues that part only in the last turn, which may be a
    ``sampled`` response.

    ``prompt`` may be left out where both hold the whole dialogue: what they share is the prompt then.
    """
    sides = {name: required(row, name) for name in ("chosen", "rejected")}
    if not sampled:  # a policy may say anything
        for name, side in sides.items():
            refuse_written_messages(side, name)
    prompt, sides = _shared_prompt(row, sides) if row.get("prompt") is None else _named_prompt(row["prompt"], sides)
    chosen, rejected = (without_weights(_response(side, name, prompt, sampled)) for name, side in sides.items())
    if chosen[:-1] != rejected[:-1]:
        raise RowError("rejected", "does not continue the same dialogue as `chosen`: only the last turn may differ")
    return chosen, rejected


def read_prompt(value: Any, field: str = "prompt") -> Conversation:
    """A text, messages or a dialogue in one text as messages with the assistant to speak next."""
    if _is_transcript(value):
        value = read_transcript(value, field)
        if value[-1] == {"role": "assistant", "content": ""}:  # `Assistant:` and nothing behind: whose turn it is
            del value[-1]
    refuse_written_messages(value, field)
    if isinstance(value, str):
        if leaves_turn_open(value):
            raise RowError(
                field,
                "ends in `Assistant:` but is no dialogue whose turns each begin behind an empty line, the first with "
                "`Human:`: write it so, or as messages",
            )
        return [Message(role="user", content=checked_content(value, field))]
    messages = checked_conversation(_text_or_messages(value, field), field)
    if messages[-1]["role"] not in ("user", "environment"):
        raise RowError(field, f"ends in the {messages[-1]['role']}'s turn: it must end in the user's")
    return messages


def behind_system(messages: Conversation, row: Mapping[str, Any]) -> Conversation:
    """``messages`` behind the system turn that the row holds in a column of its own, as ShareGPT's rows do.

    Raises RowError where they have another one.
    """
    for field in _SYSTEM_COLUMNS:
        said = row.get(field)
        if said is None or (isinstance(said, str) and not said.strip()):
            continue
        messages = with_system_turn(messages, checked_content(said, field))
        if messages[0]["content"].split() != said.split():
            raise RowError(field, "is another system turn than the one that the dialogue has: leave one of the two out")
    return messages


def is_dialogue(side: Any) -> bool:
    """Whether a side of a pair begins with what is asked, rather than being the response alone."""
    if isinstance(side, str):
        return is_transcript(side)
    return isinstance(side, list) and bool(side) and _turn(side[0])[0] in ("system", "user")


def _named_prompt(asked: Any, sides: dict[str, Any]) -> tuple[Conversation, dict[str, Any]]:
    """The prompt that a row names, and its sides without what only a dialogue in one text writes."""
    if _is_transcript(asked):
        sides = {name: _continued(asked, side, name) for name, side in sides.items()}
    elif isinstance(asked, str) and begins_as_transcript(asked) and any(map(_is_transcript, sides.values())):
        asked = read_transcript(asked, "prompt")
    return read_prompt(asked), sides


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and is_transcript(value)


def _continued(prompt: str, side: Any, field: str) -> Any:
    """A side that goes on from a transcript: as a whole dialogue where it holds turns, else as one response."""
    if not isinstance(side, str) or is_transcript(side):
        return side
    return read_transcript(prompt + side, field) if holds_turns(side) else side.strip()


def _shared_prompt(row: Mapping[str, Any], sides: dict[str, Any]) -> tuple[Conversation | None, dict[str, Any]]:
    """The prompt of a row that names none, and what is left of the two sides. None where they are whole dialogues.

    Of plain texts it is the messages that stand beside them, which end in the user's turn, or where there is no such
    column the words that both begin with (TRL's implicit prompt).
    """
    texts = {name: side for name, side in sides.items() if isinstance(side, str)}
    if any(map(holds_turns, texts.values())):
        return None, {**sides, **{name: read_transcript(text, name) for name, text in texts.items()}}
    if not texts:
        return None, sides
    other = next((name for name in _OTHER_NAMES_OF_PROMPT if row.get(name) is not None), None)
    if other:
        return _prompt_in(row[other], other), sides
    shared = _shared_words(*texts.values()) if len(texts) == len(sides) else ""
    if not shared.strip():
        raise RowError("prompt", "is missing, and `chosen` and `rejected` have no first words in common: name it")
    return read_prompt(shared.strip(), "chosen"), {name: text[len(shared) :].strip() for name, text in texts.items()}


def _prompt_in(value: Any, field: str) -> Conversation:
    """The prompt of a row that names none, from a column that may hold it."""
    if not isinstance(value, list):
        raise RowError("prompt", f"is missing: is `{field}` meant? Rename it")
    try:
        return read_prompt(value, field)
    except RowError as error:
        problem = f"is missing, and `{error.field}`, which stands in its place, {error.problem}"
        raise RowError("prompt", problem) from error


def _shared_words(first: str, second: str) -> str:
    """What both begin with, but for half a word at its end."""
    characters = zip(_CHARACTER.finditer(first), _CHARACTER.finditer(second), strict=False)
    alike = takewhile(lambda both: both[0][0] == both[1][0], characters)
    return _HALF_WORD.sub("", "".join(one[0] for one, _ in alike))


def _response(value: Any, field: str, prompt: Conversation | None, sampled: bool) -> Conversation:
    """The whole dialogue up to and with this response."""
    if _is_transcript(value):
        value = read_transcript(value, field)
    if isinstance(value, str):
        assert prompt is not None  # _shared_prompt has refused it
        return [*prompt, Message(role="assistant", content=checked_response(value, field, sampled))]
    _text_or_messages(value, field)
    if prompt is not None and not _holds_prompt(value, prompt, field):
        value = [*prompt, *value]
        messages = _conversation_of_response(value, field, len(prompt), sampled)
    else:
        messages = _conversation_of_response(value, field, 0, sampled)
    must_end_with_assistant(messages, field)
    return messages


def _text_or_messages(value: Any, field: str) -> Any:
    if not isinstance(value, str | list):
        raise RowError(field, f"must be a string or a list of messages, not {kind_of(value)}")
    return value


def _conversation_of_response(value: Any, field: str, offset: int, sampled: bool) -> Conversation:
    """Check ``value``; positions in messages count from the response's own first turn."""
    if offset and len(value) == offset:
        raise RowError(field, "is an empty list")
    try:
        return checked_conversation(value, field, ends_sampled=sampled)
    except RowError as error:
        index = error.field.removeprefix(f"{field}[").split("]")[0]
        if offset and index.isdigit():
            moved = error.field.replace(f"[{index}]", f"[{int(index) - offset}]", 1)
            raise RowError(moved, error.problem) from error
        raise


def _holds_prompt(value: list[Any], prompt: Conversation, field: str) -> bool:
    """Whether ``value`` is the whole dialogue, which the prompt begins or, where that is its last turns alone, ends but
    for the response; False where it is the response only.

    Raises RowError for a dialogue with another prompt: one of the two would be learnt beside the other.
    """
    turns = [_turn(item) for item in value]
    if not turns or turns[0][0] not in ("system", "user"):
        return False
    asked = [_turn(turn) for turn in prompt]
    if asked in (turns[: len(asked)], turns[:-1][-len(asked) :]):
        return True
    raise RowError(field, "holds a whole dialogue, which is not the one of `prompt`: leave one of the two out")


def _turn(item: Any) -> tuple[Any, Any]:
    """Role and text of a turn as prompts are compared, but for case; of what is no turn, nothing that is equal."""
    try:
        role, content, *_ = read_turn(item, "")
    except RowError:
        return None, None
    return role, " ".join(content.split()) if isinstance(content, str) else None
