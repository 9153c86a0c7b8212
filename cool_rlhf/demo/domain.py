"""What a domain of the embedded world supplies, and the few text helpers that the rules share."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A question with answers of known quality."""

    question: str  # the user's turn
    answer: str  # what the domain's rule needs to judge a response; fields joined by "|"
    good: tuple[str, ...]  # each scores at least 0.9
    sloppy: tuple[str, ...]  # fluent answers with the domain's typical faults, each below every good one


@dataclass(frozen=True)
class Domain:
    """One kind of request and the exact rule for what a good response to it is."""

    name: str
    make: Callable[[random.Random], Task]
    rule: Callable[[str, str], float]  # (response, answer) -> [0, 1], for a finished response
    judged_as: tuple[str, ...]  # the domains under which responses to its questions are compared
    weight: int  # share of the training rows: a harder skill needs more examples
    spoiled_share: float  # of the generator's pairs: a good answer against itself, spoiled; high where facts decide
    spoil: Callable[[str, random.Random], str]  # a good answer made wrong in one place, its form kept


def words(text: str) -> list[str]:
    """Lower-case words and numbers, punctuation dropped."""
    return re.findall(r"[a-z0-9']+", text.lower())


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def sentence(text: str) -> str:
    """``text`` with a capital and a full stop."""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def join_words(items: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
