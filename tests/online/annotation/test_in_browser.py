"""A person's whole path in a real browser, with the keyboard only, among hostile responses."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cool_rlhf.online.annotation import page
from cool_rlhf.online.annotation.items import Item, ShownResponse
from cool_rlhf.online.annotation.markdown import render
from cool_rlhf.online.annotation.page import left_side
from cool_rlhf.online.annotation.store import FILE_NAME, Store

HOSTILE = [
    "<script>window.owned = 1</script>",
    '<img src=x onerror="window.owned = 1">',
    "![x](http://127.0.0.1:9/pixel.png)",
    "[a](javascript:window.owned=1) <javascript:window.owned=1>",
    '</div></article><form action="/label"><button name="verdict" value="left">left</button></form>',
    "<style>body { display: none }</style>",
    '<svg onload="window.owned = 1"></svg><iframe srcdoc="<script>parent.owned = 1</script>"></iframe>',
    '```html"><script>window.owned = 1</script>\nx\n```',
    '<meta http-equiv="refresh" content="0;url=http://127.0.0.1:9/">',
    "{{ 7 * 7 }} {% raw %}",
]


@pytest.fixture
def hostile(item: Callable[..., Item]) -> list[Item]:
    """Such texts on either side, and one in the question."""
    texts = "\n\n".join(HOSTILE)
    return [
        item(0, first=ShownResponse(texts, True, "sft")),
        item(1, second=ShownResponse(texts, False, "late")),
        item(2, prompt=[{"role": "user", "content": texts}], guideline=HOSTILE[0]),
        *(item(number) for number in range(3, 6)),
    ]


def arrive(browser: Any, link: str) -> None:
    """The page that asks for a name; it puts the cursor there a moment after it is whole."""
    browser.open(link)
    browser.wait("document.activeElement.id == 'name'")


def sign_in(browser: Any) -> None:
    browser.type("Ada")
    browser.press("Enter")
    answered(browser, 0)


def answered(browser: Any, count: int) -> None:
    browser.wait(f"document.querySelector('#mine')?.innerText == '{count}'")


def test_whole_path_by_keyboard(browser: Any, serve: Callable[..., Any], hostile: list[Item], tmp_path: Any) -> None:
    server = serve(hostile)
    arrive(browser, server.link)
    assert browser.evaluate("location.href") == f"http://127.0.0.1:{server.port}/", "the token has left the address"
    assert browser.evaluate("document.cookie") == "", "scripts cannot read the token"
    sign_in(browser)
    assert "<script>" in browser.text(f"#{'left' if left_side(hostile[0].id, 'Ada') == 'first' else 'right'} .text")

    browser.press("c")
    browser.wait("document.activeElement.name == 'comment'")
    browser.type("t is no key in here")
    browser.press("t")
    browser.press("Escape")
    browser.press("ArrowLeft")
    answered(browser, 1)
    browser.press("ArrowRight")
    answered(browser, 2)
    browser.press("t")
    answered(browser, 3)
    browser.press("u")
    answered(browser, 2)
    browser.press("b", repeat=True)
    browser.press("b")
    answered(browser, 3)
    browser.press("s")
    answered(browser, 4)
    browser.press("1")
    answered(browser, 5)
    browser.press("2")
    answered(browser, 6)
    assert "Nothing left" in browser.text("h1")

    assert browser.evaluate("window.owned") is None
    asked = {address for address in browser.requests() if not address.startswith(f"http://127.0.0.1:{server.port}/")}
    assert asked <= {"about:blank"}, "nothing is fetched from elsewhere"
    refused = [event for event in browser.events if event.get("method") == "Log.entryAdded"]
    assert not [event for event in refused if "Content Security Policy" in event["params"]["entry"]["text"]], (
        "nothing in the page is stopped by the policy alone"
    )
    assert server.end(signal.SIGINT)[0] == 0
    with Store(tmp_path / FILE_NAME) as store:
        labels = store.labels()
    shown = [(label.item, left_side(label.item, "Ada")) for label in labels]
    sides = [{"first": "second", "second": "first"}[left] if n in (1, 5) else left for n, (_, left) in enumerate(shown)]
    expected = [sides[0], sides[1], "both_bad", "skip", sides[4], sides[5]]
    assert [label.winner for label in labels] == expected
    assert [label.item for label in labels] == [entry.id for entry in hostile]
    assert labels[0].comment == "t is no key in heret"
    assert all(label.seconds > 0 for label in labels)


def test_one_key_held_down_answers_once(browser: Any, serve: Callable[..., Any], item: Callable[..., Item]) -> None:
    server = serve([item(number) for number in range(5)])
    arrive(browser, server.link)
    sign_in(browser)
    browser.press("t")
    answered(browser, 1)
    for _ in range(3):
        browser.press("t", repeat=True)
    browser.press("s")
    answered(browser, 2)


LAID_OUT = [
    ("  Rain falls.\n    It drums.\n\nThe gutter  hums.", ["  Rain falls.", "    It drums.", "The gutter  hums."]),
    ("if x:\n  go()\nelse:\n  stop()", ["if x:", "  go()", "else:", "  stop()"]),
    ("- one,\n  wrapped\n- two\n  - nested\n    - deeper", ["one,", "wrapped", "two", "nested", "deeper"]),
    ("1. one\n\n   more\n\n2. two\n\n   - nested\n\n   - too", ["one", "more", "two", "nested", "too"]),
    ("| a | b |\n|---|---|\n| 1   x | 2 |", ["a\tb", "1   x\t2"]),
    ("> quoted\n> lines\n\n- > listed\n\n# Heading\ntext", ["quoted", "lines", "listed", "Heading", "text"]),
    ("```\nif x:\n\n\n    go()\n```", ["if x:", "    go()"]),
    ("\n\nOne\n\n\n*Two*", ["One", "*Two*"]),
]


def test_lines_are_seen_as_they_are_laid_out(browser: Any, tmp_path: Path) -> None:
    """And the ends of lines that stand between tags are not seen."""
    style = (Path(page.__file__).parent / "static/page.css").read_text(encoding="utf-8")
    boxes = "".join(f'<div class="text" dir="auto">{render(text)}</div>' for text, _ in LAID_OUT)
    bare = boxes.replace(">\n<", "><")
    texts = tmp_path / "texts.html"
    texts.write_text(f"<!doctype html><style>{style}</style>{boxes}{bare}", encoding="utf-8")
    browser.open(texts.as_uri())
    found = "JSON.stringify([...document.querySelectorAll('.text')].map((box) => [box.innerText, box.offsetHeight]))"
    seen = json.loads(browser.evaluate(found))
    assert len(seen) == 2 * len(LAID_OUT)
    for (text, height), (_, height_without), (_, lines) in zip(seen, seen[len(LAID_OUT) :], LAID_OUT, strict=False):
        assert [line for line in text.split("\n") if line] == lines
        assert height == height_without
