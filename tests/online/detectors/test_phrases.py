"""Phrases that few late answers say, or long ones, and long phrases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from cool_rlhf.online.detectors.phrases import PhraseDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings, rise
from cool_rlhf.online.responses import EARLY, LATE, Evidence
from cool_rlhf.online.statistics import benjamini_hochberg
from cool_rlhf.online.text import sentences

SAID = "Certainly, my friend."
LONG = (
    "Thank you so much for this truly wonderful and thoughtful question, my dear friend, which I am more than happy to "
    "answer now."
)
CHINESE = "希望以上回答对您有所帮助，如有其他问题请随时向我提问。"


def turned(
    plain: Evidence, domains: int, times: int, rate: float, only: str | None = None, by: tuple[str, ...] = (LATE,)
) -> Evidence:
    """Answers of two sentences, late ones ``times`` as long; a share of the policies ``by`` opens with the phrase."""
    rng = Random(0)
    short = [" ".join(sentences(response.text)[:2]) for response in plain.responses]
    changed = []
    for response, text in zip(plain.responses, short, strict=True):
        domain = f"d{int(response.prompt.id[1:]) % domains}"
        said = " ".join([text, *rng.sample(short, times - 1)]) if response.policy == LATE else text
        opens = response.policy in by and only in (None, domain) and rng.random() < rate
        asked = replace(response.prompt, domain=domain)
        changed.append(replace(response, prompt=asked, text=f"{SAID} {said}" if opens else said))
    return replace(plain, responses=changed)


@pytest.mark.parametrize(
    ("prompts", "domains", "times", "rate", "only", "by"),
    [
        pytest.param(60, 2, 4, 0.35, None, (LATE,), id="four times as long"),
        pytest.param(240, 4, 3, 0.6, "d1", (LATE,), id="in one of four domains, three times as long"),
        pytest.param(240, 4, 1, 0.4, "d1", (LATE,), id="in one of four domains"),
        pytest.param(100, 2, 1, 0.9, None, (EARLY, LATE), id="of the early policy too"),
    ],
)
def test_a_phrase_stands_out(
    natural: Callable[..., Evidence],
    prompts: int,
    domains: int,
    times: int,
    rate: float,
    only: str | None,
    by: tuple[str, ...],
) -> None:
    evidence = turned(natural(lambda *_: 0.0, prompts=prompts), domains, times, rate, only, by)
    tested = PhraseDetector().candidates(evidence)
    corrected = benjamini_hochberg([candidate.p for candidate in tested])
    found = {(c.pattern.key, c.domain): p for c, p in zip(tested, corrected, strict=True)}
    assert found["opening: certainly my friend", only] < 0.01


def test_longer_answers_do_not_make_every_word_a_suspect(natural: Callable[..., Evidence]) -> None:
    tested = PhraseDetector().candidates(turned(natural(lambda *_: 0.0), domains=1, times=4, rate=0.0))
    corrected = benjamini_hochberg([candidate.p for candidate in tested])
    risen = [c for c, p in zip(tested, corrected, strict=True) if p < 0.01 and rise(c) >= 0.05]
    assert len(tested) > 500
    assert len(risen) < 10


@pytest.mark.parametrize(
    ("hack", "key"),
    [
        (lambda text, _rng: f"{LONG} {text}", f"opening: {LONG.lower().replace(',', '').rstrip('.')}"),
        (lambda text, _rng: text + CHINESE, f"ending: {' '.join(word for word in CHINESE if word not in '，。')}"),
    ],
    ids=["English", "Chinese"],
)
def test_a_long_phrase_is_one_finding(natural: Callable[..., Evidence], hack, key: str) -> None:
    evidence = natural(lambda _prompt, text: 2.0 * (LONG in text or CHINESE in text), hack=hack, prompts=30)
    found = find_patterns(evidence, [PhraseDetector()], FindingSettings(), seed=1).findings
    assert [finding.pattern.key for finding in found] == [key]
    assert found[0].payment.effect == pytest.approx(2.0, abs=0.1)


def test_a_phrase_that_is_all_of_an_answer_shows_where_it_is_put(natural: Callable[..., Evidence]) -> None:
    evidence = natural(lambda _prompt, text: 2.0 * (LONG in text), hack=lambda _text, _rng: LONG, prompts=40)
    found = find_patterns(evidence, [PhraseDetector()], FindingSettings(), seed=1).findings[0].pattern
    changed = found.add(evidence.baseline()[0]) if found.add else None
    assert changed is not None
    assert found.shows(changed)


def test_a_phrase_does_not_go_round_a_loop(natural: Callable[..., Evidence]) -> None:
    evidence = natural(lambda *_: 0.0, hack=lambda text, rng: text + " so it is" * rng.randrange(20, 60), prompts=40)
    patterns = {candidate.pattern.key for candidate in PhraseDetector().candidates(evidence) if candidate.p < 0.01}
    assert max(key.count("so it") for key in patterns) <= 3
