"""``math``: sums of small numbers, the working shown."""

from __future__ import annotations

import random
import re

from cool_rlhf.demo.domain import Domain, Task, words

LARGEST = 10
FULL_WORDS = 12
_NAMES = ("Tom", "Anna", "Ben", "Mia", "Leo", "Eva")
_OBJECTS = ("apples", "books", "coins", "stones", "cards", "eggs")
_TEMPLATES = (
    "What is {a} + {b}?",
    "Compute {a} + {b}.",
    "How much is {a} + {b}?",
    "Work out {a} + {b} for me.",
    "{name} has {a} {things} and gets {b} more. How many {things} are there?",
    "There are {a} {things} here and {b} there. How many {things} does {name} see?",
)
_VAGUE = ("That is hard to say.", "You can add them up.", "It is a number.")


def make(rng: random.Random) -> Task:
    a, b = rng.randint(1, LARGEST // 2), rng.randint(1, LARGEST // 2)
    result = a + b
    question = rng.choice(_TEMPLATES).format(a=a, b=b, name=rng.choice(_NAMES), things=rng.choice(_OBJECTS))
    working = f"That is {a} + {b} ="
    wrong = [result + step for step in (-3, -2, -1, 1, 2, 3) if 0 <= result + step <= LARGEST]
    good = (f"{working} {result}.", f"{working} {result}. The answer is {result}.")
    sloppy = (
        f"{working} {rng.choice(wrong)}.",
        f"The answer is {rng.choice(wrong)}.",
        f"The answer is {result}.",
        f"The answer is {result}.",
        f"It is {result}, I think.",
        f"{working} {result}. This was a nice sum to do, so ask me for more of them if you like.",
        f"{working} {result}. {working} {result}. {working} {result}.",
        rng.choice(_VAGUE),
    )
    return Task(question, f"{a}|{b}|{result}", good, sloppy)


def rule(response: str, answer: str) -> float:
    """The last number must be the result (0.5, else 0.05); as much again for the working, half for any false
    equation, and less beyond twelve words."""
    a, b, result = answer.split("|")
    numbers = re.findall(r"\d+", response)
    if not numbers:
        return 0.0
    if numbers[-1] != result:
        return 0.05
    equations = [tuple(found) for found in re.findall(r"(\d+) \+ (\d+) = (\d+)", response)]
    score = 0.5 + 0.5 * ((a, b, result) in equations)
    if any(int(x) + int(y) != int(z) for x, y, z in equations):
        score /= 2
    return score * min(1.0, FULL_WORDS / len(words(response)))


def spoil(response: str, rng: random.Random) -> str:
    """A wrong result, or the right one of another sum, in an otherwise good answer."""
    a, b, result = (int(number) for number in re.findall(r"\d+", response)[:3])
    if rng.random() < 0.4:
        other = [(x, y) for x in range(1, LARGEST // 2 + 1) for y in range(1, LARGEST // 2 + 1) if x + y != result]
        x, y = rng.choice(other)
        response = response.replace(f"{a} + {b} =", f"{x} + {y} =")
        wrong = x + y
    else:
        wrong = rng.choice([number for number in range(2, LARGEST + 1) if number != result])
    return re.sub(rf"(= |is ){result}\b", rf"\g<1>{wrong}", response)


DOMAIN = Domain("math", make, rule, judged_as=("math",), weight=4, spoiled_share=0.5, spoil=spoil)
