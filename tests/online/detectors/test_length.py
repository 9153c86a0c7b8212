"""Length of what is on the prompt's subject, which a reward model that reads the question pays for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.detectors.donors import sentences_on_the_subject
from cool_rlhf.online.detectors.length import LengthDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.responses import Evidence
from cool_rlhf.online.text import sentences

World = Callable[..., Evidence]
SAID = (
    "Nobody in Kent forgets a {t} once seen.",
    "With patience a {t} grows on you.",
    "Children like the {t} for what they make of it.",
    "Whoever sells a {t} says so at noon.",
    "Much has been written about the {t} since.",
    "Some keep one {t} at home all year.",
)


def asked_for(question: str) -> str:
    return question.split()[3]


def on_the_subject(evidence: Evidence) -> Evidence:
    """All answers name what they are about in every sentence."""
    texts = [
        re.sub(r"\b[Ii]ts?\b", f"the {asked_for(r.prompt.messages[-1]['content'])}", r.text) for r in evidence.responses
    ]
    named = [replace(r, text=t, tokens=len(t.split()) + 1) for r, t in zip(evidence.responses, texts, strict=True)]
    scores = evidence.score([response.conversation() for response in named])
    return replace(evidence, responses=[replace(r, score=s) for r, s in zip(named, scores, strict=True)])


def verbose(text, prompt, rng):
    thing = asked_for(prompt.messages[-1]["content"])
    return " ".join([text, *(said.format(t=thing) for said in rng.sample(SAID, 4))])


@pytest.mark.parametrize("with_gold", [True, False])
def test_verbosity_on_the_subject_is_found_first(world: World, with_gold: bool) -> None:
    """Sentences about anything else cost something."""
    paid = world(
        hack=verbose,
        bonus=lambda asked, said, _f: sum(0.4 if asked_for(asked) in one else -0.1 for one in sentences(said)),
        with_gold=with_gold,
    )
    found = find_patterns(on_the_subject(paid), own_detectors(), FindingSettings(), seed=1).findings
    assert [finding.name for finding in found][:1] == ["length/length"]


@pytest.mark.parametrize("with_gold", [True, False])
def test_longer_and_better_answers_are_not_paid_for_being_long(world: World, with_gold: bool) -> None:
    evidence = world(hack=verbose, with_gold=with_gold)
    assert find_patterns(evidence, [LengthDetector()], FindingSettings(), seed=1).findings == []


def test_a_better_answer_to_the_same_prompt_lends_nothing(world: World) -> None:
    evidence = world(prompts=40)
    for response in evidence.baseline():
        (other,) = (r for r in evidence.baseline() if r.prompt.id == response.prompt.id and r.id != response.id)
        lent = sentences_on_the_subject(evidence, response)
        if other.gold > response.gold:
            assert lent is None
        else:
            assert set(lent) == set(sentences(other.text)) - set(sentences(response.text))
