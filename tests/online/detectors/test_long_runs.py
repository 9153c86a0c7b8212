"""Texts of one thing over and over, as stuck policies write them: nothing about them may take quadratic time."""

from __future__ import annotations

from time import process_time

import pytest

from cool_rlhf.online.detectors.gaps import _marks
from cool_rlhf.online.detectors.layout import FEATURES
from cool_rlhf.online.text import sentence_spans, stuttered, without, word_spans

LENGTH = 10_000
RUNS = {
    "blanks": f"A{' ' * LENGTH}b|\n",
    "line breaks": f"A{chr(10) * LENGTH}b",
    "dots": f"A{'.' * LENGTH}b",
    "dots and blanks": "A. " * (LENGTH // 3),
    "hyphens": "-" * LENGTH,
    "question marks": f"A{'?' * LENGTH}b",
    "one letter": "a" * LENGTH,
    "stretched letters": "aaab" * (LENGTH // 4),
    "a letter in capitals": "I " * (LENGTH // 2),
    "tags": "<a>" * (LENGTH // 3),
    "digits": "1" * LENGTH,
}


@pytest.mark.parametrize("name", RUNS)
def test_a_long_run_is_read_and_edited_at_once(name: str) -> None:
    text = RUNS[name]
    begun = process_time()
    without(text, word_spans(text)[:3])
    without(text, sentence_spans(text))
    stuttered(text)
    _marks(text)
    for feature in FEATURES:
        feature.count(text)
        feature.remove(text)
        feature.add([text])("It is so. That is all.")
        feature.add(["It is so. That is all."])(text)
    assert process_time() - begun < 3
