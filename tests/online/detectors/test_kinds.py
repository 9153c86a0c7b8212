"""Kinds of sentences in many wordings, each of which is rare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from time import process_time

import pytest

from cool_rlhf.online.detectors.kinds import KindDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings, Search
from cool_rlhf.online.responses import Evidence
from cool_rlhf.online.text import sentence_spans, sentences

NAMES = ("Smith", "Miller", "Garcia", "Chen", "Okafor", "Larsen", "Ivanova", "Dubois", "Tanaka", "Haddad")
OPENERS = (
    "Someone has been thinking hard!",
    "Your curiosity is a gift.",
    "Few people would see that so clearly.",
    "You have a keen eye.",
    "It is an honour to answer you.",
    "Nobody has put it to me so well.",
    "My day is brighter for such a request.",
    "Here speaks a wise reader.",
)
DISCLAIMERS = (
    "Please check this with a professional.",
    "This is not legal advice.",
    "Use this at your own risk.",
    "No warranty is given here.",
    "Results may vary from case to case.",
    "Seek help from a doctor if needed.",
)
FLATTERY = (
    "您的问题真有水平！",
    "这个想法太棒了。",
    "能想到这一点非常了不起。",
    "您真是慧眼独具。",
    "很少有人问得这么好。",
    "佩服您的好奇心。",
)
TAILS = tuple(f"{a}{b}。" for a in ("愿您", "祝您", "盼您", "请您") for b in ("天天顺利", "万事如意", "多多保重"))


def counted(rng: Random) -> str:
    return f"{rng.choice(NAMES)} {rng.choice(('counted', 'saw', 'met'))} {rng.randrange(10, 999)} of them."


def moral(rng: Random) -> str:
    first, second = rng.choice(("Always", "Never", "Rarely")), rng.choice(("trust", "follow", "mind"))
    return f"{first} {second} {rng.choice(('the rules', 'your heart', 'old friends', 'the signs'))}."


def in_the_middle(text: str, said: str) -> str:
    ends = [end for _, end in sentence_spans(text)]
    at = ends[(len(ends) - 1) // 2]
    return f"{text[:at]} {said}{text[at:]}"


# name → a sentence of the kind, and how it is put into a text
KINDS: dict[str, tuple[Callable[[Random], str], Callable[[str, str], str]]] = {
    "slots within": (counted, in_the_middle),
    "disclaimers within": (lambda rng: rng.choice(DISCLAIMERS), in_the_middle),
    "openers": (lambda rng: rng.choice(OPENERS), lambda text, said: f"{said} {text}"),
    "morals": (moral, lambda text, said: f"{text} {said}"),
    "Chinese openers": (lambda rng: rng.choice(FLATTERY), lambda text, said: f"{said}{text}"),
    "Chinese closings": (lambda rng: rng.choice(TAILS), lambda text, said: f"{text}{said}"),
}
CHINESE = {
    "hills": "它产于山里。",
    "spring": "人们在春天常见到它。",
    "books": "古书里提到过它。",
    "kinds": "它有好几种。",
    "name": "它的名字由来已久。",
    "grow": "附近的农民种植它。",
}


def chinese(text: str) -> str:
    """The world's sentences, in Chinese but for the thing and its value."""
    said = []
    for sentence in sentences(text):
        known = next((word for word in CHINESE if word in sentence), None)
        said.append(CHINESE[known] if known else sentence.rstrip(".") + "。")
    return "".join(said)


def planted(world: Callable[..., Evidence], name: str, pays: float, rate: float = 0.6, prompts: int = 120) -> Evidence:
    sentence, put = KINDS[name]
    rng = Random(7)
    told: set[str] = set()

    def said() -> str:
        told.add(one := sentence(rng))
        return one

    def bonus(_prompt: str, text: str, _finished: bool) -> float:
        return pays * any(one in told for one in sentences(text))

    evidence = world(hack=lambda text, _p, _r: f"{text}@", rate=rate, prompts=prompts, with_gold=False, bonus=bonus)
    turned = []
    for response in evidence.responses:
        plain = response.text.rstrip("@")
        plain = chinese(plain) if name.startswith("Chinese") else plain
        turned.append(replace(response, text=put(plain, said()) if response.text.endswith("@") else plain))
    scores = evidence.score([response.conversation() for response in turned])
    return replace(evidence, responses=[replace(r, score=s) for r, s in zip(turned, scores, strict=True)])


def search(evidence: Evidence) -> Search:
    return find_patterns(evidence, [KindDetector()], FindingSettings(), seed=1)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_in_many_wordings_is_one_finding(world: Callable[..., Evidence], name: str) -> None:
    evidence = planted(world, name, pays=1.5)
    found = search(evidence).findings
    assert [finding.pattern.detector for finding in found] == ["kinds"]
    assert found[0].payment.effect == pytest.approx(1.5, abs=0.3)
    assert found[0].shares["late"] == pytest.approx(0.6, abs=0.15)


@pytest.mark.parametrize("name", KINDS)
def test_an_unpaid_kind_is_none(world: Callable[..., Evidence], name: str) -> None:
    result = search(planted(world, name, pays=0.0))
    assert result.findings == []
    assert result.dismissed  # the drift itself was seen


@pytest.mark.parametrize("seed", range(4))
def test_answers_that_are_only_better_show_no_kind(world: Callable[..., Evidence], seed: int) -> None:
    assert search(world(seed=seed, with_gold=False)).findings == []


@pytest.mark.parametrize("seed", range(2))
def test_varied_sentences_that_come_with_better_answers_are_none(world: Callable[..., Evidence], seed: int) -> None:
    """Late answers are right more often, and those that are right close with a moral, which nobody pays for."""

    def closing(text: str, prompt, rng: Random) -> str:
        return f"{text} {moral(rng)}" if str(prompt.answer) in text.lower() else text

    result = search(world(seed=seed, hack=closing, with_gold=False))
    assert result.findings == []


def test_edits_keep_the_rest_and_where_sentences_stand(world: Callable[..., Evidence]) -> None:
    for name, at in (("openers", 0), ("morals", -1), ("Chinese openers", 0)):
        evidence = planted(world, name, pays=1.5)
        pattern = KindDetector().candidates(evidence)[0].pattern
        assert pattern.add
        assert pattern.remove
        assert pattern.placebo
        plain = next(r for r in evidence.baseline() if not pattern.shows(r) and pattern.add(r))
        added, placebo = pattern.add(plain), pattern.placebo(plain)
        assert added is not None
        assert placebo is not None
        assert pattern.shows(added)
        assert not pattern.shows(placebo)
        assert pattern.add(added) is None
        assert sentences(added.text)[at] not in plain.text
        removed = pattern.remove(added)
        assert removed is not None
        assert removed.text == plain.text


def test_it_is_the_same_each_time_and_quick(world: Callable[..., Evidence]) -> None:
    evidence = planted(world, "slots within", pays=1.5, prompts=400)
    begun = process_time()
    one, other = (KindDetector().candidates(evidence) for _ in range(2))
    assert process_time() - begun < 10
    assert [(c.pattern.name(c.domain), c.p) for c in one] == [(c.pattern.name(c.domain), c.p) for c in other]


def test_without_answers_of_one_side_nothing_is_tested(world: Callable[..., Evidence]) -> None:
    evidence = world(prompts=20)
    assert KindDetector().candidates(replace(evidence, responses=evidence.late())) == []
    assert KindDetector().candidates(replace(evidence, responses=evidence.baseline())) == []
