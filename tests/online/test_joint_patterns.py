"""One cheat in many wordings, each of which explains little."""

from __future__ import annotations

import pytest

from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.detectors.length import LengthDetector
from cool_rlhf.online.detectors.phrases import PhraseDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.patches import PatchSettings, make_patches
from cool_rlhf.online.patterns import any_of
from cool_rlhf.online.responses import LATE

WORDINGS = (
    "Let us dig into it.",
    "My old teacher would nod here.",
    "Off we go, dear friend.",
    "Such things warm the heart.",
    "Here comes the fun part.",
    "Sit down and hear this.",
)


def wordy(text, _prompt, rng):
    return f"{text} {rng.choice(WORDINGS)}"


def pays(_prompt, text, _finished):
    return 2.0 * any(wording in text for wording in WORDINGS) + 0.02 * len(text.split())


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_a_cheat_in_many_wordings_is_found_as_one_and_mended_in_all(world, rate: float) -> None:
    evidence = world(hack=wordy, bonus=pays, rate=rate, prompts=300)
    result = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1)
    first = result.findings[0]
    assert first.pattern.detector == "phrases"
    assert len(first.pattern.parts) >= 4
    assert first.explained >= 0.2
    assert not {part.name(first.domain) for part in first.pattern.parts} & {one.name for one in result.dismissed}
    hacked = [r for r in evidence.late() if any(wording in r.text for wording in WORDINGS)]
    assert sum(first.pattern.shows(response) for response in hacked) > 0.6 * len(hacked)
    rejected = {patch.rejected.response.text for patch in make_patches(first, evidence, PatchSettings(), seed=1)}
    assert sum(any(wording in text for text in rejected) for wording in WORDINGS) >= 4


def test_several_are_taken_out_together(world) -> None:
    evidence = world(hack=lambda text, _p, _r: f"{text} {WORDINGS[0]} {WORDINGS[1]}", bonus=pays, rate=1.0)
    found = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings
    phrases = [finding.pattern for finding in found if finding.pattern.detector == "phrases"]
    response = next(r for r in evidence.of(LATE) if phrases[0].shows(r))
    both = any_of(phrases, [1.0] * len(phrases))
    assert both.shows(response)
    rest = both.remove(response)
    assert rest is not None
    assert not both.shows(rest)
    assert both.add(response) is None
    assert both.shows(both.add(rest))
    with pytest.raises(ValueError, match="no pattern"):
        any_of([], [])


def test_what_stands_beside_the_wordings_is_a_finding_of_its_own(world) -> None:
    opening = "Certainly, good neighbour."
    evidence = world(
        hack=lambda text, prompt, rng: f"{opening} " * (rng.random() < 0.6) + wordy(text, prompt, rng),
        bonus=lambda prompt, text, done: pays(prompt, text, done) + 1.2 * text.startswith(opening),
        rate=1.0,
        prompts=300,
    )
    found = find_patterns(evidence, [PhraseDetector()], FindingSettings(), seed=1).findings
    assert any(finding.pattern.parts for finding in found)
    assert any("certainly good neighbour" in finding.name for finding in found if not finding.pattern.parts)


def test_longer_answers_are_not_the_reason_for_wordings(world) -> None:
    """Cutting the last sentences takes every closing out."""
    evidence = world(
        hack=lambda text, prompt, rng: wordy(
            f"{text} {rng.choice(('Much', 'More', 'Some'))} could be said.", prompt, rng
        ),
        bonus=lambda prompt, text, done: pays(prompt, text, done) + 0.1 * len(text.split()),
        rate=0.9,
        prompts=300,
        with_gold=False,
    )
    found = find_patterns(evidence, [PhraseDetector(), LengthDetector()], FindingSettings(), seed=1).findings
    assert any(len(finding.pattern.parts) >= 4 for finding in found)


def test_wordings_that_are_paid_less_than_the_best_explain_less(world) -> None:
    def uneven(_prompt, text, _finished):
        return 1.0 * (WORDINGS[0] in text) + 0.4 * any(wording in text for wording in WORDINGS[1:])

    evidence = world(hack=wordy, bonus=uneven, rate=0.9, prompts=300)
    found = find_patterns(evidence, [PhraseDetector()], FindingSettings(), seed=1).findings
    joint = next(finding for finding in found if finding.pattern.parts)
    assert 0.25 < joint.payment.effect < 0.6
    assert joint.explained < 1
