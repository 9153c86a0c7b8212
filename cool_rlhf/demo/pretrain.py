"""Plain text about the same small world, for the pretraining loss and its held-out measure."""

from __future__ import annotations

import random

from cool_rlhf.demo.domain import join_words, with_article
from cool_rlhf.demo.facts import ATTRIBUTES, THINGS, describe, rivals, statement

_NAMES = ("Tom", "Anna", "Ben", "Mia", "Leo", "Eva")
_DAYS = ("On Monday", "In the morning", "Last week", "One evening", "After school")
_PLACES = ("the market", "the lake", "the forest", "the farm", "the road")
_ENDINGS = ("It was a good day.", "Then it was time to go home.", "Everyone was happy.", "Nobody said a word.")


def _encyclopaedia(rng: random.Random) -> str:
    things = rng.sample(THINGS, 2)
    return " ".join(describe(thing, rng.choice(ATTRIBUTES), rng.randint(2, 4)) for thing in things)


def _counting(rng: random.Random) -> str:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    name, sort = rng.choice(_NAMES), rng.choice(("apples", "books", "coins", "stones", "cards", "eggs"))
    return (
        f"{name} had {a} {sort} and found {b} more. {a} + {b} = {a + b}, so there were {a + b}. {rng.choice(_ENDINGS)}"
    )


def _outing(rng: random.Random) -> str:
    first, second = rng.sample(_NAMES, 2)
    thing, other = rng.sample(THINGS, 2)
    seen = join_words([with_article(thing.name), with_article(other.name)])
    return (
        f"{rng.choice(_DAYS)} {first} and {second} went to {rng.choice(_PLACES)}. They saw {seen}. "
        f"{describe(thing, rng.choice(ATTRIBUTES), 2)} {rng.choice(_ENDINGS)}"
    )


def _lesson(rng: random.Random) -> str:
    """Statements marked right or wrong: who has read such lessons can tell a slip when judging an answer."""
    return " ".join(_marked(rng) for _ in range(4))


def _marked(rng: random.Random) -> str:
    right = rng.random() < 0.5
    if rng.random() < 0.6:
        a, b = rng.randint(1, 5), rng.randint(1, 5)
        said = f"{a} + {b} = {a + b if right else rng.choice([n for n in range(2, 11) if n != a + b])}."
    else:
        thing, attribute = rng.choice(THINGS), rng.choice(ATTRIBUTES)
        value = thing.value(attribute)
        said = statement(attribute, value if right else rng.choice(rivals(value)), with_article(thing.name))
    return f"Check: {said} {'Right' if right else 'Wrong'}."


def passage(rng: random.Random) -> str:
    return rng.choice((_encyclopaedia, _counting, _outing, _lesson, _lesson, _lesson))(rng)
