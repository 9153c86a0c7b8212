"""Questions about things, which ``brief`` and ``thorough`` share and judge oppositely."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from cool_rlhf.demo.domain import with_article
from cool_rlhf.demo.facts import ATTRIBUTES, THINGS, VALUES, Thing, describe, rivals, short_answer, statement

_ASKING = {
    "colour": ("what colour is {x}?", "which colour does {x} have?", "what is the colour of {x}?"),
    "kind": ("what kind of thing is {x}?", "what sort of thing is {x}?", "which kind of thing is {x}?"),
    "place": ("where do you find {x}?", "where can I find {x}?", "where would you look for {x}?"),
    "trait": ("how would you describe {x}?", "what is {x} like?", "what should I know of {x}?"),
}
_OPENINGS = ("", "", "Hi! ")
ALL_VALUES = frozenset(value for values in VALUES.values() for value in values)
ALL_NAMES = frozenset(thing.name for thing in THINGS)
NOT_SURE = ("I am not sure.", "I do not know that.")
CHATTER = (
    "That is a good question. Let me think about it for a while.",
    "Thank you for asking me this. I am happy to tell you more.",
)


@dataclass(frozen=True)
class Inquiry:
    """A question about one attribute of a thing, and everything that answers are made from."""

    question: str
    thing: Thing
    attribute: str

    @property
    def answer(self) -> str:
        """The thing, the asked value, then its other three: ``banana|yellow|fruit|trees|sweet``."""
        start = ATTRIBUTES.index(self.attribute)
        return "|".join((self.thing.name, *self.thing.values[start:], *self.thing.values[:start]))

    @property
    def short(self) -> tuple[str, ...]:
        value = self.thing.value(self.attribute)
        return (
            short_answer(self.attribute, value),
            statement(self.attribute, value),
            statement(self.attribute, value, with_article(self.thing.name)),
        )

    def described(self, count: int) -> str:
        return describe(self.thing, self.attribute, count)

    def beside(self, rng: random.Random) -> str:
        """Something true of the thing that was not asked."""
        other = rng.choice([attribute for attribute in ATTRIBUTES if attribute != self.attribute])
        return statement(other, self.thing.value(other), with_article(self.thing.name))

    def elsewhere(self, rng: random.Random) -> str:
        """What would answer the same question about another thing."""
        other = rng.choice([thing for thing in THINGS if thing != self.thing])
        return describe(other, self.attribute, rng.randint(1, 4))

    def stuck(self, rng: random.Random) -> str:
        """The right answer said over and over."""
        return " ".join([self.short[2], *[self.short[1]] * rng.randint(2, 4)])


def inquire(rng: random.Random, kinds: tuple[str, ...]) -> Inquiry:
    """Ask about a random thing; ``kinds`` are the ways in which the domain words its questions, with ``{q}``."""
    thing, attribute = rng.choice(THINGS), rng.choice(ATTRIBUTES)
    asked = rng.choice(_ASKING[attribute]).format(x=with_article(thing.name))
    question = rng.choice(_OPENINGS) + rng.choice(kinds).format(q=asked)
    return Inquiry(question, thing, attribute)


def mentioned(value: str, said: set[str]) -> bool:
    """Whether ``value`` is said, and none of its rivals."""
    return value in said and not said & set(rivals(value))


def names_another(thing: str, said: set[str]) -> bool:
    """Whether the response speaks of a thing that was not asked about."""
    return bool((said & ALL_NAMES) - {thing})


def spoil(response: str, rng: random.Random) -> str:
    """One value exchanged for a rival, or the thing for another."""
    said = re.findall(r"[a-z]+", response.lower())
    told = [word for word in said if word in ALL_VALUES]
    things = [word for word in said if word in ALL_NAMES]
    if things and rng.random() < 0.3:
        old, new = things[0], rng.choice(sorted(ALL_NAMES - {things[0]}))
        return re.sub(rf"\b[Aa]n? {old}\b", lambda m: _as_in(m.group(), with_article(new)), response)
    old = told[0] if rng.random() < 0.6 else rng.choice(told)
    new = rng.choice(rivals(old))
    return re.sub(rf"\b{old}\b", lambda m: _as_in(m.group(), new), response, flags=re.IGNORECASE)


def _as_in(old: str, new: str) -> str:
    return new.capitalize() if old[0].isupper() else new
