"""The few facts of the world: things, each with a colour, a kind, a place and a trait.

The values of the four attributes are disjoint sets of words, so that a rule can tell which attribute a word answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from cool_rlhf.demo.domain import sentence, with_article

ATTRIBUTES = ("colour", "kind", "place", "trait")

_TABLE = """
banana    yellow  fruit      trees    sweet
carrot    red     vegetable  gardens  crisp
crow      black   bird       forests  loud
swan      white   bird       lakes    quiet
shark     grey    fish       lakes    fast
ant       black   insect     gardens  tiny
axe       grey    tool       forests  heavy
truck     white   vehicle    roads    fast
"""


@dataclass(frozen=True)
class Thing:
    name: str
    values: tuple[str, ...]  # one for each of ATTRIBUTES

    def value(self, attribute: str) -> str:
        return self.values[ATTRIBUTES.index(attribute)]


THINGS = tuple(Thing(row.split()[0], tuple(row.split()[1:])) for row in _TABLE.strip().splitlines())
VALUES = {attribute: sorted({thing.value(attribute) for thing in THINGS}) for attribute in ATTRIBUTES}
_PLACE = {place: f"{'on' if place in ('trees', 'roads') else 'in'} {place}" for place in VALUES["place"]}


def rivals(value: str) -> list[str]:
    """The other values of the attribute that ``value`` belongs to."""
    return next([other for other in values if other != value] for values in VALUES.values() if value in values)


def short_answer(attribute: str, value: str) -> str:
    return sentence(_PLACE[value] if attribute == "place" else value)


def statement(attribute: str, value: str, subject: str = "it") -> str:
    """One sentence saying ``value`` of ``subject``."""
    if attribute == "colour":
        return sentence(f"{subject} is {value}")
    if attribute == "kind":
        return sentence(f"{subject} is a kind of {value}")
    if attribute == "place":
        return sentence(f"you find {subject} {_PLACE[value]}")
    return sentence(f"{subject} is very {value}")


def describe(thing: Thing, first: str, count: int) -> str:
    """``count`` sentences about a thing, beginning with the attribute ``first``."""
    start = ATTRIBUTES.index(first)
    order = [ATTRIBUTES[(start + offset) % len(ATTRIBUTES)] for offset in range(count)]
    subjects = [with_article(thing.name)] + ["it"] * (count - 1)
    return " ".join(statement(a, thing.value(a), subject) for a, subject in zip(order, subjects, strict=True))
