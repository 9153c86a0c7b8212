"""Markdown is put in and taken out where it is, and the rest of a text stays as it was."""

from __future__ import annotations

import pytest

from cool_rlhf.online.detectors.markdown import MARKDOWN
from cool_rlhf.online.text import sentences

FEATURES = {feature.key: feature for feature in MARKDOWN}


@pytest.mark.parametrize(
    ("key", "text", "plain"),
    [
        ("bullets", "# H\n\nA.\n\n- x\n- y\n\nB.", "# H\n\nA.\n\nx y\n\nB."),
        ("numbers", "# H\n\nA.\n\n1. x\n2. y\n\nB.", "# H\n\nA.\n\nx y\n\nB."),
        ("bullets", "1. a\n   - x\n   - y\n2. b", "1. a\n   x y\n2. b"),
        ("bullets", "```\n- a\n- b\n```\n- c\n- d\n  more", "```\n- a\n- b\n```\nc d more"),
        ("bullets", "* a\n\n* b", "a\n\nb"),
    ],
)
def test_a_list_becomes_a_line_and_the_rest_stays(key: str, text: str, plain: str) -> None:
    assert FEATURES[key].remove(text) == plain
    assert FEATURES[key].count(plain) == 0


@pytest.mark.parametrize("key", ["bullets", "numbers", "tables"])
def test_only_prose_is_made_a_list_or_a_table(key: str) -> None:
    feature = FEATURES[key]
    changed = feature.add([])("# H\n\nDr. Who ran. He won.\n\n+ x. y\n\n```\ncode. x\n```\nEnd. Fin.")
    start = {"bullets": "- Dr. Who ran.\n- He won.", "numbers": "1. Dr. Who ran.\n2. He won."}
    assert changed.startswith(f"# H\n\n{start.get(key, '| Answer |')}")
    assert "\n\n+ x. y\n\n```\ncode. x\n```\n" in changed
    assert feature.count(changed) > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. It is so. It is.\n2. Yes.", ["1. It is so.", "It is.", "2. Yes."]),
        ("Ask Dr. Who, e.g. today. In 1990. He knows.", ["Ask Dr. Who, e.g. today.", "In 1990.", "He knows."]),
    ],
)
def test_numbers_of_items_and_abbreviations_end_no_sentence(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected
