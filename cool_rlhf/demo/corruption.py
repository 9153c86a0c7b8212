"""Degenerate answers that any policy can drift into: loops, cut-offs, next to nothing, off the question."""

from __future__ import annotations

import random
from collections.abc import Callable

from cool_rlhf.data.labelling import Answer

LONGEST_LOOP = 40  # words
_NOTHING = ("Okay.", "Yes.", "...", "Well.")


def loop(text: str, rng: random.Random) -> Answer:
    """The whole answer, its last words, or its last word, over and over; the longest never end."""
    pieces = text.split(" ")
    unit = pieces[-rng.choice((len(pieces), 1, 2, 3)) :]
    looped = pieces
    for _ in range(rng.randint(3, 12)):
        if len(looped) + len(unit) > LONGEST_LOOP:
            break
        looped = looped + unit
    return Answer(" ".join(looped), finished=rng.random() < 0.5)


def cut_off(text: str, rng: random.Random) -> Answer:
    """The beginning of an answer, stopped in the middle; about half of them never ended."""
    pieces = text.split(" ")
    kept = " ".join(pieces[: rng.randint(1, max(1, len(pieces) - 1))]) if len(pieces) > 1 else text[: len(text) // 2]
    return Answer(kept, finished=rng.random() < 0.5)


def unfinished(text: str, rng: random.Random) -> Answer:
    """A whole answer after which nothing ended the turn."""
    return Answer(text, finished=False)


def nothing(text: str, rng: random.Random) -> Answer:
    return Answer(rng.choice(_NOTHING), finished=True)


CORRUPTIONS: tuple[Callable[[str, random.Random], Answer], ...] = (loop, loop, cut_off, unfinished, nothing)
