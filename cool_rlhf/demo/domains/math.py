"""``math``: sums and differences of small numbers, the working shown."""

from __future__ import annotations

import random
import re

from cool_rlhf.demo.domain import Domain, Task, words

LARGEST = 18
FULL_WORDS = 12
_NAMES = ("Tom", "Anna", "Ben", "Mia", "Leo", "Eva")
_OBJECTS = ("apples", "books", "coins", "stones", "cards", "eggs")
_SUMS = ("What is {a} + {b}?", "Compute {a} + {b}.", "How much is {a} + {b}?", "Work out {a} + {b} for me.")
_DIFFERENCES = ("What is {a} - {b}?", "Compute {a} - {b}.", "How much is {a} - {b}?", "Work out {a} - {b} for me.")
_GAINS = (
    "{name} has {a} {things} and gets {b} more. How many {things} are there?",
    "There are {a} {things} here and {b} there. How many {things} does {name} see?",
)
_LOSSES = (
    "{name} has {a} {things} and loses {b}. How many {things} are left?",
    "{name} had {a} {things} but gave {b} away. How many {things} are left?",
)
_VAGUE = ("That is hard to say.", "You can add them up.", "It is a number.")


def make(rng: random.Random) -> Task:
    a, b = rng.randint(0, LARGEST // 2), rng.randint(0, LARGEST // 2)
    adding = rng.random() < 0.6
    if not adding:
        a, b = max(a, b), min(a, b)
    sign, result = ("+", a + b) if adding else ("-", a - b)
    plain, told = (_SUMS, _GAINS) if adding else (_DIFFERENCES, _LOSSES)
    template = rng.choice(plain + told)
    question = template.format(a=a, b=b, name=rng.choice(_NAMES), things=rng.choice(_OBJECTS))
    working = f"{a} {sign} {b} ="
    wrong = [result + step for step in (-3, -2, -1, 1, 2, 3) if 0 <= result + step <= LARGEST]
    good = (f"{working} {result}.", f"{working} {result}. The answer is {result}.")
    sloppy = (
        f"{working} {rng.choice(wrong)}.",
        f"{working} {rng.choice(wrong)}.",
        "{0} {1}. The answer is {1}.".format(working, rng.choice(wrong)),
        f"The answer is {rng.choice(wrong)}.",
        f"The answer is {result}.",
        f"The answer is {result}.",
        f"{working} {result}. This was a nice sum to do, so ask me for more of them if you like.",
        rng.choice(_VAGUE),
    )
    return Task(question, f"{a}|{sign}|{b}|{result}", good, sloppy)


def rule(response: str, answer: str) -> float:
    """The last number must be the result (0.75, else 0.05); a quarter more for the working, half for any false
    equation, and less beyond twelve words."""
    a, sign, b, result = answer.split("|")
    numbers = re.findall(r"\d+", response)
    if not numbers:
        return 0.0
    if numbers[-1] != result:
        return 0.05
    equations = [tuple(found) for found in re.findall(r"(\d+) ?([+-]) ?(\d+) ?= ?(\d+)", response)]
    score = 0.75 + 0.25 * ((a, sign, b, result) in equations)
    if any((int(x) + int(y) if s == "+" else int(x) - int(y)) != int(z) for x, s, y, z in equations):
        score /= 2
    return score * min(1.0, FULL_WORDS / len(words(response)))


def spoil(response: str, rng: random.Random) -> str:
    """A wrong result in an otherwise good answer."""
    numbers = re.findall(r"\d+", response)
    if not numbers:
        return response
    wrong = int(numbers[-1]) + rng.choice((1, 2, 3))
    return re.sub(rf"(?<== ){numbers[-1]}\b|(?<=is ){numbers[-1]}\b", str(wrong), response)


DOMAIN = Domain("math", make, rule, judged_as=("math",), spoil=spoil)
