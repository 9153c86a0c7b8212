"""Lists, headings, emphasis, code and tables, as a CommonMark parser sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import regex
from markdown_it import MarkdownIt

from cool_rlhf.online.detectors.features import (
    Feature,
    TextEditor,
    commonest,
    compiled,
    enclosed,
    spread,
    usual,
    without_marks,
)
from cool_rlhf.online.text import sentence_spans, sentences

_MARKDOWN = MarkdownIt("commonmark").enable("table")
_emphasised = enclosed(r"(?<![\w*_])(\*{1,3}|_{1,3})(?=\S)([^*_\n]+)(?<=\S)(\1)(?![\w*_])", "**", "**")
_marked_as_code = enclosed(r"(?<!`)(`{1,2})(?!`)([^`\n]+)(\1)(?!`)", "`", "`")

_BULLET, _NUMBER = r"[-*+]", r"\d{1,9}[.)]"
_HEADING = compiled(r"^#{1,6}[ \t]+.*$|^.+\n(?:=+|-+)[ \t]*$")


@lru_cache(maxsize=65536)
def _markdown(text: str) -> dict[str, int]:
    """Markdown's building blocks and how often each stands in a text."""
    counts: dict[str, int] = {}
    lists: list[str] = []
    for token in _MARKDOWN.parse(text):
        if token.type in ("bullet_list_open", "ordered_list_open"):
            lists.append(token.type)
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
        kind = f"{lists[-1]} item" if token.type == "list_item_open" else token.type
        for name in [kind, *(child.type for child in token.children or ())]:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _blocks(*kinds: str) -> Callable[[str], float]:
    return lambda text: float(sum(_markdown(text).get(kind, 0) for kind in kinds))


_HEADINGS = _blocks("heading_open")


def _in_prose(text: str, edit: TextEditor) -> str:
    """``text`` with each of its paragraphs edited; lists, headings, code, tables and quotations stay as they are."""
    lines = text.split("\n")
    for token in reversed(_MARKDOWN.parse(text)):
        if token.type == "paragraph_open" and token.level == 0 and token.map:
            start, end = token.map
            lines[start:end] = [edit("\n".join(lines[start:end]))]
    return "\n".join(lines)


def _bulleted(texts: Sequence[str]) -> TextEditor:
    mark = commonest(texts, r"^[ \t]*([-*+])[ \t]", "-")
    return lambda text: _in_prose(text, lambda said: "\n".join(f"{mark} {one}" for one in sentences(said)))


def _numbered(texts: Sequence[str]) -> TextEditor:
    mark = commonest(texts, r"^[ \t]*\d+([.)])[ \t]", ".")

    def edit(text: str) -> str:
        return _in_prose(text, lambda said: "\n".join(f"{i}{mark} {one}" for i, one in enumerate(sentences(said), 1)))

    return edit


def _unlisted(marker: str) -> TextEditor:
    """Items that follow each other line by line become one line without the markers; code stays as it is."""
    item = compiled(rf"^[ \t]*{marker}(?:[ \t]+|$)")
    any_item = rf"^[ \t]*(?:{_BULLET}|{_NUMBER})(?:[ \t]|$)"
    items = compiled(
        rf"^(?P<fence>```+|~~~+)[\s\S]*?(?:^(?P=fence)|\Z)(*SKIP)(*FAIL)"
        rf"|(?:{item.pattern}.*(?:\n(?!{any_item})[ \t]+\S.*)*+(?:\n|\Z))+"
    )

    def joined(found: regex.Match[str]) -> str:
        lines = [item.sub("", line).strip() for line in found[0].split("\n")]
        indent = regex.match(r"[ \t]*", found[0])[0]
        return indent + " ".join(filter(None, lines)) + "\n" * found[0].endswith("\n")

    return lambda text: items.sub(joined, text).strip()


def _headed(texts: Sequence[str]) -> TextEditor:
    """The commonest heading in front, and where there are usually more, others between sentences, evenly spread."""
    heading = commonest(texts, _HEADING.pattern, "# Answer")
    often = round(usual([_HEADINGS(text) for text in texts], 1.0))

    def edit(text: str) -> str:
        taken = [match.span() for match in _HEADING.finditer(text)]
        starts = [at for at, _ in sentence_spans(text) if not any(first <= at < last for first, last in taken)] or [0]
        for at in reversed(spread(starts, max(1, often - len(taken)))):
            before = text[:at].rstrip()
            text = f"{before}\n\n{heading}\n\n{text[at:]}" if before else f"{heading}\n\n{text}"
        return text

    return edit


def _coded(texts: Sequence[str]) -> TextEditor:
    """Inline marks or a fence around everything, whichever more of the texts have."""
    fenced = sum("fence" in _markdown(text) for text in texts)
    if 2 * fenced < len(texts):
        return _marked_as_code(texts)
    fence = commonest(texts, r"^```\w*$", "```")
    return lambda text: f"{fence}\n{text}\n```"


def _tabled(_texts: Sequence[str]) -> TextEditor:
    def rows(said: str) -> str:
        return "| Answer |\n| --- |\n" + "\n".join(f"| {one.replace('|', '/')} |" for one in sentences(said))

    return lambda text: _in_prose(text, rows)


def _untabled(text: str) -> str:
    return without_marks(r"(?:(?<![ \t])[ \t]++)?\|[ \t]*+", " ")(without_marks(r"^(?=.*---)[ :|-]++\n")(text))


MARKDOWN = (
    Feature("bullets", "bulleted lists", _blocks("bullet_list_open item"), _bulleted, _unlisted(_BULLET)),
    Feature("numbers", "numbered lists", _blocks("ordered_list_open item"), _numbered, _unlisted(_NUMBER)),
    Feature(
        "headings",
        "headings",
        _HEADINGS,
        _headed,
        without_marks(r"^#{1,6}[ \t]+.*\n+(?=.)|^#{1,6}[ \t]+|\n(?:=+|-+)[ \t]*$"),
    ),
    Feature(
        "emphasis",
        "emphasis",
        _blocks("strong_open", "em_open"),
        _emphasised,
        without_marks(r"\*{1,3}(?=\S)|(?<=\S)\*{1,3}|(?<!\w)_{1,2}(?=\w)|(?<=\w)_{1,2}(?!\w)"),
    ),
    Feature(
        "code", "code blocks and code marks", _blocks("fence", "code_inline"), _coded, without_marks(r"^```.*\n?|`")
    ),
    Feature("tables", "tables", _blocks("table_open"), _tabled, _untabled),
)
