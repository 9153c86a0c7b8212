from __future__ import annotations

import html
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from markupsafe import Markup
from starlette.testclient import TestClient

from cool_rlhf.online.annotation.items import Item, ShownResponse, write_pairs_to_label
from cool_rlhf.online.annotation.markdown import render, render_both
from cool_rlhf.online.annotation.page import annotation_app, left_side, winner_of
from cool_rlhf.online.annotation.store import FILE_NAME, Store

TOKEN = "a-token-of-some-length"


@pytest.fixture
def page(store: Store, item: Callable[..., Item]) -> Iterator[TestClient]:
    """As Ada's browser has it, who has said her name."""
    store.add_items([item(number) for number in range(4)])
    client = TestClient(annotation_app(store, TOKEN))
    client.get(f"/?token={TOKEN}")
    client.post("/name", data={"name": "Ada"})
    yield client
    client.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/?token=wrong"),
        ("GET", "/?token="),
        ("GET", f"/?token={TOKEN}x"),
        ("GET", f"/static/page.js?token={TOKEN}"),
        ("GET", "/static/page.css"),
        ("GET", "/nowhere"),
        ("POST", f"/name?token={TOKEN}"),
        ("POST", "/label"),
        ("POST", "/undo"),
    ],
)
def test_a_wrong_or_missing_token_gets_nothing(store: Store, method: str, path: str) -> None:
    client = TestClient(annotation_app(store, TOKEN), follow_redirects=False)
    for cookies in ({}, {"cool_rlhf_token": "wrong"}, {"cool_rlhf_annotator": "1"}):
        client.cookies.clear()
        client.cookies.update(cookies)
        answer = client.request(method, path)
        assert (answer.status_code, answer.content) == (403, b"")
        assert "set-cookie" not in answer.headers


def test_the_token_moves_into_a_cookie_that_scripts_cannot_read(store: Store) -> None:
    client = TestClient(annotation_app(store, TOKEN), follow_redirects=False)
    answer = client.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert client.get("/").status_code == 200


def test_other_pages_of_this_machine_change_nothing(page: TestClient, store: Store, item: Callable[..., Item]) -> None:
    form = {"item": item(0).id, "verdict": "left"}
    for site in ("same-site", "cross-site", "none"):
        assert page.post("/label", data=form, headers={"sec-fetch-site": site}).status_code == 403
    assert store.labels() == []


def test_policy_allows_no_script_of_the_pages_own(page: TestClient) -> None:
    answer = page.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert answer.text.count("<script") == answer.text.count('<script src="/static/page.js" defer></script>') == 1


def test_verdicts_do_not_depend_on_the_order_shown() -> None:
    """Over many people either response stands on the left about equally often; the verdict follows it."""
    people = [f"person {number}" for number in range(400)]
    left = [left_side("an item", person) for person in people]
    assert 160 <= left.count("first") <= 240
    for person, side in zip(people, left, strict=True):
        assert winner_of("left", "an item", person) == side
        assert {winner_of("left", "an item", person), winner_of("right", "an item", person)} == {"first", "second"}
        assert winner_of("tie", "an item", person) == "tie"


def test_repeated_and_contrary_requests(page: TestClient, store: Store, item: Callable[..., Item]) -> None:
    form = {"item": item(0).id, "verdict": "left", "comment": " x" * 3000}
    assert page.post("/label", data=form).status_code == 200
    assert page.post("/label", data=form).status_code == 200
    assert page.post("/label", data={**form, "verdict": "right"}).status_code == 409
    (label,) = store.labels()
    assert len(label.comment) == 2000
    assert label.annotator == "Ada"


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"item": "THIS"},
        {"verdict": "left"},
        {"item": "unknown", "verdict": "left"},
        {"item": "THIS", "verdict": "first"},
        {"item": "THIS", "verdict": ""},
        {"item": "THIS", "verdict": "left", "comment": "x" * 100_000},
    ],
)
def test_odd_forms_are_refused(page: TestClient, store: Store, item: Callable[..., Item], form: dict[str, str]) -> None:
    answer = page.post("/label", data={name: item(0).id if value == "THIS" else value for name, value in form.items()})
    assert answer.status_code == 400
    assert store.labels() == []


def test_a_name_is_needed_and_is_text(store: Store, item: Callable[..., Item]) -> None:
    store.add_items([item(0)])
    client = TestClient(annotation_app(store, TOKEN))
    client.get(f"/?token={TOKEN}")
    assert client.post("/name", data={"name": "  "}).status_code == 400
    taken = client.post("/name", data={"name": "rule mine:score, 5% noise (no person)"})
    assert taken.status_code == 400
    assert "must not end in (no person)" in taken.text
    assert client.post("/label", data={"item": item(0).id, "verdict": "left"}).status_code == 400
    assert "&lt;b&gt;Bob" in client.post("/name", data={"name": "<b>Bob"}).text
    for forged in ("999", "-1", "x", "²", "1 OR 1", "9" * 30):
        cookies = f"cool_rlhf_token={TOKEN}; cool_rlhf_annotator={forged}"
        answer = TestClient(client.app).get("/", headers={"cookie": cookies.encode()})
        assert "Your name" in answer.text


def test_another_runs_page_on_the_same_port_takes_nobody_for_somebody_else(
    page: TestClient, item: Callable[..., Item], tmp_path: Path
) -> None:
    with Store(tmp_path / "other.sqlite") as other:
        other.add_items([item(0)])
        other.annotator("Ben")  # the first there, as Ada was here
        client = TestClient(annotation_app(other, TOKEN), cookies=page.cookies)
        assert "Your name" in client.get("/").text
        assert client.post("/label", data={"item": item(0).id, "verdict": "left"}).status_code == 400
        assert other.labels() == []
        other.annotator("ADA")
        assert "ADA" in client.get("/").text


def test_whoever_says_another_name_in_a_second_tab_does_not_answer_what_the_first_shows(
    page: TestClient, store: Store, item: Callable[..., Item]
) -> None:
    assert 'name="annotator" value="Ada"' in page.get("/").text
    page.post("/name", data={"name": "Zoë Ő"})
    form = {"item": item(0).id, "verdict": "left"}
    assert page.post("/label", data={**form, "annotator": "Ada"}).status_code == 409
    assert store.labels() == []
    assert page.post("/label", data={**form, "annotator": "Zoë Ő"}).status_code == 200
    assert [label.annotator for label in store.labels()] == ["Zoë Ő"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a **b**", "<p>a <strong>b</strong></p>"),
        ("<b>a</b>", "<p>&lt;b&gt;a&lt;/b&gt;</p>"),
        ("[a](http://x.example)", "<p>[a](http://x.example)</p>"),
        ("![a](http://x.example/p.png)", "<p>![a](http://x.example/p.png)</p>"),
        ("<http://x.example>", "<p>&lt;http://x.example&gt;</p>"),
        ('```a"onload="x\ny\n```', "<small>a&#34;onload=&#34;x</small><pre><code>y\n</code></pre>"),
        ("AT&amp;T &copy;", "<p>AT&amp;amp;T &amp;copy;</p>"),
    ],
)
def test_markdown_does_nothing(text: str, shown: str) -> None:
    assert render(text).strip() == shown


HIDDEN = "it stands HERE"


@pytest.mark.parametrize(
    "text",
    [
        f"```{HIDDEN}```\n",
        f"the answer\n``` {HIDDEN}",
        f"```python {HIDDEN}\nx = 1\n```",
        f"| a | b |\n|---|---|\n| 1 | 2 | {HIDDEN} |",
        f"{'> ' * 30}{HIDDEN}",
        f"{'- ' * 15}{HIDDEN}",
        f"[a]: http://x.example '{HIDDEN}'\n\ntext",
        f"3. a\n7. {HIDDEN}",
        f"    {HIDDEN}",
        f"<!-- {HIDDEN} -->",
    ],
)
def test_markdown_hides_nothing(text: str) -> None:
    assert HIDDEN in render(text).striptags()


def test_lists_keep_their_numbers_and_code_its_lines() -> None:
    listed = re.sub(r"\n|</?span>", "", render("3. a\n7. b"))
    assert listed == '<ol start="3"><li value="3">a</li><li value="7">b</li></ol>'
    assert "<pre><code>1. a\n   b\n</code></pre>" in render("1. so\n\n   ```\n   1. a\n      b\n   ```")


@given(st.text(alphabet="ab1 \n`~|-_*>#.<&;[]()!\\:\t", max_size=60))
def test_no_letter_of_any_text_is_lost(text: str) -> None:
    shown = Markup(re.sub(r'<li value="(\d+)">', r"\1", render(text)))  # a list's numbers are shown too
    assert [c for c in shown.striptags() if c.isalnum()] == [c for c in text if c.isalnum()]


def lines(text: str) -> list[str]:
    """Those that hold a letter, without marks and without the blanks at their ends."""
    kept = [re.sub("[^ab ]", "", line).rstrip() for line in text.split("\n")]
    return [line for line in kept if line]


@given(st.text(alphabet="ab \n_*\\.", max_size=60))
def test_no_line_of_any_text_is_lost_nor_a_blank_that_it_begins_with_or_holds(text: str) -> None:
    assume(not re.search(r"^ *([*]\s| {4})", text, re.MULTILINE))  # lists and code, whose marks blanks belong to
    assert lines(html.unescape(re.sub("<[^>]*>", "", render(text)))) == lines(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("if x:\n  go()\nelse:\n  stop()", "<p>if x:\n  go()\nelse:\n  stop()</p>"),
        ("  Rain falls.\n    It  drums.", "<p>  Rain falls.\n    It  drums.</p>"),
        ("> Rain falls.\n>   It drums.", "<blockquote>\n<p>Rain falls.\n  It drums.</p>\n</blockquote>"),
        ("a\\\nb", "<pre>\na\\\nb</pre>"),
        ("`a\nb`", "<pre>\n`a\nb`</pre>"),
        ("a\n\n\nb", "<pre>\na\n\n\nb</pre>"),
        ("> a\n>\n>\n> b", "<pre>\n&gt; a\n&gt;\n&gt;\n&gt; b</pre>"),
        ("a\r\n\r\n\r\nb", "<pre>\na\r\n\r\n\r\nb</pre>"),
        ("\n*a*", "<pre>\n\n*a*</pre>"),
        ("*a*\n\n\n", "<p><em>a</em></p>"),
        ("```\n\n\na\n```\n\n*b*", "<pre><code>\n\na\n</code></pre>\n<p><em>b</em></p>"),
    ],
)
def test_lines_stay_as_they_are_laid_out(text: str, shown: str) -> None:
    assert render(text).strip() == shown


def test_answers_that_differ_in_marks_alone_are_shown_as_they_are_written(
    store: Store, item: Callable[..., Item]
) -> None:
    assert render_both("*a*", "_a_") == ("<pre>\n*a*</pre>", "<pre>\n_a_</pre>")
    assert render_both("*a*", "*b*") == (render("*a*"), render("*b*"))
    assert render_both("*a*", "*a*") == (render("*a*"), render("*a*"))
    store.add_items([item(0, first=ShownResponse("- a", True, ""), second=ShownResponse("* a", True, ""))])
    client = TestClient(annotation_app(store, TOKEN))
    client.get(f"/?token={TOKEN}")
    page = client.post("/name", data={"name": "Ada"}).text
    assert "<pre>\n- a</pre>" in page
    assert "<pre>\n* a</pre>" in page


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("*a*<" * 40_000, id="very long"),
        pytest.param("*a " * 6_000, id="marks"),
        pytest.param("- a\n" * 4_000, id="lines"),
        pytest.param("|a" * 3_000 + "\n" + "|-" * 3_000 + "\n" + "|b" * 3_000, id="a wide table"),
        pytest.param("|a" * 60 + "\n" + "|-" * 60 + "\n" + "b\n" * 600, id="cells that the rows lack"),
    ],
)
def test_what_would_take_long_to_render_is_shown_plain(text: str) -> None:
    assert render(text) == Markup("<pre>\n{}</pre>").format(text)


def test_a_long_answer_of_many_marks_is_rendered() -> None:
    table = "| a | b | c |\n|---|---|---|\n" + "| *1* | _2_ | `3` |\n" * 50
    code = "```python\n" + "for _i, some_name in enumerate(a_list):\n    print(some_name[_i] * 2)\n" * 30 + "```"
    shown = render(f"{table}\n{code}\n\n" + "- An **item**.\n" * 50)
    assert [shown.count(tag) for tag in ("<tr>", "<pre><code>", "<li>")] == [51, 1, 50]


@pytest.mark.parametrize("text", ["```", "`" * 3_000, "~~~\n\n~~~", "- ", "#", "---", "| |\n|-|", "> \n> ---"])
def test_what_would_show_nothing_is_shown_as_it_is_written(text: str) -> None:
    assert render(text) == Markup("<pre>\n{}</pre>").format(text)


def test_labels_survive_kill_9_and_ctrl_c_ends_cleanly(
    serve: Callable[..., Any], item: Callable[..., Item], tmp_path: Path
) -> None:
    items = [item(number) for number in range(3)]
    server = serve(items)
    with Store(tmp_path / FILE_NAME) as store:  # as the page would, from another process
        store.record(items[0].id, store.annotator("Ada"), "first")
    assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
    server.start()
    status, output, error = server.end(signal.SIGINT)
    assert (status, error) == (0, "")
    assert f"{tmp_path / FILE_NAME}: 1" in output
    assert (tmp_path / "rounds/0/slow_path/labels.jsonl").read_text(encoding="utf-8").count("\n") == 1


def test_mistakes_are_answered_in_a_sentence(
    serve: Callable[..., Any], item: Callable[..., Item], tmp_path: Path
) -> None:
    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "cool_rlhf.run", "stage=annotate", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        return done.stderr

    assert "holds no rounds/R/slow_path/pairs.jsonl" in said(f"output_dir={tmp_path / 'empty'}")
    server = serve([item(0)])
    assert f"annotate.port is {server.port}" in said(f"output_dir={tmp_path}", f"annotate.port={server.port}")
    assert "annotate.token must be 16 or more" in said(f"output_dir={tmp_path}", "annotate.token=short")
    bad = tmp_path / "rounds/1/slow_path/pairs.jsonl"
    write_pairs_to_label(bad, [item(1)])
    bad.write_text(bad.read_text(encoding="utf-8").replace("question 1", ""), encoding="utf-8")
    assert f"{bad}, row 1" in said(f"output_dir={tmp_path}")
