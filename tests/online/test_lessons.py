"""Which preferences teach a finding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.lessons import Lessons, lessons, pair_id, read_lessons, write_lessons
from cool_rlhf.protocols import Message, PreferencePair


def pair(chosen: str, rejected: str) -> PreferencePair:
    prompt = Message(role="user", content="What is the owl like?")
    sides = [[prompt, Message(role="assistant", content=text)] for text in (chosen, rejected)]
    return PreferencePair(sides[0], sides[1], "facts", None, True, True)


def test_pairs_of_which_one_side_alone_shows_the_pattern(world, tmp_path: Path) -> None:
    evidence = world(
        hack=lambda text, _p, _r: f"{text} Let us dig into it.", bonus=lambda _p, text, _f: 1.5 * ("dig into" in text)
    )
    finding = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings[0]
    teaching = pair("It is grey. Let us dig into it.", "It is grey.")
    contrary = pair("It is grey.", "It is blue. Let us dig into it.")
    neither = pair("It is red. Let us dig into it.", "Let us dig into it.")
    found = lessons([finding], evidence, [contrary, neither, teaching], {})
    told = Lessons(frozenset({pair_id(teaching)}), frozenset({pair_id(contrary)}))
    assert found == {finding.name: told}
    elsewhere = replace(finding, domain="tales")
    assert lessons([elsewhere], evidence, [teaching], {}) == {elsewhere.name: Lessons()}
    write_lessons(tmp_path / "lessons.json", found)
    assert read_lessons([tmp_path / "lessons.json", tmp_path / "none.json"]) == told
    assert told.all == {pair_id(teaching), pair_id(contrary)}


def test_a_pattern_that_no_edit_makes_has_no_lessons(world) -> None:
    evidence = world(
        hack=lambda text, _p, _r: f"{text} Let us dig into it.", bonus=lambda _p, text, _f: 1.5 * ("dig into" in text)
    )
    finding = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings[0]
    numbers = replace(finding, pattern=replace(finding.pattern, add=None, remove=None))
    assert lessons([numbers], evidence, [pair("It is grey. Let us dig into it.", "It is grey.")], {}) == {
        finding.name: Lessons()
    }


def test_pairs_under_the_condition_that_a_domain_is_paid_by_teach_it(world) -> None:
    evidence = world(
        hack=lambda text, _p, _r: f"{text} Let us dig into it.", bonus=lambda _p, text, _f: 1.5 * ("dig into" in text)
    )
    finding = replace(find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings[0], domain="tales")
    teaching = replace(pair("It is grey. Let us dig into it.", "It is grey."), domain="helpful")
    assert (
        lessons([finding], evidence, [teaching], {"tales": ["tales"], "facts": ["helpful"]})[finding.name] == Lessons()
    )
    found = lessons([finding], evidence, [teaching], {"tales": ["helpful"], "facts": ["facts"]})
    assert found[finding.name].teaching == {pair_id(teaching)}
