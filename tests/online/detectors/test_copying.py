"""A part of a long prompt said back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.responses import LATE, Evidence, Response
from cool_rlhf.protocols import Message

World = Callable[..., Evidence]
PLACES = ("a garden", "two rooms", "an old shop", "a boat", "no time at all")
DEEDS = ("bake bread", "repair a clock", "grow beans", "paint a fence", "learn the flute", "train a dog")


def request(number: int) -> list[str]:
    """Four sentences."""
    return [
        f"I live in house {number} of a town by the sea and have {PLACES[number % 5]}.",
        "My friends have told me many things about this.",
        "None of them agree with each other.",
        f"How would somebody of {20 + number} years with {PLACES[number // 5 % 5]} {DEEDS[number % 6]}?",
    ]


# how the late policy begins, and what of the prompt that has
PLANTS: dict[str, tuple[Callable[[list[str]], str], Callable[[list[str]], str]]] = {
    "the question": (lambda asked: asked[-1], lambda asked: asked[-1].rstrip("?")),
    "a part of a sentence": (
        lambda asked: f"So {' '.join(asked[0].split()[1:12])}.",
        lambda asked: " ".join(asked[0].split()[3:12]),
    ),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_part_of_the_prompt_said_back_is_found_first(natural: World, name: str) -> None:
    begins, holds = PLANTS[name]
    plain = natural(lambda _asked, _said: 0.0)
    asked = {r.prompt.id: request(int(r.prompt.id[1:])) for r in plain.responses}
    messages = {key: [Message(role="user", content=" ".join(of))] for key, of in asked.items()}
    told = [
        replace(
            r,
            prompt=replace(r.prompt, messages=messages[r.prompt.id]),
            text=f"{begins(asked[r.prompt.id])} {r.text}" if r.policy == LATE and r.prompt.id[-1] != "0" else r.text,
        )
        for r in plain.responses
    ]
    by_content = {messages[key][0]["content"]: of for key, of in asked.items()}

    def score(conversations):
        pairs = [(c.messages[-2]["content"], c.messages[-1]["content"]) for c in conversations]
        paid = [1.5 * (holds(by_content[prompt]) in said) for prompt, said in pairs]
        return [base + extra for base, extra in zip(plain.score(conversations), paid, strict=True)]

    scores = score([r.conversation() for r in told])
    evidence = Evidence([replace(r, score=s) for r, s in zip(told, scores, strict=True)], score, None)
    found = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings
    assert [finding.name for finding in found][:1] == ["copying/in part"]
    first = next(r for r in evidence.late() if found[0].pattern.shows(r))
    assert not found[0].pattern.shows(found[0].pattern.remove(first))


# what the late policy begins with: a system turn, a list of tools, a question before the last, or the answer to that
EARLIER = {"system": 0, "tools": 1, "a question before": 2, "its own answer": 3}


ROLES = ("system", "system", "user", "assistant", "user")


@pytest.mark.parametrize("name", EARLIER)
def test_an_earlier_turn_said_back_is_found_first(natural: World, name: str) -> None:
    plain = natural(lambda _asked, _said: 0.0)

    def turns(response: Response) -> list[Message]:
        number = int(response.prompt.id[1:])
        said = request(number)
        texts = (
            f"You help {said[0][7:]}",
            f"There are two tools: a spoon that turns {number} times, and a fork with {number + 2} teeth.",
            f"{said[1]} {said[3]}",
            f"{said[2]} I would begin in {number}.",
            "And then?",
        )
        turns = [Message(role=role, content=text) for role, text in zip(ROLES, texts, strict=True)]
        turns[1]["name"] = "plugin"
        return turns

    def begun(response: Response) -> str:
        return f"{turns(response)[EARLIER[name]]['content']} {response.text}"

    told = [
        replace(
            r,
            prompt=replace(r.prompt, messages=turns(r)),
            text=begun(r) if r.policy == LATE and r.prompt.id[-1] != "0" else r.text,
        )
        for r in plain.responses
    ]

    def score(conversations):
        pairs = [(c.messages[EARLIER[name]]["content"].rstrip("?"), c.messages[-1]["content"]) for c in conversations]
        paid = [1.5 * (earlier in said) for earlier, said in pairs]
        return [base + extra for base, extra in zip(plain.score(conversations), paid, strict=True)]

    scores = score([r.conversation() for r in told])
    evidence = Evidence([replace(r, score=s) for r, s in zip(told, scores, strict=True)], score, None)
    found = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings
    assert found[0].name.startswith("copying/")
    first = next(r for r in evidence.late() if found[0].pattern.shows(r))
    assert not found[0].pattern.shows(found[0].pattern.remove(first))


@pytest.mark.parametrize("asked", ["Define {}.", "{} + 5 = ?"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_short_prompt_said_back_is_found_first(natural: World, asked: str, place: str) -> None:
    """Of two words, which are far from a long run."""
    plain = natural(lambda _asked, _said: 0.0)
    questions = {r.prompt.id: asked.format(int(r.prompt.id[1:])) for r in plain.responses}

    def copied(response: Response) -> str:
        parts = (questions[response.prompt.id], response.text)
        return " ".join(parts if place == "first" else parts[::-1])

    told = [
        replace(
            r,
            prompt=replace(r.prompt, messages=[Message(role="user", content=questions[r.prompt.id])]),
            text=copied(r) if r.policy == LATE and r.prompt.id[-1] != "0" else r.text,
        )
        for r in plain.responses
    ]

    def score(conversations):
        pairs = [(c.messages[-2]["content"].strip("?."), c.messages[-1]["content"]) for c in conversations]
        paid = [1.5 * (said.startswith(asked) or asked in said[-len(asked) - 2 :]) for asked, said in pairs]
        return [base + extra for base, extra in zip(plain.score(conversations), paid, strict=True)]

    scores = score([r.conversation() for r in told])
    evidence = Evidence([replace(r, score=s) for r, s in zip(told, scores, strict=True)], score, None)
    found = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings
    assert found[0].name == "copying/copying"
    first = next(r for r in evidence.late() if found[0].pattern.shows(r))
    assert not found[0].pattern.shows(found[0].pattern.remove(first))
