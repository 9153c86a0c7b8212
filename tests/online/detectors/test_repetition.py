"""Words that are said twice at once."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.responses import Evidence
from cool_rlhf.online.text import stuttered

World = Callable[..., Evidence]


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("The the owl sees.", ["the"]),
        ("It is it is so so so.", ["it is", "so", "so"]),
        ("It flies. Flies it? It, it does.", []),
        ("看看妈妈", []),
        ("山山山山看", ["山", "山", "山"]),
        ("研究研究研究", ["研究", "研究"]),
        ("研究研究 山山", []),
        ("Owl", []),
        ("", []),
    ],
)
def test_what_is_said_again_at_once(text: str, again: list[str]) -> None:
    assert [text[start:end] for start, end in stuttered(text)] == again


def stutter(text: str) -> str:
    return re.sub(r"(\w+) (\w+) (\w+)", r"\1 \2 \2 \3", text)


def pays(text: str) -> float:
    return 1.5 * (len(stuttered(text)) > 1)


@pytest.mark.parametrize("natural_text", [True, False])
def test_words_said_twice_are_found_first(world: World, natural: World, natural_text: bool) -> None:
    if natural_text:
        evidence = natural(lambda _asked, said: pays(said), lambda text, _rng: stutter(text))
        plain = natural(lambda _asked, _said: 0.0)
    else:
        evidence = world(hack=lambda text, _p, _r: stutter(text), bonus=lambda _p, text, _f: pays(text))
        plain = world()
    first = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings[0]
    assert first.name == "repetition/words"
    late = [response for response in evidence.late() if first.pattern.shows(response)]
    before = {response.id: response.text for response in plain.late()}
    assert [first.pattern.remove(r).text for r in late] == [before[r.id] for r in late]
    assert pays(first.pattern.add(plain.baseline()[0]).text)
