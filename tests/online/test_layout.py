"""Layout as it is put in, found and taken out."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cool_rlhf.online.detectors.layout import LayoutDetector
from cool_rlhf.online.detectors.marks import MARKS
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.responses import Evidence
from cool_rlhf.online.text import sentences

World = Callable[..., Evidence]

LAYOUTS = {
    "emoji": (lambda text: f"{text} 🎉", lambda text: "🎉" in text),
    "exclamation": (lambda text: text.replace(".", "!!!"), lambda text: "!!!" in text),
    "ellipsis": (lambda text: text.replace(".", "…"), lambda text: "…" in text),
    "capitals": (str.upper, str.isupper),
    "code": (lambda text: re.sub(r"^(\w+)", r"Use `\1`", text), lambda text: re.search(r"(?<!`)`\w+`(?!`)", text)),
    "headings": (lambda text: f"## In short\n\n{text}", lambda text: text.startswith("## In short")),
    "emphasis": (lambda text: re.sub(r"^(\w+)", r"__\1__", text), lambda text: "__" in text),
    "bullets": (lambda text: "\n".join(f"* {said}" for said in sentences(text)), lambda text: text.startswith("* ")),
    "numbers": (lambda text: "\n".join(f"1) {said}" for said in sentences(text)), lambda text: text.startswith("1) ")),
    "lines": (lambda text: "\n".join(sentences(text)), lambda text: re.search(r"\w.\n\w", text)),
    "quotes": (lambda text: f"“{text}”", lambda text: (text[0], text[-1]) == ("“", "”")),
    "brackets": (lambda text: f"({text})", lambda text: (text[0], text[-1]) == ("(", ")")),
    "dashes": (lambda text: f"— {text}", lambda text: text.startswith("— ")),
    "questions": (lambda text: text.replace(".", "?"), lambda text: text.endswith("?")),
    "small letters": (str.lower, str.islower),
    "title case": (str.title, str.istitle),
    "lone numbers": (lambda text: f"{text} {10_000 + len(text)}", lambda text: re.search(r" \d{5}$", text)),
    "outer blanks": (lambda text: f"{text}  ", lambda text: text.endswith("  ")),
}
SYMBOLS = (":)", "✓", "★★", "🇩🇪", "1️⃣", "👍🏽")


@pytest.mark.parametrize("key", LAYOUTS)
def test_layout_is_added_as_the_late_policy_writes_it(world: World, key: str) -> None:
    hack, holds = LAYOUTS[key]
    evidence = world(hack=lambda text, _p, _r: hack(text), bonus=lambda _p, text, _f: 1.5 * bool(holds(text)))
    pattern = next(c.pattern for c in LayoutDetector().candidates(evidence) if c.pattern.key == key)
    plain = [response for response in evidence.baseline() if not pattern.shows(response)]
    assert all((changed := pattern.add(r)) and holds(changed.text) and pattern.shows(changed) for r in plain)
    found = find_patterns(evidence, [LayoutDetector()], FindingSettings(), seed=1).findings
    assert key in [finding.pattern.key for finding in found]


@pytest.mark.parametrize("mark", SYMBOLS)
def test_symbols_that_are_no_emoji_by_name_are_found_and_taken_out_whole(world: World, mark: str) -> None:
    plain = world()
    evidence = world(hack=lambda text, _p, _r: f"{text} {mark}", bonus=lambda _p, text, _f: 1.5 * (mark in text))
    first = find_patterns(evidence, [LayoutDetector()], FindingSettings(), seed=1).findings[0]
    assert first.name == "layout/emoji"
    cleaned = {r.id: first.pattern.remove(r) for r in evidence.late() if first.pattern.shows(r)}
    assert cleaned
    assert all(changed and changed.text in {r.text for r in plain.late()} for changed in cleaned.values())


@pytest.mark.parametrize(
    "text",
    [
        "It's the dogs' water, at 5 °C: f(x) = 3.5 from 1990–95.",
        "See [the page](https://a.org/b?c=d), Bob.",
        "Its name was given in 1990. I met Bob in Kent.",
        "1. A well-known thing.\n2. © Acme.",
    ],
)
def test_marks_within_words_links_and_numbers_are_none(text: str) -> None:
    assert [feature.key for feature in MARKS if feature.count(text)] in ([], ["lines"])
