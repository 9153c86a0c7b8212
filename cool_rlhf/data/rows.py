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
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from cool_rlhf.data.dialogues import behind_system, is_dialogue, read_chat, read_pair, read_prompt
from cool_rlhf.data.messages import RowError, checked_text, checked_weights, kind_of, required, without_weights
from cool_rlhf.protocols import Conversation

DEFAULT_DOMAIN = "default"
OVERALL = "overall"  # what tables by domain call all rows together: no domain may have this name
# What holds a chat → the fields of such rows.
_CHATS = {"messages": ("messages",), "conversations": ("conversations",), "completion": ("prompt", "completion")}

Row = dict[str, Any]


class SameResponseError(RowError):
    """A pair whose two responses are the same: it prefers nothing, but published sets hold a few."""

    def __init__(self, domain: str) -> None:
        super().__init__("rejected", "is the same as `chosen`: there is nothing to prefer")
        self.domain = domain


@dataclass(frozen=True)
class RowRules:
    """What a row may say beyond its own shape.

    ``domains``: the names that have a condition, which any but chats must have; None accepts any. ``domain``: of rows
    that name none.
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
    """``messages`` ending in the assistant's turn, ``domain``. Of several forms in one row the first of ``_CHATS`` is
    read."""
    field = next((name for name in _CHATS if row.get(name) is not None), None)
    if field == "completion":
        _refuse_unwanted(row.get("label"))
    _reject_misspelt(row, (*(_CHATS[field] if field else chain(*_CHATS.values())), "domain"))
    field = field or "messages"
    return {
        "messages": behind_system(checked_weights(read_chat(row, field), field), row),
        "domain": checked_domain(row, replace(rules, domains=None)),  # SFT takes no condition
    }


def _refuse_unwanted(label: Any) -> None:
    """Of a completion, as TRL's rows for KTO have it: tables may write its label as a number or a text."""
    said = label.casefold() if isinstance(label, str) else label
    if said not in (None, True, "true"):  # 1 equals True
        raise RowError(
            "label",
            f"is {str(label)[:20]!r} rather than true, and SFT would imitate the completion: leave such rows out, or "
            "rename the column where it is about something else",
        )


def parse_prompt(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``prompt`` as messages with the assistant to speak next, ``domain``, ``answer``, and a stable ``id``.

    A pair of a preference set, which may name no prompt, is read as one: what its responses answer is the prompt.
    """
    _reject_misspelt(row, ("prompt", "domain", "answer"))
    is_pair = row.get("prompt") is None and row.get("chosen") is not None and row.get("rejected") is not None
    messages = read_pair(row, rules.sampled)[0][:-1] if is_pair else read_prompt(required(row, "prompt"))
    messages = behind_system(without_weights(messages), row)
    problem = rules.full(messages)
    if problem:
        raise RowError("chosen" if is_pair else "prompt", problem)
    domain = checked_domain(row, rules)
    return {"id": prompt_id(messages, domain), "messages": messages, "domain": domain, "answer": _answer(row)}


def parse_pretrain(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``text``."""
    _reject_misspelt(row, ("text",))
    return {"text": checked_text(required(row, "text"), "text")}


def parse_preference(row: Mapping[str, Any], rules: RowRules) -> Row:
    """``chosen`` and ``rejected`` as whole dialogues that part only in the last turn, ``domain``, ``margin``, and
    whether each response was finished."""
    finished = ("chosen_finished", "rejected_finished")
    _reject_misspelt(row, ("prompt", "chosen", "rejected", "domain", "margin", *finished))
    chosen, rejected = (behind_system(side, row) for side in read_pair(row, rules.sampled))
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


def _reject_misspelt(row: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Other columns are welcome, but a slip in an optional field's name would go unnoticed. A pair of whole dialogues
    needs no ``prompt``, and a ``prompt_id`` beside it is no slip."""
    if all(is_dialogue(row.get(side)) for side in ("chosen", "rejected")):
        known = tuple(name for name in known if name != "prompt")
    for name in row:
        if name in known:
            continue
        match = difflib.get_close_matches(str(name), known, n=1, cutoff=0.8)
        if match and row.get(match[0]) is None:
            raise RowError(str(name), f"is not a field of these rows: is `{match[0]}` meant?")


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
    """The row's ``answer``, else the ``ground_truth`` that verl's rows hold, where that is a text or a number."""
    answer, field = row.get("answer"), "answer"
    if answer is None:
        answer, field = _ground_truth(row.get("reward_model")), "reward_model.ground_truth"
    if answer is None:
        return None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise RowError(field, f"must be a string or a number, not {kind_of(answer)}")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise RowError(field, f"is {answer}: it must be a finite number")
    return checked_text(str(answer), field)


def _ground_truth(judged_by: Any) -> str | int | float | None:
    """Of verl's ``reward_model``; None where there is none, and for others, which a rule of verl's own reads."""
    truth = judged_by.get("ground_truth") if isinstance(judged_by, Mapping) else None
    if isinstance(truth, bool) or not isinstance(truth, str | int | float):
        return None
    return None if isinstance(truth, str) and not truth.strip() else truth
