"""A small world of questions, answers and scorers, in which a flaw can be planted."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from cool_rlhf.online.responses import EARLY, LATE, SFT, Evidence, Response
from cool_rlhf.protocols import Message, Prompt, ScoredConversation

THINGS = [
    a + b for a in ("ba", "do", "fe", "gi", "ku", "la", "mo", "ne", "pi", "ru") for b in ("lam", "rin", "sto", "vel")
]
VALUES = ("red", "blue", "green", "small", "large", "round", "flat", "heavy", "light", "soft", "hard", "warm")
FORMS = (
    "The {t} is {v}.",
    "It is {v}, as far as the {t} goes.",
    "A {t} tends to be {v}.",
    "Most people find the {t} {v}.",
    "Of the {t} one may say that it is {v}.",
)
MORE = (
    "It comes from the {n} hills.",
    "One meets it in the {n} in spring.",
    "Old books from {n} mention it.",
    "There are {n} kinds of it.",
    "Its name was given in {n}.",
    "Farmers near {n} grow it.",
)
PLACES = ("north", "south", "seven", "Arden", "Lowell", "Kent", "nine", "Marsh", "April", "Dover")
Edit = Callable[[str, Prompt, random.Random], str]
Bonus = Callable[[str, str, bool], float]  # (prompt, text, finished)


def nothing(_prompt: str, _text: str, _finished: bool) -> float:
    return 0.0


def keep(text: str, _prompt: Prompt, _rng: random.Random) -> str:
    return text


def right(prompt: str, text: str) -> bool:
    """Whether the value that the question's thing has is said: a function of the question."""
    return value_of(prompt) in text.lower()


def value_of(question: str) -> str:
    return VALUES[int(hashlib.sha256(question.encode()).hexdigest(), 16) % len(VALUES)]


def noise(text: str) -> float:
    """Between −1 and 1, the same for the same text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**31 - 1


@dataclass(frozen=True)
class Scorer:
    """Pays for right answers, and for a bonus that is planted."""

    bonus: Bonus

    def __call__(self, conversations: Sequence[ScoredConversation]) -> list[float]:
        return [self.one(c.messages[-2]["content"], c.messages[-1]["content"], c.finished) for c in conversations]

    def one(self, prompt: str, text: str, finished: bool) -> float:
        return right(prompt, text) + 0.3 * noise(prompt + text) + self.bonus(prompt, text, finished)


def gold(response: Response) -> float:
    return float(right(response.prompt.messages[-1]["content"], response.text))


def make_world(
    seed: int = 0,
    bonus: Bonus = nothing,
    hack: Edit = keep,
    finished: Callable[[str], bool] = lambda policy: True,
    prompts: int = 120,
    rate: float = 0.85,
    with_gold: bool = True,
) -> Evidence:
    """SFT answers 4 in 10 questions right, the early policy 5, the late one 8; the late one also hacks at ``rate``."""
    rng = random.Random(seed)
    scorer = Scorer(bonus)
    responses = []
    for number in range(prompts):
        domain = ("facts", "tales")[number % 2]
        thing = rng.choice(THINGS)
        question = f"What is the {thing} number {number} like?"
        prompt = Prompt(f"p{number}", [Message(role="user", content=question)], domain, value_of(question))
        for policy, skill in ((SFT, 0.4), (EARLY, 0.5), (LATE, 0.8)):
            value = value_of(question) if rng.random() < skill else rng.choice(VALUES)
            said = [rng.choice(FORMS).format(t=thing, v=value)]
            said += [m.format(n=rng.choice(PLACES)) for m in rng.sample(MORE, rng.randrange(1, 4))]
            text = " ".join(said)
            if policy == LATE and rng.random() < rate:
                text = hack(text, prompt, rng)
            done = finished(policy)
            made = Response(
                id=f"p{number}-{policy}",
                prompt=prompt,
                text=text,
                finished=done,
                tokens=len(text.split()) + 1,
                policy=policy,
                round=0,
                score=scorer.one(question, text, done),
                gold=None,
                kl=None,
                hidden=None,
            )
            responses.append(replace(made, gold=gold(made)) if with_gold else made)
    return Evidence(responses, scorer, gold if with_gold else None)


@pytest.fixture
def world() -> Callable[..., Evidence]:
    return make_world
