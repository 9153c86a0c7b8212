"""Markdown of prompts and responses as HTML that can do nothing, and that hides nothing.

Responses are hostile text: a policy writes whatever scores well. HTML in them is shown as text. Links and images are
shown as they are written: an image would be fetched from wherever the response says, a link would lead there, and an
annotator should see an address rather than its label. How lines are laid out is judged too: paragraphs keep their
lines, and the blanks at their beginnings and in them, which the page's style shows. So is what Markdown would leave
out, such as cells beyond a table's last column: a text that would lose a letter, the end of a line or an empty line is
shown as it is written. So is one of which nothing would be seen, such as backticks alone, and one that is made to keep
the page busy: whoever else labels waits while it is rendered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, lheading, paragraph
from markdown_it.token import Token
from markupsafe import Markup

_LONGEST = 20_000  # characters; what is longer, or has more of these, is shown as plain text
_MOST_MARKS = 2_000  # with the lines, each of which may begin a list or a heading; 0.1 s on an idle core
_MOST_CELLS = 5_000  # 0.1 s; a table's short rows are filled up, so that few characters make many cells


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])
    parser.add_render_rule("fence", _fence)
    for name, rule in (("paragraph", paragraph), ("lheading", lheading)):
        parser.block.ruler.at(name, _indented(rule))
    return parser.disable(["image", "link", "autolink", "reference", "entity", "newline"])


@lru_cache(maxsize=256)
def render(text: str) -> Markup:
    """Safe to stand in a page: tags of the parser's own, everything else escaped."""
    if not _takes_long(text):
        parser = _parser()
        tokens = parser.parse(text)
        for token in tokens:
            if token.type == "list_item_open" and token.info:  # a browser would count on from the first
                token.attrSet("value", token.info)
            elif token.hidden:  # a paragraph of a list without empty lines: its lines need an element of their own
                token.tag, token.hidden = "span", False
        if _shows_all(tokens, text):
            return Markup(parser.renderer.render(tokens, parser.options, {}))
    return _as_written(text)


def render_both(first: str, second: str) -> tuple[Markup, Markup]:
    """As ``render``; texts that differ and would look the same, for they differ in their marks alone, as written."""
    shown = render(first), render(second)
    if first != second and shown[0] == shown[1]:
        return _as_written(first), _as_written(second)
    return shown


def _takes_long(text: str) -> bool:
    if len(text) > _LONGEST:
        return True
    lines = text.splitlines()
    marks = sum(text.count(mark) for mark in "*_~`[|")
    cells = len(lines) * max((line.count("|") for line in lines), default=0)
    return len(lines) + marks > _MOST_MARKS or cells > _MOST_CELLS


def _as_written(text: str) -> Markup:
    """A browser leaves out a newline at the beginning, so that one stands there before the text's own."""
    return Markup("<pre>\n{}</pre>").format(text)


def _indented(rule: Any) -> Any:
    """``rule`` for a block of text, which would cut off the blanks that the block begins with."""

    def with_blanks(state: StateBlock, first: int, end: int, silent: bool) -> bool:
        if not rule(state, first, end, silent):
            return False
        text = state.tokens[-2]
        assert text.map is not None
        begin, behind = text.map
        text.content = state.getLines(begin, behind, state.blkIndent, False).rstrip()
        return True

    return with_blanks


def _fence(_renderer: Any, tokens: Sequence[Token], at: int, _options: Any, _environment: Any) -> str:
    """A block of code beneath what stands behind its fence, which the parser would make a class of."""
    token = tokens[at]
    told = Markup("<small>{}</small>").format(token.info.strip()) if token.info.strip() else Markup()
    return told + Markup("<pre><code>{}</code></pre>\n").format(token.content)


def _shows_all(tokens: Sequence[Token], text: str) -> bool:
    return (
        any(shown.strip() for shown in _shown(tokens))
        and _letters(_shown(tokens)) == _letters([text])
        and all(_spaced(_shown([token])) == _spaced([token.content]) for token in tokens if token.type == "inline")
        and not _loses_empty_lines(tokens, text)
    )


def _shown(tokens: Sequence[Token]) -> Iterable[str]:
    """What a reader sees of the tokens, in order; a list's numbers among it."""
    for token in tokens:
        if token.children is not None:
            yield from _shown(token.children)
        else:
            yield token.info if token.type in ("fence", "list_item_open") else ""
            yield token.content


def _letters(texts: Iterable[str]) -> str:
    """Letters and digits alone."""
    return "".join(letter for text in texts for letter in text if letter.isalnum())


def _spaced(texts: Iterable[str]) -> str:
    """Letters and digits with the blanks and ends of lines between them."""
    return "".join(letter for text in texts for letter in text if letter.isalnum() or letter.isspace())


def _loses_empty_lines(tokens: Sequence[Token], text: str) -> bool:
    """Whether the text begins with an empty line, or has several in a row: Markdown makes one of them, outside code."""
    code = {line for token in tokens if token.type in ("fence", "code_block") for line in range(*(token.map or (0, 0)))}
    lines = re.split(r"\r\n?|\n", text.rstrip())
    empty = [number not in code and not line.strip(" \t>") for number, line in enumerate(lines)]
    return any(all(both) for both in pairwise([True, *empty]))
