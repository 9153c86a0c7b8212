"""Conversations as rows hold them, checked turn by turn: message lists, also as ShareGPT writes them, and hh-rlhf's
dialogues in one text."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cool_rlhf.protocols import Conversation, Message

ROLES = ("system", "user", "assistant", "environment")
TOOL_ROLES = ("system", "environment")  # a turn that lists tools, and one that holds what they answered
TOOL_NAMES = ("plugin", "interpreter")
TEMPLATE_TOKENS = ("<|im_start|>", "<|im_end|>", "<|reward|>")

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_OPEN_TURN = re.compile(r"(?:\A|\n)[ \t]*Assistant:\s*\Z")
_LIST_OF_OBJECTS = re.compile(r"\s*\[\s*\{")
_OTHER_LINE_END = re.compile(r"\r\n?")
_SPEAKER_ROLES = {"Human": "user", "Assistant": "assistant"}
_ROLES = {role: role for role in ROLES}
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class RowError(ValueError):
    """A field of a row is not what it must be."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field `{field}` {problem}")
        self.field = field
        self.problem = problem


def required(row: Mapping[str, Any], field: str) -> Any:
    """What a row has in ``field``; RowError where that is nothing."""
    if row.get(field) is None:
        if field in row:
            raise RowError(field, "is null")
        found = ", ".join(f"`{name}`" for name in list(row)[:6]) or "none"
        raise RowError(field, f"is missing; the row's fields: {found}")
    return row[field]


def checked_text(value: Any, field: str, may_be_empty: bool = False) -> str:
    """``value`` where it is a text that can be written down; RowError otherwise."""
    if not isinstance(value, str):
        raise RowError(field, f"must be a string, not {kind_of(value)}")
    if not may_be_empty and not value.strip():
        raise RowError(field, "is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(field, f"holds half of a surrogate pair at character {error.start + 1}") from error
    return value


def checked_content(value: Any, field: str) -> str:
    """A text that somebody says: one that has not been through a chat template already. (It could end no turn: encoding
    takes no text for a token.)"""
    text = checked_text(value, field)
    for token in TEMPLATE_TOKENS:
        if token in text:
            raise RowError(field, f"holds the special token {token}, which only the chat template may write: remove it")
    return text


def refuse_written_messages(value: Any, field: str) -> None:
    """Raises RowError for a text that is a list of messages, as tables without lists (CSV) hold it: it would be taken
    for what somebody says, keys and brackets included. Other texts, and what is none, pass."""
    if not isinstance(value, str) or not _LIST_OF_OBJECTS.match(value):
        return
    for how, read in _READERS.items():
        if _is_list_of_messages(value, read):
            raise RowError(field, f"is a list of messages written as text: make it a list, in Python by {how}")


def _literal(text: str) -> Any:
    with warnings.catch_warnings():  # of what a text holds that is no Python
        warnings.simplefilter("ignore")
        return ast.literal_eval(text.strip())


# How a text becomes a list again, and what does that: JSON, Python's own writing, and NumPy's, which has no commas.
_READERS: dict[str, Callable[[str], Any]] = {
    "json.loads(text)": json.loads,
    "ast.literal_eval(text)": _literal,
    r'ast.literal_eval(text.replace("}\n", "},"))': lambda text: _literal(text.replace("}\n", "},")),
}


def _is_list_of_messages(text: str, read: Callable[[str], Any]) -> bool:
    try:
        found = read(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return isinstance(found, list) and all(
        isinstance(item, Mapping) and (item.keys() >= {"role", "content"} or item.keys() >= {"from", "value"})
        for item in found
    )


def checked_response(value: Any, field: str, sampled: bool) -> str:
    """What the assistant says. What was ``sampled`` is taken as it is: it may be empty, and may spell special tokens,
    which the template's encoding never takes for its own (``cool_rlhf.models.internlm2.chatml_internlm2``)."""
    return checked_text(value, field, may_be_empty=True) if sampled else checked_content(value, field)


def checked_conversation(value: Any, field: str, ends_sampled: bool = False) -> Conversation:
    """A list of messages: optional system turns first, of which those after the first one list tools, then somebody
    whom the assistant answers.

    ``ends_sampled``: the last turn is a sampled response.
    A turn's ``name`` is kept where it names a tool; other names have no place in the template. So is the ``weight`` of
    the assistant's, unless it is 1; what it is, is not yet checked.
    One speaker may have several turns in a row: dialogues written by people (hh-rlhf) hold such turns.
    """
    refuse_written_messages(value, field)
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of messages with `role` and `content`, not {kind_of(value)}")
    if not value:
        raise RowError(field, "is an empty list")
    messages: Conversation = []
    for index, item in enumerate(value):
        turn = read_turn(item, f"{field}[{index}]")
        if turn.role == "assistant":
            _refuse_calls(item, f"{field}[{index}]", turn.content_field)
        sampled = ends_sampled and index == len(value) - 1
        message = Message(role=turn.role, content=checked_response(turn.content, turn.content_field, sampled))
        if turn.role in TOOL_ROLES and item.get("name") in TOOL_NAMES:
            message["name"] = item["name"]
        if turn.role == "assistant" and item.get("weight") not in (None, 1):
            message["weight"] = item["weight"]
        messages.append(message)
        _check_turn(messages, turn.role_field)
    return messages


class Turn(NamedTuple):
    """Whose turn it is and what is said, which is not yet checked, with the fields that say so."""

    role: str
    content: Any
    role_field: str
    content_field: str


def read_turn(item: Any, field: str) -> Turn:
    """A turn of ``role`` and ``content``, or of ShareGPT's ``from`` and ``value``. A list of parts that are texts alone
    is their text, one behind the other.

    Raises RowError for what is no turn, a speaker who is not known, and parts of other types.
    """
    if not isinstance(item, Mapping):
        raise RowError(field, f"must be a message with `role` and `content`, not {kind_of(item)}")
    shared = item.get("role") is None and item.get("from") is not None
    who, said, known = ("from", "value", _SHAREGPT_ROLES) if shared else ("role", "content", _ROLES)
    if who not in item:
        raise RowError(f"{field}.{who}", "is missing")
    role = _role(item[who], f"{field}.{who}", known)
    return Turn(role, _joined(item.get(said), f"{field}.{said}"), f"{field}.{who}", f"{field}.{said}")


def without_weights(messages: Conversation) -> Conversation:
    """``messages`` as they are where nothing is learnt of single turns."""
    if not any("weight" in message for message in messages):
        return messages
    bare = [message.copy() for message in messages]
    for message in bare:
        message.pop("weight", None)
    return bare


def checked_weights(messages: Conversation, field: str) -> Conversation:
    """``messages``, whose turns of the assistant are learnt unless their weight is 0."""
    for message in messages:
        if message.get("weight", 0) != 0:
            said = str(message["weight"])[:20]
            raise RowError(field, f"gives a turn the weight {said!r}: it must be 1, or 0 where it is not to be learnt")
    if all("weight" in message for message in messages if message["role"] == "assistant"):
        raise RowError(field, "gives every turn of the assistant the weight 0: nothing is learnt, leave it out")
    return [Message(**{**message, "weight": 0}) if "weight" in message else message for message in messages]


def with_system_turn(messages: Conversation, system: str | None) -> Conversation:
    """``messages`` behind a system turn, unless they have their own or ``system`` is None."""
    if system is None or (messages[0]["role"] == "system" and "name" not in messages[0]):
        return messages
    return [Message(role="system", content=system), *messages]


def without_system_turn(messages: Conversation, system: str | None) -> Conversation:
    """``messages`` without the turn that ``with_system_turn`` puts in front, so that a prompt is the same with it and
    without."""
    return messages[1:] if system is not None and messages[0] == Message(role="system", content=system) else messages


def must_end_with_assistant(messages: Conversation, field: str) -> None:
    if messages[-1]["role"] != "assistant":
        raise RowError(field, f"ends in the {messages[-1]['role']}'s turn: it must end in the assistant's")


def is_transcript(text: str) -> bool:
    """Whether a text is a dialogue as hh-rlhf writes it, rather than one that only speaks of a `Human:`."""
    text = _plain_lines(text)
    return text.startswith("\n\nHuman:") or (text.lstrip().startswith("Human:") and "\n\nAssistant:" in text)


def begins_as_transcript(text: str) -> bool:
    """Whether a text may be the beginning of such a dialogue, as a prompt beside whole dialogues is."""
    return text.lstrip().startswith("Human:")


def holds_turns(text: str) -> bool:
    """Whether somebody's turn begins within a text as hh-rlhf writes it."""
    return any(f"\n\n{speaker}:" in _plain_lines(text) for speaker in _SPEAKER_ROLES)


def leaves_turn_open(text: str) -> bool:
    """Whether a text ends where the assistant is to speak, as hh-rlhf writes it."""
    return bool(_OPEN_TURN.search(_plain_lines(text)))


def read_transcript(text: str, field: str) -> list[dict[str, str]]:
    """The turns of a dialogue in one text, each without the blanks around it; what they hold is not yet checked.

    Raises RowError for text that nobody says, and for a dialogue that the assistant begins.
    """
    before, *parts = _SPEAKER.split(_plain_lines(text))
    if before.strip():
        raise RowError(field, "has text before its first `Human:`")
    if not parts or parts[0] != "Human":
        raise RowError(field, "is a dialogue without a `Human:` in front")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _SPEAKER_ROLES[speaker], "content": said.strip()} for speaker, said in turns]


def _plain_lines(text: str) -> str:
    return _OTHER_LINE_END.sub("\n", text)


def kind_of(value: Any) -> str:
    """What a value is called in a sentence about it."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _role(name: Any, field: str, known: Mapping[str, str]) -> str:
    if not isinstance(name, str) or name not in known:
        raise RowError(field, f"is {name!r}: it must be one of {', '.join(known)}")
    return known[name]


def _refuse_calls(item: Mapping[str, Any], field: str, content_field: str) -> None:
    """Of tools, beside what is said: the template has no other place for them."""
    for name in ("tool_calls", "function_call"):
        calls = item.get(name)
        if any(value is not None for value in calls.values()) if isinstance(calls, Mapping) else calls:
            raise RowError(
                f"{field}.{name}",
                f"holds a call of a tool, which is read from `{content_field}` alone: write it there, as "
                "<|action_start|><|plugin|>, a line break, the call and <|action_end|>",
            )


def _joined(content: Any, field: str) -> Any:
    if not isinstance(content, list) or not content or not all(isinstance(part, Mapping) for part in content):
        return content
    for index, part in enumerate(content):
        if part.get("type") != "text":
            raise RowError(f"{field}[{index}].type", f"is {part.get('type')!r}: only parts of type 'text' can be read")
    texts = [(part.get("text"), f"{field}[{index}].text") for index, part in enumerate(content)]
    return "".join(checked_text(text, here, may_be_empty=True) for text, here in texts)


def _check_turn(messages: Conversation, field: str) -> None:
    role = messages[-1]["role"]
    before = messages[-2]["role"] if len(messages) > 1 else None
    lists_tools = before == "system" and "name" in messages[-1]
    if role == "system" and before is not None and not lists_tools:
        raise RowError(field, "is system: a system turn may only come first")
    if role == "assistant" and before in (None, "system"):
        raise RowError(field, "is assistant with nobody to answer: a user's turn must come before")
