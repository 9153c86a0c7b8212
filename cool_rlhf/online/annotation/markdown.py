"""Markdown of prompts and responses as HTML that can do nothing, and that hides nothing.

Responses are hostile text: a policy writes whatever scores well. HTML in them is shown as text. Links and images are
shown as they are written: an image would be fetched from wherever the response says, a link would lead there, and an
annotator should see an address rather than its label. What Markdown would leave out, such as cells beyond a table's
last column, is judged too: a text that would lose a letter is shown as it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

_LONGEST = 20_000  # characters; what is longer is shown as plain text, for nested marks take the parser seconds


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])
    parser.add_render_rule("fence", _fence)
    return parser.disable(["image", "link", "autolink", "reference", "entity"])


@lru_cache(maxsize=256)
def render(text: str) -> Markup:
    """Safe to stand in a page: tags of the parser's own, everything else escaped."""
    if len(text) <= _LONGEST:
        parser = _parser()
        tokens = parser.parse(text)
        for token in tokens:
            if token.type == "list_item_open" and token.info:  # a browser would count on from the first
                token.attrSet("value", token.info)
        if _letters(_shown(tokens)) == _letters([text]):
            return Markup(parser.renderer.render(tokens, parser.options, {}))
    return Markup("<pre>{}</pre>").format(text)


def _fence(_renderer: Any, tokens: Sequence[Token], at: int, _options: Any, _environment: Any) -> str:
    """A block of code beneath what stands behind its fence, which the parser would make a class of."""
    token = tokens[at]
    told = Markup("<small>{}</small>").format(token.info.strip()) if token.info.strip() else Markup()
    return told + Markup("<pre><code>{}</code></pre>\n").format(token.content)


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
