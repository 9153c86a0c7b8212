"""Whether a response has the form that was asked for."""

from __future__ import annotations

import json
from typing import Any

from cool_rlhf.protocols import Conversation


def json_object(messages: Conversation, response: str, domain: str, answer: str | None, finished: bool) -> float:
    """1 if the whole response is one JSON object (RFC 8259) in which no key stands twice, else 0; blanks around it are
    welcome, a code fence is not."""
    try:
        value: Any = json.loads(response, parse_constant=_refuse, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        return 0.0
    return float(isinstance(value, dict))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found
