"""Markdown of prompts and responses as HTML that can do nothing.

Responses are hostile text: a policy writes whatever scores well. HTML in them is shown as text. Links and images are
shown as they are written: an image would be fetched from wherever the response says, a link would lead there, and an
annotator should see an address rather than its label.
"""

from __future__ import annotations

from functools import lru_cache

from markdown_it import MarkdownIt
from markupsafe import Markup

_LONGEST = 20_000  # characters; what is longer is shown as plain text, for nested marks take the parser seconds


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])
    return parser.disable(["image", "link", "autolink", "reference"])


@lru_cache(maxsize=256)
def render(text: str) -> Markup:
    """Safe to stand in a page: tags of the parser's own, everything else escaped."""
    if len(text) > _LONGEST:
        return Markup("<pre>{}</pre>").format(text)
    return Markup(_parser().render(text))
