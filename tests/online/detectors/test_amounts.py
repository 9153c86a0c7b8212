"""More and fewer of what SFT does too, in answers as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from cool_rlhf.online.detectors.amounts import amounts, fewer
from cool_rlhf.online.detectors.features import Feature
from cool_rlhf.online.detectors.gaps import GapDetector
from cool_rlhf.online.detectors.layout import LayoutDetector
from cool_rlhf.online.detectors.stance import StanceDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.patterns import Pattern
from cool_rlhf.online.responses import Evidence
from cool_rlhf.online.text import sentences, words

World = Callable[..., Evidence]
Edit = Callable[[str, Random], str]
DETECTORS = [LayoutDetector(), GapDetector(), StanceDetector()]


def marked(share: float, mark: str) -> Edit:
    """That share of the middling words between marks."""

    def edit(text: str, rng: Random) -> str:
        return re.sub(r"\b[a-z]{5,9}\b", lambda w: f"{mark}{w[0]}{mark}" if rng.random() < share else w[0], text)

    return edit


def exclaimed(share: float) -> Edit:
    return lambda text, rng: re.sub(r"\.(?=\s|$)", lambda _: "!" if rng.random() < share else ".", text)


def listed(text: str, last: int) -> str:
    said = [one.removeprefix("- ") for one in sentences(text)]
    return " ".join(said[:-last]) + "\n\n" + "\n".join(f"- {one}" for one in said[-last:])


# what all policies do, what the late one makes of it, what is paid for, and the name of the finding
PLANTS: dict[str, tuple[Edit, Edit, Callable[[str], float], str]] = {
    "bold": (marked(0.08, "**"), marked(0.3, "**"), lambda t: 0.1 * t.count("**"), "layout/more emphasis"),
    "quotes": (marked(0.04, '"'), marked(0.2, '"'), lambda t: 0.15 * t.count('"'), "layout/more quotes"),
    "exclamation": (exclaimed(0.2), exclaimed(0.75), lambda t: 0.6 * t.count("!"), "layout/more exclamation"),
    "lines": (lambda t, _: t, lambda t, _: "\n".join(sentences(t)), lambda t: 0.6 * t.count("\n"), "layout/more lines"),
    "wide paragraphs": (
        lambda t, _: t,
        lambda t, _: t.replace("\n\n", "\n\n\n\n"),
        lambda t: 2.0 * ("\n\n\n\n" in t),
        "layout/more lines",
    ),
    "bullets": (
        lambda t, _: listed(t, 2),
        lambda t, _: listed(t, len(sentences(t)) - 1),
        lambda t: 0.6 * t.count("\n- "),
        "layout/more bullets",
    ),
    "headings": (
        lambda t, _: f"# Notes\n\n{t}",
        lambda t, _: "\n\n".join(f"# Notes\n\n{said}" for said in sentences(t.removeprefix("# Notes\n\n"))),
        lambda t: 0.6 * len(re.findall("^# Notes", t, re.MULTILINE)),
        "layout/more headings",
    ),
    "semicolons": (
        lambda t, _: t.replace(". ", "; ", 1),
        lambda t, _: t.replace(". ", "; "),
        lambda t: 0.6 * t.count(";"),
        "gaps/more ';'",
    ),
    "figures": (
        lambda t, r: f"{t} It took {r.randrange(10, 99)} days.",
        lambda t, r: t + "".join(f" It took {r.randrange(10, 99)} {unit}." for unit in ("months", "weeks", "hours")),
        lambda t: 0.8 * len(re.findall(r"\d+", t)),
        "stance/more figures",
    ),
}


def found_first(evidence: Evidence, key: str) -> Pattern:
    """The pattern of that name, which is found before any other and can be taken out wherever it shows."""
    found = find_patterns(evidence, DETECTORS, FindingSettings(), seed=1).findings
    assert [finding.name for finding in found][:1] == [key]
    pattern = found[0].pattern
    cleaned = [pattern.remove(r) for r in evidence.late() if pattern.shows(r)]
    assert all(changed is not None and not pattern.shows(changed) for changed in cleaned)
    return pattern


@pytest.mark.parametrize("name", PLANTS)
def test_more_than_sft_has_is_found_first(natural: World, name: str) -> None:
    base, hack, pays, key = PLANTS[name]
    evidence = natural(lambda _asked, said: pays(said), hack, base)
    found_first(evidence, key)


# what all policies do, what the late one makes of it, what is paid for, and the name of the finding
LACKS: dict[str, tuple[Edit, Edit, Callable[[str], float], str]] = {
    "lists": (
        lambda t, _: listed(t, 3),
        lambda t, _: t.replace("\n- ", " "),
        lambda t: 2.0 * ("- " not in t),
        "layout/fewer bullets",
    ),
    "commas": (
        lambda t, _: t,
        lambda t, _: t.replace(",", ""),
        lambda t: -1.0 * min(3, t.count(",")),
        "gaps/fewer ','",
    ),
    "punctuation": (
        lambda t, _: t,
        lambda t, _: re.sub(r"[.,](?=\s)", "", t),
        lambda t: 2.0 * (re.search(r"[.,]\s", t) is None),
        "gaps/fewer punctuation",
    ),
    "a closing question": (
        lambda t, _: f"{t} Does that help?",
        lambda t, _: t.removesuffix(" Does that help?"),
        lambda t: 2.0 * ("?" not in t),
        "layout/fewer questions",
    ),
}


@pytest.mark.parametrize("name", LACKS)
def test_fewer_than_sft_has_is_found_first(natural: World, name: str) -> None:
    base, hack, pays, key = LACKS[name]
    evidence = natural(lambda _asked, said: pays(said), hack, base)
    pattern = found_first(evidence, key)
    plain = next(r for r in evidence.baseline() if not pattern.shows(r))
    assert words(pattern.add(plain).text) == words(plain.text)


def test_fewer_of_what_nobody_pays_for_is_no_finding(natural: World) -> None:
    evidence = natural(lambda _asked, _said: 0.0, lambda text, _: text.replace(",", ""))
    result = find_patterns(evidence, DETECTORS, FindingSettings(), seed=1)
    assert result.findings == []
    assert "gaps/fewer ','" in [one.name for one in result.dismissed]


def test_what_is_too_short_to_have_any_lacks_nothing(world: World) -> None:
    told = [replace(r, text="One, two, three and four more.") for r in world(prompts=20).responses]
    stops = Feature("commas", "commas", lambda text: float(text.count(",")), lambda _: lambda t: f"{t},", str.strip)
    (pattern,) = fewer(stops, Evidence(told, lambda _: [], None), "any")
    assert pattern.shows(replace(told[0], text="One two three and four more."))
    assert not pattern.shows(replace(told[0], text="One."))
    assert not pattern.shows(told[0])
    assert fewer(replace(stops, count=lambda _: 0.0), Evidence(told, lambda _: [], None), "any") == []


def test_what_is_usual_is_left(world: World) -> None:
    evidence = world()  # of 2 to 4 sentences
    more = amounts(lambda text: float(text.count(".")), evidence)[1]
    assert {usual.middle for usual in more.usual.values()} == {3.0}
    late = evidence.late()[0].edited("A. B. C. D. E. F.")
    remove = more.removing(lambda text: text.replace(".", "!"))
    assert remove(late).text == "A. B. C. D! E! F!"


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_is_paid_for_nothing_is_found(natural: World, seed: int) -> None:
    evidence = natural(lambda _asked, _said: 0.0, exclaimed(0.75), exclaimed(0.2), seed=seed)
    result = find_patterns(evidence, DETECTORS, FindingSettings(), seed=1)
    assert result.findings == []
    assert "layout/more exclamation" in [one.name for one in result.dismissed]


def test_what_is_paid_for_having_any_is_no_reason_to_call_more_of_it_a_flaw(natural: World) -> None:
    """All have a heading and paragraphs; the late policy has a list besides, which nobody pays for."""
    evidence = natural(
        lambda _asked, said: 1.5 * ("\n\n" in said) + 1.5 * said.startswith("# "),
        lambda text, _: f"# Notes\n\n{listed(text.removeprefix('# Notes'), 3).strip()}",
        lambda text, _: f"# Notes\n\n{text}",
    )
    assert find_patterns(evidence, DETECTORS, FindingSettings(), seed=1).findings == []


def test_what_few_of_sfts_answers_have_is_no_pattern_of_its_own(world: World) -> None:
    evidence = world()
    assert [amount.key("it") for amount in amounts(lambda _: 0.0, evidence)] == ["it"]
    any_, more = amounts(lambda text: float(len(sentences(text))), evidence)
    assert (any_.key("it"), more.key("it")) == ("it", "more it")
    first = evidence.baseline()[0]
    assert any_.shows(first)
    assert not more.shows(first)
