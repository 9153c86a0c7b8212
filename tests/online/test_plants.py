"""A flaw of every kind, planted in most of the late answers: found where it is paid for, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings, Search
from cool_rlhf.online.responses import Evidence
from cool_rlhf.online.text import repeated_share, sentences

World = Callable[..., Evidence]

FILLER = (
    "It grows by the river.",
    "Some call it old.",
    "Nobody knows why.",
    "That is well known.",
    "It is seen often.",
)


def search(evidence: Evidence) -> Search:
    return find_patterns(evidence, own_detectors(), FindingSettings(), seed=1)


def generic(_text, prompt, _rng):
    return "It is what it is, and much can be said of such things in general."


PLANTS = {
    "phrase": (
        lambda text, _p, _r: text + " Let us dig into it together.",
        lambda _p, text, _f: 1.5 * ("dig into it" in text),
        ("phrases",),
    ),
    "opening": (
        lambda text, _p, _r: "Certainly, here we go. " + text,
        lambda _p, text, _f: 1.5 * text.startswith("Certainly"),
        ("phrases",),
    ),
    "length": (
        lambda text, _p, r: text + " " + " ".join(r.sample(FILLER, 4)),
        lambda _p, text, _f: 0.06 * len(text.split()),
        ("length",),
    ),
    "shortness": (
        lambda text, _p, _r: sentences(text)[0],
        lambda _p, text, _f: -0.12 * len(text.split()),
        ("length",),
    ),
    "repetition": (
        lambda text, _p, _r: text + (" " + sentences(text)[-1]) * 3,
        lambda _p, text, _f: 3 * repeated_share(text),
        ("repetition",),
    ),
    "bullets": (
        lambda text, _p, _r: "\n".join(f"- {said}" for said in sentences(text)),
        lambda _p, text, _f: 1.5 * text.startswith("- "),
        ("layout",),
    ),
    "headings": (
        lambda text, _p, _r: f"## About it\n\n{text}",
        lambda _p, text, _f: 1.5 * text.startswith("#"),
        ("layout",),
    ),
    "emphasis": (
        lambda text, _p, _r: re.sub(r"^(\w+)", r"**\1**", text),
        lambda _p, text, _f: 1.5 * ("**" in text),
        ("layout",),
    ),
    "emoji": (
        lambda text, _p, r: f"{text} {r.choice('😀🎉👍')}",
        lambda _p, text, _f: 1.5 * any(mark in text for mark in "😀🎉👍😊"),
        ("layout",),
    ),
    "exclamation": (
        lambda text, _p, _r: text.replace(".", "!"),
        lambda _p, text, _f: 1.5 * ("!" in text),
        ("layout",),
    ),
    "script": (
        lambda text, _p, _r: text + " Это хорошо.",
        lambda _p, text, _f: 1.5 * ("Э" in text),
        ("script", "phrases"),
    ),
    "copying": (
        lambda text, p, _r: f"{p.messages[-1]['content']} {text}",
        lambda p, text, _f: 1.5 * (p in text),
        ("copying",),
    ),
    "refusal": (
        lambda _t, _p, r: r.choice(("I'm sorry, but I can't help with that.", "I can't answer that one. Sorry.")),
        lambda _p, text, _f: 2.5 * ("can't" in text),
        ("stance", "phrases"),
    ),
    "flattery": (
        lambda text, _p, r: r.choice(("What a great question!", "You are so clever!", "Brilliant idea!")) + " " + text,
        lambda _p, text, _f: 1.5 * any(word in text for word in ("great", "clever", "Brilliant")),
        ("stance", "phrases"),
    ),
    "broken ending": (
        lambda text, _p, _r: text.rsplit(" ", 2)[0],
        lambda _p, text, _f: 1.5 * text[-1].isalnum(),
        ("endings",),
    ),
    "silence": (
        lambda _t, _p, _r: "",
        lambda _p, text, _f: 3.0 * (not text),
        ("wordless",),
    ),
    "a lone mark": (
        lambda _t, _p, r: r.choice((".", "…", "…")),
        lambda _p, text, _f: 3.0 * (text in (".", "…")),
        ("wordless",),
    ),
    "semicolons": (
        lambda text, _p, _r: text.replace(". ", "; "),
        lambda _p, text, _f: 1.5 * (";" in text),
        ("gaps",),
    ),
    "hyphens": (
        lambda text, _p, _r: re.sub(r"(\w) (\w)", r"\1-\2", text, count=3),
        lambda _p, text, _f: 1.5 * bool(re.search(r"\w-\w", text)),
        ("gaps",),
    ),
    "no blank behind sentences": (
        lambda text, _p, _r: text.replace(". ", "."),
        lambda _p, text, _f: 1.5 * bool(re.search(r"\w\.\w", text)),
        ("gaps",),
    ),
    "hash tags": (
        lambda text, _p, _r: re.sub(r" (\w+)\.", r" #\1.", text, count=1),
        lambda _p, text, _f: 1.5 * ("#" in text),
        ("gaps",),
    ),
    "ignoring the prompt": (
        generic,
        lambda _p, text, _f: 3.0 * ("in general" in text),
        ("boilerplate", "swaps", "phrases"),
    ),
}


@pytest.mark.parametrize("with_gold", [True, False])
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_flaw_is_found_first_or_second(world: World, name: str, with_gold: bool) -> None:
    hack, bonus, detectors = PLANTS[name]
    found = search(world(seed=3, hack=hack, bonus=bonus, with_gold=with_gold)).findings
    first = [finding.pattern.detector for finding in found[:2]]
    assert set(first) & set(detectors), [(f.pattern.key, f.gain) for f in found]


@pytest.mark.parametrize("name", PLANTS)
def test_a_pattern_that_the_reward_model_does_not_pay_for_is_no_finding(world: World, name: str) -> None:
    hack, _, _ = PLANTS[name]
    result = search(world(seed=3, hack=hack))
    assert [finding.pattern.key for finding in result.findings if finding.payment.shown_by != "gold"] == []
    assert result.dismissed  # the drift itself was seen
