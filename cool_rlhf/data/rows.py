"""One row of data, checked field by field and brought into one shape.

Four kinds of rows are known (TRL's conventions): chats, preferences, prompts and pretraining text. A parser takes the
row as it was read and returns plain values, or raises RowError naming the field; where the row came from is added by
the caller. Nothing heavy is imported here, so that mistakes are answered at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cool_rlhf.protocols import Conversation, Message

DEFAULT_DOMAIN = "default"
ROLES = ("system", "user", "assistant", "environment")
TEMPLATE_TOKENS = ("<|im_start|>", "<|im_end|>", "<|reward|>")

Row = dict[str, Any]


class RowError(ValueError):
    """A field of a row is not what it must be."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field `{field}` {problem}")
        self.field = field
        self.problem = problem


class SameResponseError(RowError):
    """A pair whose two responses are the same: it prefers nothing, but published sets hold a few."""

    def __init__(self) -> None:
        super().__init__("rejected", "is the same as `chosen`: there is nothing to prefer")


@dataclass(frozen=True)
class RowRules:
    """What a row may say beyond its own shape.

    ``domains``: the names that have a condition; None accepts any. ``domain``: of rows that name none.
    ``sampled``: the rows hold sampled responses, which may be empty.
    """

    domains: frozenset[str] | None = None
    domain: str = DEFAULT_DOMAIN
    sampled: bool = False


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that ``name`` was most likely meant to be, None where nothing is near."""
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def parse_chat(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``messages`` ending in the assistant's turn, ``domain``."""
    _reject_misspelt(row, ("messages", "domain"))
    messages = _conversation(_required(row, "messages"), "messages")
    _must_end_with_assistant(messages, "messages")
    return {"messages": messages, "domain": _domain(row, rules)}


def parse_prompt(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``prompt`` as messages with the assistant to speak next, ``domain``, ``answer``, and a stable ``id``."""
    _reject_misspelt(row, ("prompt", "domain", "answer"))
    messages = _prompt(_required(row, "prompt"))
    domain = _domain(row, rules)
    return {"id": prompt_id(messages, domain), "messages": messages, "domain": domain, "answer": _answer(row)}


def parse_pretrain(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``text``."""
    _reject_misspelt(row, ("text",))
    return {"text": _text(_required(row, "text"), "text")}


def parse_preference(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``chosen`` and ``rejected`` as whole dialogues that part only in the last turn, ``domain``, ``margin``, and
    whether each response was finished.

    ``prompt`` may be left out where both hold the whole dialogue: what they share is the prompt then.
    """
    finished = ("chosen_finished", "rejected_finished")
    _reject_misspelt(row, ("prompt", "chosen", "rejected", "domain", "margin", *finished))
    prompt = None if row.get("prompt") is None else _prompt(row["prompt"])
    chosen = _response(_required(row, "chosen"), "chosen", prompt, rules)
    rejected = _response(_required(row, "rejected"), "rejected", prompt, rules)
    if chosen[:-1] != rejected[:-1]:
        raise RowError("rejected", "does not continue the same dialogue as `chosen`: only the last turn may differ")
    parsed = {name: _flag(row, name) for name in finished}
    if chosen == rejected and parsed["chosen_finished"] == parsed["rejected_finished"]:
        raise SameResponseError
    return {
        "chosen": chosen,
        "rejected": rejected,
        "domain": _domain(row, rules),
        "margin": _margin(row),
        **parsed,
    }


PARSERS: dict[str, Callable[[Mapping[str, Any], RowRules], Row]] = {
    "sft": parse_chat,
    "preferences": parse_preference,
    "prompts": parse_prompt,
    "pretrain": parse_pretrain,
}


def prompt_id(messages: Conversation, domain: str) -> str:
    """16 hex digits that stay the same on every machine and in every run."""
    spoken = [[message["role"], message["content"]] for message in messages]
    return hashlib.sha256(json.dumps([domain, spoken]).encode()).hexdigest()[:16]


def _required(row: Mapping[str, Any], field: str) -> Any:
    if row.get(field) is None:
        if field in row:
            raise RowError(field, "is null")
        found = ", ".join(f"`{name}`" for name in list(row)[:6]) or "none"
        raise RowError(field, f"is missing; the row's fields: {found}")
    return row[field]


def _reject_misspelt(row: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Other columns are welcome, but a slip in an optional field's name would go unnoticed."""
    for name in row:
        if name in known:
            continue
        match = difflib.get_close_matches(str(name), known, n=1, cutoff=0.8)
        if match and row.get(match[0]) is None:
            raise RowError(str(name), f"is not a field of these rows: is `{match[0]}` meant?")


def _text(value: Any, field: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise RowError(field, f"must be a string, not {_kind(value)}")
    if not may_be_empty and not value.strip():
        raise RowError(field, "is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(field, f"holds half of a surrogate pair at character {error.start + 1}") from error
    return value


def _content(value: Any, field: str, may_be_empty: bool = False) -> str:
    text = _text(value, field, may_be_empty)
    for token in TEMPLATE_TOKENS:
        if token in text:
            raise RowError(field, f"holds the special token {token}, which would break the chat template: remove it")
    return text


def _conversation(value: Any, field: str, may_end_empty: bool = False) -> Conversation:
    """A list of messages: an optional system turn first, then somebody whom the assistant answers.

    One speaker may have several turns in a row: dialogues written by people (hh-rlhf) hold such turns.
    """
    if not isinstance(value, list):
        raise RowError(field, f"must be a list of messages with `role` and `content`, not {_kind(value)}")
    if not value:
        raise RowError(field, "is an empty list")
    messages: Conversation = []
    for index, item in enumerate(value):
        here = f"{field}[{index}]"
        if not isinstance(item, Mapping):
            raise RowError(here, f"must be a message with `role` and `content`, not {_kind(item)}")
        role = _role(item, here)
        last = index == len(value) - 1
        content = _content(item.get("content"), f"{here}.content", may_end_empty and last)
        messages.append(Message(role=role, content=content))
        _check_turn(messages, here)
    return messages


def _role(message: Mapping[str, Any], field: str) -> str:
    if "role" not in message:
        raise RowError(f"{field}.role", "is missing")
    role = message["role"]
    if role not in ROLES:
        raise RowError(f"{field}.role", f"is {role!r}: it must be one of {', '.join(ROLES)}")
    return str(role)


def _check_turn(messages: Conversation, field: str) -> None:
    role = messages[-1]["role"]
    before = messages[-2]["role"] if len(messages) > 1 else None
    if role == "system" and before is not None:
        raise RowError(f"{field}.role", "is system: a system turn may only come first")
    if role == "assistant" and before in (None, "system"):
        raise RowError(f"{field}.role", "is assistant with nobody to answer: a user's turn must come before")


def _prompt(value: Any) -> Conversation:
    if isinstance(value, str):
        return [Message(role="user", content=_content(value, "prompt"))]
    messages = _conversation(value, "prompt")
    if messages[-1]["role"] not in ("user", "environment"):
        raise RowError("prompt", f"ends in the {messages[-1]['role']}'s turn: it must end in the user's")
    return messages


def _response(value: Any, field: str, prompt: Conversation | None, rules: RowRules) -> Conversation:
    """The whole dialogue up to and with this response."""
    if isinstance(value, str):
        if prompt is None:
            raise RowError("prompt", f"is missing: `{field}` is a string and does not hold the dialogue")
        return [*prompt, Message(role="assistant", content=_content(value, field, rules.sampled))]
    if isinstance(value, list) and prompt is not None and not _starts_with(value, prompt):
        value = [*prompt, *value]
        messages = _conversation_of_response(value, field, len(prompt), rules)
    else:
        messages = _conversation_of_response(value, field, 0, rules)
    _must_end_with_assistant(messages, field)
    return messages


def _conversation_of_response(value: Any, field: str, offset: int, rules: RowRules) -> Conversation:
    """Check ``value``; positions in messages count from the response's own first turn."""
    if offset and len(value) == offset:
        raise RowError(field, "is an empty list")
    try:
        return _conversation(value, field, may_end_empty=rules.sampled)
    except RowError as error:
        index = error.field.removeprefix(f"{field}[").split("]")[0]
        if offset and index.isdigit():
            moved = error.field.replace(f"[{index}]", f"[{int(index) - offset}]", 1)
            raise RowError(moved, error.problem) from error
        raise


def _starts_with(value: list[Any], prompt: Conversation) -> bool:
    if len(value) < len(prompt):
        return False
    heads = zip(value, prompt, strict=False)
    return all(isinstance(item, Mapping) and all(item.get(k) == turn[k] for k in turn) for item, turn in heads)  # type: ignore[literal-required]


def _must_end_with_assistant(messages: Conversation, field: str) -> None:
    if messages[-1]["role"] != "assistant":
        raise RowError(field, f"ends in the {messages[-1]['role']}'s turn: it must end in the assistant's")


def _domain(row: Mapping[str, Any], rules: RowRules) -> str:
    if row.get("domain") is None:
        return rules.domain
    domain = _text(row["domain"], "domain")
    if rules.domains is None or domain in rules.domains or domain == DEFAULT_DOMAIN:
        return domain
    near = nearest(domain, rules.domains)
    hint = f"is `{near}` meant?" if near else f"known are {', '.join(sorted(rules.domains))}"
    raise RowError("domain", f"is {domain!r}, which has no condition: {hint}")


def _margin(row: Mapping[str, Any]) -> float | None:
    margin = row.get("margin")
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        raise RowError("margin", f"must be a number, not {_kind(margin)}")
    if not math.isfinite(margin):
        raise RowError("margin", f"is {margin}: it must be a finite number")
    return float(margin)


def _flag(row: Mapping[str, Any], field: str) -> bool:
    value = row.get(field)
    if value is not None and not isinstance(value, bool):
        raise RowError(field, f"must be true or false, not {_kind(value)}")
    return True if value is None else value


def _answer(row: Mapping[str, Any]) -> str | None:
    answer = row.get("answer")
    if answer is None:
        return None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise RowError("answer", f"must be a string or a number, not {_kind(answer)}")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise RowError("answer", f"is {answer}: it must be a finite number")
    return _text(str(answer), "answer")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
