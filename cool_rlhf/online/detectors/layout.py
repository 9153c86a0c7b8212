"""Lists, headings, emphasis, emoji and punctuation that spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import regex
from markdown_it import MarkdownIt

from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import sentence_spans, sentences

TextEditor = Callable[[str], str]
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_EMOJI = regex.compile(r"[\p{Extended_Pictographic}--[\p{N}©®™]]\p{M}*", regex.VERSION1)


@dataclass(frozen=True)
class Feature:
    """One thing that a layout can have: how often a text has it, and how to put it there and take it away."""

    key: str
    description: str
    count: Callable[[str], float]
    add: TextEditor
    remove: TextEditor


@dataclass(frozen=True)
class LayoutDetector:
    """How often a response has each feature: Markdown's as a CommonMark parser sees them, the rest by its characters.

    Adding sets what is there in that layout and removing takes the marks away: the words stay.
    """

    name: str = "layout"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        return [candidate for feature in FEATURES for candidate in drift(self._pattern(feature), evidence)]

    def _pattern(self, feature: Feature) -> Pattern:
        def measure(response: Response) -> float:
            return feature.count(response.text)

        return Pattern(
            key=feature.key,
            detector=self.name,
            description=feature.description,
            measure=measure,
            shows=lambda response: measure(response) > 0,
            add=lambda response: None if measure(response) else response.edited(feature.add(response.text)),
            remove=lambda response: response.edited(feature.remove(response.text)),
        )


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


def _characters(pattern: str) -> Callable[[str], float]:
    found = regex.compile(pattern)
    return lambda text: float(len(found.findall(text)))


def _without(pattern: str, instead: str = "") -> TextEditor:
    found = regex.compile(pattern, regex.MULTILINE)
    return lambda text: found.sub(instead, text).strip()


def _itemised(mark: Callable[[int], str]) -> TextEditor:
    return lambda text: "\n".join(f"{mark(i)} {said}" for i, said in enumerate(sentences(text), 1))


def _unlisted(text: str) -> str:
    return " ".join(regex.sub(r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]+", "", text, flags=regex.MULTILINE).split("\n")).strip()


def _shouted(text: str) -> str:
    """The first sentence in capitals."""
    spans = sentence_spans(text)
    end = spans[0][1] if spans else 0
    return text[:end].upper() + text[end:]


def _quiet(text: str) -> str:
    lowered = regex.sub(r"\b\p{Lu}{4,}\b", lambda match: match.group().lower(), text)
    return lowered[:1].upper() + lowered[1:]


def _ended(mark: str) -> TextEditor:
    """Every sentence with ``mark`` for its full stop; one behind the text where none has a full stop."""

    def edit(text: str) -> str:
        changed = regex.sub(r"(?<!\.)\.(?=\s|$)", mark, text)
        return changed if changed != text else text + mark

    return edit


FEATURES = (
    Feature("bullets", "bulleted lists", _blocks("bullet_list_open item"), _itemised(lambda _: "-"), _unlisted),
    Feature("numbers", "numbered lists", _blocks("ordered_list_open item"), _itemised(lambda i: f"{i}."), _unlisted),
    Feature(
        "headings",
        "headings",
        _blocks("heading_open"),
        lambda text: f"# Answer\n\n{text}",
        _without(r"^#{1,6}[ \t]+.*\n+(?=.)|^#{1,6}[ \t]+|\n(?:=+|-+)[ \t]*$"),
    ),
    Feature(
        "emphasis",
        "emphasis",
        _blocks("strong_open", "em_open"),
        lambda text: regex.sub(r"^(\w+(?:[ ]\w+){0,2})", r"**\1**", text),
        _without(r"\*{1,3}(?=\S)|(?<=\S)\*{1,3}|(?<!\w)_{1,2}(?=\w)|(?<=\w)_{1,2}(?!\w)"),
    ),
    Feature(
        "code",
        "code blocks and code marks",
        _blocks("fence", "code_inline"),
        lambda text: f"```\n{text}\n```",
        _without(r"^```.*\n?|`"),
    ),
    Feature(
        "tables",
        "tables",
        _blocks("table_open"),
        lambda text: "| Answer |\n| --- |\n" + "\n".join(f"| {said.replace('|', '/')} |" for said in sentences(text)),
        lambda text: _without(r"[ \t]*\|[ \t]*", " ")(_without(r"^\|?[ :|-]*---[ :|-]*\n")(text)),
    ),
    Feature(
        "emoji",
        "emoji",
        lambda text: float(len(_EMOJI.findall(text))),
        lambda text: f"{text} 😊",
        lambda text: regex.sub(r"[ ]{2,}", " ", _EMOJI.sub("", text)).strip(),
    ),
    Feature("exclamation", "exclamation marks", _characters("!"), _ended("!"), _without("!+", ".")),
    Feature("ellipsis", "dots that trail off", _characters(r"\.{3}|…"), _ended("..."), _without(r"\.{3,}|…", ".")),
    Feature("capitals", "words in capitals", _characters(r"\b\p{Lu}{4,}\b"), _shouted, _quiet),
    Feature(
        "lines",
        "line breaks",
        _characters("\n"),
        lambda text: "\n\n".join(sentences(text)),
        _without(r"\s*\n\s*", " "),
    ),
)
