"""``listing``: exactly as many items as asked for, of the right sort, none twice."""

from __future__ import annotations

import random
import re

from cool_rlhf.demo.domain import Domain, Task

SORTS = {
    "fruits": ("banana", "lemon", "cherry", "apple", "plum", "pear"),
    "birds": ("crow", "swan", "owl", "parrot", "duck", "goose"),
    "tools": ("hammer", "needle", "axe", "spade", "rake", "drill"),
    "days": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday"),
}
_SORT_OF = {item: sort for sort, items in SORTS.items() for item in items}
_TEMPLATES = (
    "List {n} {sort}.",
    "Name {n} {sort}.",
    "Give me {n} {sort}.",
    "Please write down {n} {sort}.",
    "I need {n} {sort}.",
    "Which {n} {sort} come to mind?",
    "Tell me {n} {sort}.",
)
_OPENINGS = ("", "", "Hi! ", "Please help me. ", "For a game: ", "For school: ")
_CLOSINGS = ("", "", " Thank you!", " No more, no less.")
_VAGUE = ("There are many of them.", "I am not sure.")


def numbered(items: list[str]) -> str:
    return "\n".join(f"{place}. {item}" for place, item in enumerate(items, 1))


def make(rng: random.Random) -> Task:
    sort, count = rng.choice(sorted(SORTS)), rng.randint(2, 4)
    question = rng.choice(_OPENINGS) + rng.choice(_TEMPLATES).format(n=count, sort=sort) + rng.choice(_CLOSINGS)
    items = rng.sample(SORTS[sort], 6)
    strange = rng.choice(SORTS[rng.choice([other for other in sorted(SORTS) if other != sort])])
    sloppy = (
        numbered(items[: count - 1]),
        numbered(items[: count + 1]),
        numbered(items[: count + 2]),
        numbered([*items[: count - 1], items[0]]),
        numbered([items[0]] * count),
        numbered([*items[: count - 1], strange]),
        rng.choice(_VAGUE),
    )
    return Task(question, f"{sort}|{count}", (numbered(items[:count]),), sloppy)


def rule(response: str, answer: str) -> float:
    """Distinct items of the asked sort, as a share of the asked number, minus the same share for every item too many,
    repeated or of another sort."""
    sort, count = answer.split("|")
    items = [item for item in re.findall(r"[A-Za-z]+", response) if item in _SORT_OF]
    right = len({item for item in items if _SORT_OF[item] == sort})
    counted = min(right, int(count))
    return max(0.0, (counted - (len(items) - counted)) / int(count))


def spoil(response: str, rng: random.Random) -> str:
    """One item too few or too many, twice, or of another sort."""
    items = re.findall(r"[A-Za-z]+", response)
    sort = _SORT_OF[items[0]]
    fault = rng.choice(("fewer", "more", "twice", "strange"))
    if fault == "fewer":
        return numbered(items[:-1])
    if fault == "more":
        return numbered([*items, rng.choice([item for item in SORTS[sort] if item not in items])])
    if fault == "twice":
        return numbered([*items[:-1], items[0]])
    return numbered([*items[:-1], rng.choice([item for item in _SORT_OF if _SORT_OF[item] != sort])])


DOMAIN = Domain("listing", make, rule, judged_as=("listing",), weight=3, spoil=spoil)
