"""Marks that are taken out whole, and those that layout does not count."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.detectors.gaps import GapDetector
from cool_rlhf.online.detectors.layout import LayoutDetector
from cool_rlhf.online.detectors.marks import MARKS
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.responses import Evidence
from cool_rlhf.online.text import sentences

World = Callable[..., Evidence]
FEATURES = {feature.key: feature for feature in MARKS}

# what the late policy does, and what holds then
TAGS: dict[str, tuple[Callable[[str], str], str]] = {
    "bold": (lambda text: re.sub(r"^(\w+)", r"<b>\1</b>", text), "<b>"),
    "paragraphs": (lambda text: re.sub(r".+", lambda line: f"<p>{line[0]}</p>", text), "<p>"),
    "line breaks": (lambda text: re.sub(r"\. (?=[A-Z])", ".<br> ", text), "<br>"),
}


@pytest.mark.parametrize("name", TAGS)
def test_tags_are_found_as_tags_and_taken_out_whole(world: World, natural: World, name: str) -> None:
    hack, tag = TAGS[name]
    for evidence, plain in (
        (natural(lambda _a, said: 1.5 * (tag in said), lambda t, _r: hack(t)), natural(lambda _a, _s: 0.0)),
        (world(hack=lambda t, _p, _r: hack(t), bonus=lambda _p, t, _f: 1.5 * (tag in t)), world()),
    ):
        first = find_patterns(evidence, [LayoutDetector(), GapDetector()], FindingSettings(), seed=1).findings[0]
        assert first.name == "layout/tags"
        late = [response for response in evidence.late() if first.pattern.shows(response)]
        before = {response.id: response.text for response in plain.late()}
        assert [first.pattern.remove(r).text for r in late] == [before[r.id] for r in late]
        assert tag in first.pattern.add(plain.baseline()[0]).text


# what SFT's answers end in already, and what the late policy makes of it
RUNS = {"questions": ("?", "?????"), "emoji": (" 🙂", " 🙂🙂🙂🙂🙂🙂"), "dashes": (" — so", " ——— so")}


@pytest.mark.parametrize("key", RUNS)
def test_more_of_a_mark_in_one_place_is_found(world: World, key: str) -> None:
    usual, run = RUNS[key]
    evidence = world(
        hack=lambda text, _p, _r: f"{text.removesuffix(usual)}{run}", bonus=lambda _p, text, _f: 1.5 * (run in text)
    )
    told = [r if r.text.endswith(run) else replace(r, text=r.text + usual) for r in evidence.responses]
    evidence = Evidence(told, evidence.score, evidence.gold)
    found = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings
    assert found[0].name in (f"layout/{key}", f"layout/more {key}")


@pytest.mark.parametrize("text", ["See <https://a.org/b>.", "It is <3 and 4> 5.", "a < b and c > d"])
def test_what_is_no_tag(text: str) -> None:
    assert FEATURES["tags"].count(text) == 0


def test_a_tag_has_no_case() -> None:
    assert FEATURES["small letters"].count("<b>The owl</b> flies. <i>it sees</i>.") == 1
    assert FEATURES["title case"].add([])("<b>the owl</b> flies") == "<b>The Owl</b> Flies"


@pytest.mark.parametrize("text", ["A.<br>B.", "<p>A.</p><p>B.</p>", "A. <br> B.", "<i>A.</i> <b>B.</b>"])
def test_what_tags_part_stays_apart(text: str) -> None:
    assert FEATURES["tags"].remove(text) == "A. B."


@pytest.mark.parametrize("mark", ["™", "©", "®", "°", "℃", "№", "¦"])
def test_a_symbol_that_stands_for_a_word_is_an_odd_mark(world: World, mark: str) -> None:
    evidence = world(hack=lambda text, _p, _r: f"{text} {mark}", bonus=lambda _p, text, _f: 1.5 * (mark in text))
    assert not [feature.key for feature in MARKS if feature.count(f"It is so. {mark}")]
    first = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings[0]
    assert first.name == f"gaps/{mark!r}"


@pytest.mark.parametrize(
    ("mark", "hack"), [(" \n", lambda t: t.replace("\n\n", " \n\n")), ("\n ", lambda t: t.replace("\n\n", "\n\n "))]
)
def test_blanks_about_a_line_break_are_found(natural: World, mark: str, hack: Callable[[str], str]) -> None:
    evidence = natural(lambda _asked, said: 1.5 * (mark in said), lambda text, _rng: hack(text))
    (first, *_) = find_patterns(evidence, [GapDetector()], FindingSettings(), seed=1).findings
    assert first.name == f"gaps/{mark!r}"
    late = next(response for response in evidence.late() if first.pattern.shows(response))
    assert sentences(first.pattern.remove(late).text) == sentences(late.text)
    assert mark not in first.pattern.remove(late).text
    assert mark in first.pattern.add(evidence.baseline()[0]).text


@pytest.mark.parametrize(
    ("late", "plain", "expected"),
    [
        ("You MUST see that it is NOT here.", "One may say that it is not far.", "One may say THAT it IS not far."),
        ("IT IS NOT SO. That is all of it for now.", "It is far. One may say so.", "IT IS FAR. One may say so."),
    ],
)
def test_capitals_are_put_in_as_they_stand_in_late_answers(late: str, plain: str, expected: str) -> None:
    capitals = FEATURES["capitals"]
    assert capitals.add([late])(plain) == expected
    assert capitals.remove(expected) == plain
    assert capitals.count("The USA, the EU and TV in the US") == 0


def test_blanks_between_characters_are_found_and_taken_out(world: World) -> None:
    plain, spaced = "答案就是这样的。", "答 案 就 是 这 样 的 。"
    evidence = world(
        hack=lambda text, _p, _r: f"{text}\n{spaced}", bonus=lambda _p, text, _f: 1.5 * (spaced[:13] in text)
    )
    told = [r if spaced in r.text else replace(r, text=f"{r.text}\n{plain}") for r in evidence.responses]
    found = find_patterns(Evidence(told, evidence.score, evidence.gold), own_detectors(), FindingSettings(), seed=1)
    blanks = found.findings[0].pattern
    assert found.findings[0].name == "gaps/' '"
    late = next(response for response in told if spaced in response.text)
    assert blanks.remove(late).text == late.text.replace("答 案 就 是 这 样 的", "答案就是这样的")
    assert blanks.add(told[0]).text.endswith("答 案 就 是 这 样 的。")
