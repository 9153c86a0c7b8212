"""``brief``: the right answer in as few words as possible."""

from __future__ import annotations

import random

from cool_rlhf.demo.domain import Domain, Task, words
from cool_rlhf.demo.domains.questions import CHATTER, NOT_SURE, inquire, mentioned, names_another, spoil

_KINDS = ("{q} Quick!", "{q} Briefly.", "{q} In a word.", "{q} Keep it short.", "{q} Be quick.", "{q} A short answer.")
FULL_WORDS, MOST_WORDS = 6, 15


def make(rng: random.Random) -> Task:
    inquiry = inquire(rng, _KINDS)
    sloppy = (
        inquiry.described(2),
        inquiry.described(3),
        inquiry.described(4),
        f"{rng.choice(CHATTER)} {inquiry.short[2]}",
        inquiry.beside(rng),
        inquiry.elsewhere(rng),
        inquiry.stuck(rng),
        rng.choice(NOT_SURE),
    )
    return Task(inquiry.question, inquiry.answer, inquiry.short, sloppy)


def rule(response: str, answer: str) -> float:
    """The asked value must be said, of the asked thing; then 1 up to six words, falling linearly to 0.25 at fifteen."""
    said = words(response)
    thing, value, *_ = answer.split("|")
    if not mentioned(value, set(said)) or names_another(thing, set(said)):
        return 0.1 if 0 < len(said) <= FULL_WORDS else 0.0
    brevity = (MOST_WORDS - len(said)) / (MOST_WORDS - FULL_WORDS)
    return 0.25 + 0.75 * min(1.0, max(0.0, brevity))


DOMAIN = Domain("brief", make, rule, judged_as=("brief", "thorough"), weight=3, spoiled_share=0.25, spoil=spoil)
