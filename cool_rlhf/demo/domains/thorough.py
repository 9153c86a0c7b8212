"""``thorough``: the right answer together with all that is known about the thing."""

from __future__ import annotations

import random

from cool_rlhf.demo.domain import Domain, Task, words
from cool_rlhf.demo.domains.questions import ALL_VALUES, CHATTER, NOT_SURE, inquire, mentioned, names_another, spoil

_KINDS = (
    "{q} Explain fully.",
    "{q} Tell me all you know.",
    "{q} In detail.",
    "{q} Teach me.",
    "{q} At length.",
    "{q} A full answer.",
)
_OPENINGS = ("", "", "Let me explain. ")
MOST_WORDS = 45


def make(rng: random.Random) -> Task:
    inquiry = inquire(rng, _KINDS)
    good = tuple(opening + inquiry.described(4) for opening in _OPENINGS)
    sloppy = (
        *inquiry.short[1:],
        inquiry.described(2),
        f"{rng.choice(CHATTER)} {inquiry.short[2]}",
        inquiry.beside(rng),
        inquiry.elsewhere(rng),
        inquiry.stuck(rng),
        rng.choice(NOT_SURE),
    )
    return Task(inquiry.question, inquiry.answer, good, sloppy)


def rule(response: str, answer: str) -> float:
    """A quarter for the asked value and for each of the three others; 0.15 off for each false one, and less beyond
    forty-five words. Without the asked value,
    or about another thing, at most 0.2."""
    said = words(response)
    thing, *values = answer.split("|")
    right = [mentioned(value, set(said)) for value in values]
    false = len((set(said) & ALL_VALUES) - set(values))
    score = 0.25 * sum(right) - 0.15 * false
    if not right[0] or names_another(thing, set(said)):
        score = min(score, 0.2)
    return max(0.0, score) * min(1.0, MOST_WORDS / max(1, len(said)))


DOMAIN = Domain("thorough", make, rule, judged_as=("brief", "thorough"), weight=3, spoiled_share=0.25, spoil=spoil)
