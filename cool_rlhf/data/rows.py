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
from itertools import takewhile
from typing import Any

import regex

from cool_rlhf.data.messages import (
    RowError,
    begins_as_transcript,
    checked_content,
    checked_conversation,
    checked_response,
    checked_text,
    holds_turns,
    is_transcript,
    kind_of,
    leaves_turn_open,
    must_end_with_assistant,
    read_transcript,
)
from cool_rlhf.protocols import Conversation, Message

DEFAULT_DOMAIN = "default"
OVERALL = "overall"  # what tables by domain call all rows together: no domain may have this name
_OTHER_NAMES_OF_PROMPT = ("question", "query", "instruction", "input", "post", "context")

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

Row = dict[str, Any]


class SameResponseError(RowError):
    """A pair whose two responses are the same: it prefers nothing, but published sets hold a few."""

    def __init__(self, domain: str) -> None:
        super().__init__("rejected", "is the same as `chosen`: there is nothing to prefer")
        self.domain = domain


@dataclass(frozen=True)
class RowRules:
    """What a row may say beyond its own shape.

    ``domains``: the names that have a condition; None accepts any. ``domain``: of rows that name none.
    ``sampled``: the rows hold sampled responses, which are taken as they are (:func:`checked_response`).
    ``full``: what is wrong with a prompt that leaves no room for a response; None for others.
    """

    domains: frozenset[str] | None = None
    domain: str = DEFAULT_DOMAIN
    sampled: bool = False
    full: Callable[[Conversation], str | None] = lambda messages: None


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that ``name`` was most likely meant to be, None where nothing is near."""
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def parse_chat(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``messages`` ending in the assistant's turn, ``domain``."""
    _reject_misspelt(row, ("messages", "domain"))
    messages = checked_conversation(_required(row, "messages"), "messages")
    must_end_with_assistant(messages, "messages")
    return {"messages": messages, "domain": checked_domain(row, rules)}


def parse_prompt(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``prompt`` as messages with the assistant to speak next, ``domain``, ``answer``, and a stable ``id``.

    A pair of a preference set, which may name no prompt, is read as one: what its responses answer is the prompt.
    """
    _reject_misspelt(row, ("prompt", "domain", "answer"))
    is_pair = row.get("prompt") is None and row.get("chosen") is not None and row.get("rejected") is not None
    messages = _dialogues(row, rules)[0][:-1] if is_pair else _prompt(_required(row, "prompt"))
    problem = rules.full(messages)
    if problem:
        raise RowError("chosen" if is_pair else "prompt", problem)
    domain = checked_domain(row, rules)
    return {"id": prompt_id(messages, domain), "messages": messages, "domain": domain, "answer": _answer(row)}


def parse_pretrain(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``text``."""
    _reject_misspelt(row, ("text",))
    return {"text": checked_text(_required(row, "text"), "text")}


def parse_preference(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``chosen`` and ``rejected`` as whole dialogues that part only in the last turn, ``domain``, ``margin``, and
    whether each response was finished."""
    finished = ("chosen_finished", "rejected_finished")
    _reject_misspelt(row, ("prompt", "chosen", "rejected", "domain", "margin", *finished))
    chosen, rejected = _dialogues(row, rules)
    parsed = {name: _flag(row, name) for name in finished}
    domain, margin = checked_domain(row, rules), _margin(row)
    if chosen == rejected and parsed["chosen_finished"] == parsed["rejected_finished"]:
        raise SameResponseError(domain)
    subset = row["subset"] if isinstance(row.get("subset"), str) else None  # another column, but where a benchmark's
    by = row.get("labelled_by")  # likewise, but where this project wrote the row
    return {
        "chosen": chosen,
        "rejected": rejected,
        "domain": domain,
        "margin": margin,
        **parsed,
        "subset": subset,
        "labelled_by": [
            checked_text(name, "labelled_by", may_be_empty=True)
            for name in (by if isinstance(by, list) else [])
            if isinstance(name, str)
        ],
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
    """Other columns are welcome, but a slip in an optional field's name would go unnoticed. A pair of whole dialogues
    needs no ``prompt``, and a ``prompt_id`` beside it is no slip."""
    if all(_is_dialogue(row.get(side)) for side in ("chosen", "rejected")):
        known = tuple(name for name in known if name != "prompt")
    for name in row:
        if name in known:
            continue
        match = difflib.get_close_matches(str(name), known, n=1, cutoff=0.8)
        if match and row.get(match[0]) is None:
            raise RowError(str(name), f"is not a field of these rows: is `{match[0]}` meant?")


def _is_dialogue(side: Any) -> bool:
    """Whether a side begins with what is asked, rather than being the response alone."""
    if isinstance(side, str):
        return is_transcript(side)
    return isinstance(side, list) and bool(side) and _turn(side[0])[0] in ("system", "user")


def _dialogues(row: Mapping[str, Any], rules: RowRules) -> tuple[Conversation, Conversation]:
    """``chosen`` and ``rejected`` of a pair as whole dialogues that part only in the last turn.

    ``prompt`` may be left out where both hold the whole dialogue: what they share is the prompt then.
    """
    sides = {name: _required(row, name) for name in ("chosen", "rejected")}
    if row.get("prompt") is None:
        prompt, sides = _shared_prompt(row, sides)
    else:
        asked = row["prompt"]
        if _is_transcript(asked):
            sides = {name: _continued(asked, side, name) for name, side in sides.items()}
        elif isinstance(asked, str) and begins_as_transcript(asked) and any(map(_is_transcript, sides.values())):
            asked = read_transcript(asked, "prompt")
        prompt = _prompt(asked)
    chosen, rejected = (_response(side, name, prompt, rules) for name, side in sides.items())
    if chosen[:-1] != rejected[:-1]:
        raise RowError("rejected", "does not continue the same dialogue as `chosen`: only the last turn may differ")
    return chosen, rejected


def _prompt(value: Any, field: str = "prompt") -> Conversation:
    if _is_transcript(value):
        value = read_transcript(value, field)
        if value[-1] == {"role": "assistant", "content": ""}:  # `Assistant:` and nothing behind: whose turn it is
            del value[-1]
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


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and is_transcript(value)


def _continued(prompt: str, side: Any, field: str) -> Any:
    """A side that goes on from a transcript: as a whole dialogue where it holds turns, else as one response."""
    if not isinstance(side, str) or is_transcript(side):
        return side
    return read_transcript(prompt + side, field) if holds_turns(side) else side.strip()


def _shared_prompt(row: Mapping[str, Any], sides: dict[str, Any]) -> tuple[Conversation | None, dict[str, Any]]:
    """The prompt of a row that names none, and what is left of the two sides. None where they are whole dialogues.

    Of two plain texts (TRL's implicit prompt) it is the words that both begin with.
    """
    texts = {name: side for name, side in sides.items() if isinstance(side, str)}
    if any(map(holds_turns, texts.values())):
        return None, {**sides, **{name: read_transcript(text, name) for name, text in texts.items()}}
    if not texts:
        return None, sides
    other = next((name for name in _OTHER_NAMES_OF_PROMPT if isinstance(row.get(name), str)), None)
    if other:
        raise RowError("prompt", f"is missing: is `{other}` meant? Rename it")
    shared = _shared_words(*texts.values()) if len(texts) == len(sides) else ""
    if not shared.strip():
        raise RowError("prompt", "is missing, and `chosen` and `rejected` have no first words in common: name it")
    return _prompt(shared.strip(), "chosen"), {name: text[len(shared) :].strip() for name, text in texts.items()}


def _shared_words(first: str, second: str) -> str:
    """What both begin with, but for half a word at its end."""
    characters = zip(_CHARACTER.finditer(first), _CHARACTER.finditer(second), strict=False)
    alike = takewhile(lambda both: both[0][0] == both[1][0], characters)
    return _HALF_WORD.sub("", "".join(one[0] for one, _ in alike))


def _response(value: Any, field: str, prompt: Conversation | None, rules: RowRules) -> Conversation:
    """The whole dialogue up to and with this response."""
    if _is_transcript(value):
        value = read_transcript(value, field)
    if isinstance(value, str):
        assert prompt is not None  # _shared_prompt has refused it
        return [*prompt, Message(role="assistant", content=checked_response(value, field, rules.sampled))]
    _text_or_messages(value, field)
    if prompt is not None and not _holds_prompt(value, prompt, field):
        value = [*prompt, *value]
        messages = _conversation_of_response(value, field, len(prompt), rules)
    else:
        messages = _conversation_of_response(value, field, 0, rules)
    must_end_with_assistant(messages, field)
    return messages


def _text_or_messages(value: Any, field: str) -> Any:
    if not isinstance(value, str | list):
        raise RowError(field, f"must be a string or a list of messages, not {kind_of(value)}")
    return value


def _conversation_of_response(value: Any, field: str, offset: int, rules: RowRules) -> Conversation:
    """Check ``value``; positions in messages count from the response's own first turn."""
    if offset and len(value) == offset:
        raise RowError(field, "is an empty list")
    try:
        return checked_conversation(value, field, ends_sampled=rules.sampled)
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
    if not isinstance(item, Mapping):
        return None, None
    content = item.get("content")
    return item.get("role"), " ".join(content.split()) if isinstance(content, str) else None


def checked_domain(row: Mapping[str, Any], rules: RowRules, field: str = "domain") -> str:
    """The row's ``domain``, by default that of ``rules``; ``field`` is what errors call it."""
    if row.get("domain") is None:
        return rules.domain
    domain = checked_text(row["domain"], field)
    if domain == OVERALL:
        raise RowError(field, f"is {OVERALL!r}, which evaluations call all rows together: give it another name")
    if rules.domains is None or domain in rules.domains or domain == DEFAULT_DOMAIN:
        return domain
    near = nearest(domain, rules.domains)
    hint = f"is `{near}` meant?" if near else f"known are {', '.join(sorted(rules.domains))}"
    raise RowError(field, f"is {domain!r}, which has no condition: {hint}")


def _margin(row: Mapping[str, Any]) -> float | None:
    margin = row.get("margin")
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        raise RowError("margin", f"must be a number, not {kind_of(margin)}")
    try:
        value = float(margin)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise RowError("margin", f"is {str(margin)[:20]}: it must be a finite number")
    return value


def _flag(row: Mapping[str, Any], field: str) -> bool:
    value = row.get(field)
    if value is not None and not isinstance(value, bool):
        raise RowError(field, f"must be true or false, not {kind_of(value)}")
    return True if value is None else value


def _answer(row: Mapping[str, Any]) -> str | None:
    answer = row.get("answer")
    if answer is None:
        return None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise RowError("answer", f"must be a string or a number, not {kind_of(answer)}")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise RowError("answer", f"is {answer}: it must be a finite number")
    return checked_text(str(answer), "answer")
