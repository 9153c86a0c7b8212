"""Lists, headings, emphasis, code and tables, as a CommonMark parser sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import regex
from markdown_it import MarkdownIt

from cool_rlhf.online.detectors.features import Feature, TextEditor, commonest, enclosed, without_marks
from cool_rlhf.online.text import sentences

_MARKDOWN = MarkdownIt("commonmark").enable("table")
_emphasised = enclosed(r"(?<![\w*_])(\*{1,3}|_{1,3})(?=\S)([^*_\n]+)(?<=\S)(\1)(?![\w*_])", "**", "**")
_marked_as_code = enclosed(r"(?<!`)(`{1,2})(?!`)([^`\n]+)(\1)(?!`)", "`", "`")


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


def _bulleted(texts: Sequence[str]) -> TextEditor:
    mark = commonest(texts, r"^[ \t]*([-*+])[ \t]", "-")
    return lambda text: "\n".join(f"{mark} {said}" for said in sentences(text))


def _numbered(texts: Sequence[str]) -> TextEditor:
    mark = commonest(texts, r"^[ \t]*\d+([.)])[ \t]", ".")
    return lambda text: "\n".join(f"{i}{mark} {said}" for i, said in enumerate(sentences(text), 1))


def _unlisted(text: str) -> str:
    return " ".join(regex.sub(r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]+", "", text, flags=regex.MULTILINE).split("\n")).strip()


def _headed(texts: Sequence[str]) -> TextEditor:
    heading = commonest(texts, r"^#{1,6}[ \t]+.*$|^.+\n(?:=+|-+)[ \t]*$", "# Answer")
    return lambda text: f"{heading}\n\n{text}"


def _coded(texts: Sequence[str]) -> TextEditor:
    """Inline marks or a fence around everything, whichever more of the texts have."""
    fenced = sum("fence" in _markdown(text) for text in texts)
    if 2 * fenced < len(texts):
        return _marked_as_code(texts)
    fence = commonest(texts, r"^```\w*$", "```")
    return lambda text: f"{fence}\n{text}\n```"


def _tabled(_texts: Sequence[str]) -> TextEditor:
    return lambda text: "| Answer |\n| --- |\n" + "\n".join(f"| {s.replace('|', '/')} |" for s in sentences(text))


def _untabled(text: str) -> str:
    return without_marks(r"[ \t]*\|[ \t]*", " ")(without_marks(r"^\|?[ :|-]*---[ :|-]*\n")(text))


MARKDOWN = (
    Feature("bullets", "bulleted lists", _blocks("bullet_list_open item"), _bulleted, _unlisted),
    Feature("numbers", "numbered lists", _blocks("ordered_list_open item"), _numbered, _unlisted),
    Feature(
        "headings",
        "headings",
        _blocks("heading_open"),
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
