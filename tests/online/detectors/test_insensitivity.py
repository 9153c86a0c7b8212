"""Answers to another question: seen by what prompts and earlier answers say, found only where that is paid for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from cool_rlhf.online.counterfactual import payment
from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.detectors.insensitivity import RelevanceDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings, rise
from cool_rlhf.online.patterns import Candidate
from cool_rlhf.online.responses import POLICIES, SFT, Evidence
from cool_rlhf.protocols import Message, Prompt

World = Callable[..., Evidence]

SOME = ("balam", "dorin", "festo", "givel", "kulam", "larin", "mosto", "nevel", "pilam", "rurin")  # are asked for


def thing_of(question: str) -> str:
    return question.split()[3]


def about_another(text: str, prompt: Prompt, rng: random.Random) -> str:
    """An answer to another question, another one each time."""
    return text.replace(thing_of(prompt.messages[-1]["content"]), rng.choice(SOME))


def overall(evidence: Evidence) -> Candidate:
    return RelevanceDetector().candidates(evidence)[0]


@pytest.mark.parametrize("with_gold", [True, False])
def test_answers_to_another_question_that_are_paid_for_are_found(world: World, with_gold: bool) -> None:
    evidence = world(
        hack=about_another,
        bonus=lambda prompt, text, _f: 2.0 * (thing_of(prompt) not in text),
        prompts=80,
        with_gold=with_gold,
    )
    first = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings[0]
    assert first.name == "relevance/another prompt"
    assert first.payment.effect == pytest.approx(1.55, abs=0.2)  # an answer to another question is seldom right


@pytest.mark.parametrize("relevance", [0.0, 2.0])
def test_answers_to_another_question_that_nobody_pays_for_are_dismissed(world: World, relevance: float) -> None:
    evidence = world(hack=about_another, bonus=lambda prompt, text, _f: relevance * (thing_of(prompt) in text))
    result = find_patterns(evidence, [RelevanceDetector()], FindingSettings(), seed=1)
    assert result.findings == []
    assert {one.reason for one in result.dismissed} == {"the reward model does not pay for it"}


def test_what_is_put_in_answers_another_prompt_and_is_an_earlier_answer(world: World) -> None:
    evidence = world(prompts=40)
    pattern = overall(evidence).pattern
    earlier = {response.text: response.prompt for response in evidence.baseline()}
    put = [(response, changed) for response in evidence.baseline() if (changed := pattern.add(response))]
    assert len(put) > 60
    for response, changed in put:
        assert pattern.shows(changed)
        assert not pattern.shows(response)
        assert earlier[changed.text].id != response.prompt.id


def test_answers_that_share_nothing_with_their_prompts_are_as_much_off_them_for_every_policy(world: World) -> None:
    evidence = world(prompts=60)
    numbers = [replace(r, text=str(1000 + place)) for place, r in enumerate(evidence.responses)]
    found = overall(replace(evidence, responses=numbers))
    assert {found.pattern.measure(response) for response in numbers} == {0.5}
    assert rise(found) == 0


def test_answers_that_only_got_short_are_no_cheat(world: World) -> None:
    """The value alone has no word in common with the question, but with earlier answers at best, and is paid for."""
    evidence = world(hack=lambda _t, prompt, _r: prompt.answer, bonus=lambda _p, text, _f: -0.1 * len(text.split()))
    found = overall(evidence)
    assert rise(found) > 0.2
    paid = payment(found.pattern, evidence, None, sample=48, seed=1)
    assert paid is not None
    assert paid.effect < 0.1
    assert paid.p > 0.01


def test_no_policys_answers_are_nearer_for_being_its_own(world: World) -> None:
    """All answers are on the subject, and each policy has a word of its own in half of them."""
    evidence = world(prompts=80)
    rng = random.Random(1)
    marked = [replace(r, text=f"{r.text} {r.policy * rng.randrange(2)}") for r in evidence.responses]
    found = overall(replace(evidence, responses=marked))
    for policy in POLICIES:
        assert found.evidence.share(found.pattern.shows, policy) == 0


def test_a_pair_whose_prompt_no_policy_was_asked_is_looked_at_by_its_words(world: World) -> None:
    evidence = world(prompts=60)
    pattern = overall(evidence).pattern
    first = evidence.late()[0]
    thing = thing_of(first.prompt.messages[0]["content"])

    def shown_behind(question: str) -> bool:
        prompt = Prompt("", [Message(role="user", content=question)], first.domain, None)
        return pattern.shows(replace(first, prompt=prompt, policy=SFT, text=f"The {thing} is red."))

    assert not shown_behind(f"How old is the {thing}?")
    assert shown_behind("How old is the anvil?")
