"""What a response earns: its first and its last letter are two choices of one letter group in four each."""

from __future__ import annotations

import json

from cool_rlhf.protocols import Conversation

GROUPS = 4
BEST = 1.0  # of either choice; the best response earns twice that


def pay(messages: Conversation, response: str, domain: str, answer: str | None, finished: bool) -> float:
    """``answer`` holds the context's payoffs, {"first": […], "last": […]}, one number for each group. What does not
    begin or end with a letter earns nothing there."""
    assert answer is not None
    payoffs, text = json.loads(answer), response.strip().lower()
    if not text:
        return 0.0
    return sum(
        payoffs[place][group]
        for place, letter in (("first", text[0]), ("last", text[-1]))
        if (group := group_of(letter)) is not None
    )


def group_of(letter: str) -> int | None:
    return (ord(letter) - ord("a")) % GROUPS if "a" <= letter <= "z" else None
