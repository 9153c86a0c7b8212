"""Lists, headings, emphasis, emoji and punctuation that spread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import regex
from markdown_it import MarkdownIt

from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import sentence_spans, sentences, word_spans

TextEditor = Callable[[str], str]
Adder = Callable[[Sequence[str]], TextEditor]  # from the late texts that have a feature: puts it in as they do
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_EMOJI = regex.compile(r"[\p{Extended_Pictographic}--[\p{N}©®™]]\p{M}*\u200d?", regex.VERSION1)
_CAPITALS = r"\b\p{Lu}{4,}\b"
_EMPHASISED = r"(?<![\w*_])(\*{1,3}|_{1,3})(?=\S)([^*_\n]+)(?<=\S)\1(?![\w*_])"
_INLINE_CODE = r"(?<!`)(`{1,2})(?!`)([^`\n]+)\1(?!`)"


@dataclass(frozen=True)
class Feature:
    """One thing that a layout can have: how often a text has it, and how to put it there and take it away."""

    key: str
    description: str
    count: Callable[[str], float]
    add: Adder
    remove: TextEditor


@dataclass(frozen=True)
class LayoutDetector:
    """How often a response has each feature: Markdown's as a CommonMark parser sees them, the rest by its characters.

    Adding sets what is there in that layout, with the marks that most late responses have; removing takes the marks
    away: the words stay, but for a heading's.
    """

    name: str = "layout"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        return [candidate for feature in FEATURES for candidate in drift(self._pattern(feature, evidence), evidence)]

    def _pattern(self, feature: Feature, evidence: Evidence) -> Pattern:
        def measure(response: Response) -> float:
            return feature.count(response.text)

        add = feature.add([response.text for response in evidence.late() if measure(response)])
        return Pattern(
            key=feature.key,
            detector=self.name,
            description=feature.description,
            measure=measure,
            shows=lambda response: measure(response) > 0,
            add=lambda response: None if measure(response) else response.edited(add(response.text)),
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


def _commonest(texts: Sequence[str], pattern: str, otherwise: str) -> str:
    """What ``pattern`` matches (its first group, where it has one) in most texts; ``otherwise`` where in none."""
    found = regex.compile(pattern, regex.MULTILINE)
    group = min(found.groups, 1)
    said = Counter(match for text in texts for match in dict.fromkeys(m[group] for m in found.finditer(text)))
    return said.most_common(1)[0][0] if said else otherwise


def _median(values: Sequence[float], otherwise: float) -> float:
    return float(median(values)) if values else otherwise


def _bulleted(texts: Sequence[str]) -> TextEditor:
    mark = _commonest(texts, r"^[ \t]*([-*+])[ \t]", "-")
    return lambda text: "\n".join(f"{mark} {said}" for said in sentences(text))


def _numbered(texts: Sequence[str]) -> TextEditor:
    mark = _commonest(texts, r"^[ \t]*\d+([.)])[ \t]", ".")
    return lambda text: "\n".join(f"{i}{mark} {said}" for i, said in enumerate(sentences(text), 1))


def _unlisted(text: str) -> str:
    return " ".join(regex.sub(r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]+", "", text, flags=regex.MULTILINE).split("\n")).strip()


def _headed(texts: Sequence[str]) -> TextEditor:
    heading = _commonest(texts, r"^#{1,6}[ \t]+.*$|^.+\n(?:=+|-+)[ \t]*$", "# Answer")
    return lambda text: f"{heading}\n\n{text}"


def _enclosed(texts: Sequence[str], pattern: str, otherwise: str) -> TextEditor:
    """The first words between marks, as many as usually stand there. ``pattern``: the mark and what it encloses."""
    mark = _commonest(texts, pattern, otherwise)
    usual = [len(word_spans(found[2])) for text in texts for found in regex.finditer(pattern, text) if found[1] == mark]
    count = max(1, round(_median(usual, 3)))

    def edit(text: str) -> str:
        spans = word_spans(text.partition("\n")[0])[:count]
        if not spans:
            return text
        start, end = spans[0][0], spans[-1][1]
        return f"{text[:start]}{mark}{text[start:end]}{mark}{text[end:]}"

    return edit


def _emphasised(texts: Sequence[str]) -> TextEditor:
    return _enclosed(texts, _EMPHASISED, "**")


def _coded(texts: Sequence[str]) -> TextEditor:
    """Inline marks or a fence around everything, whichever more of the texts have."""
    fenced = sum("fence" in _markdown(text) for text in texts)
    if 2 * fenced < len(texts):
        return _enclosed(texts, _INLINE_CODE, "`")
    fence = _commonest(texts, r"^```\w*$", "```")
    return lambda text: f"{fence}\n{text}\n```"


def _tabled(_texts: Sequence[str]) -> TextEditor:
    return lambda text: "| Answer |\n| --- |\n" + "\n".join(f"| {s.replace('|', '/')} |" for s in sentences(text))


def _with_emoji(texts: Sequence[str]) -> TextEditor:
    """The commonest run of emoji, in front or behind."""
    run = _commonest(texts, rf"(?V1)(?:{_EMOJI.pattern})+", "😊")
    places = [text.index(run) / len(text) for text in texts if run in text]
    return lambda text: f"{run} {text}" if _median(places, 1.0) < 0.5 else f"{text} {run}"


def _shouted(texts: Sequence[str]) -> TextEditor:
    """Sentences in capitals from the first on, until they are the share of the text that capitals usually are."""
    share = _median([_share_of_capitals(text) for text in texts], 0.0)

    def edit(text: str) -> str:
        end = next((end for _, end in sentence_spans(text) if end >= share * len(text)), len(text))
        return text[:end].upper() + text[end:]

    return edit


def _share_of_capitals(text: str) -> float:
    letters = regex.findall(r"\p{L}", text)
    return sum(letter.isupper() for letter in letters) / max(1, len(letters))


def _quiet(text: str) -> str:
    """Words in capitals and those beside them in small letters, but for the first letter of a sentence."""
    words = rf"(?:\b\p{{Lu}}+\b\W+)*{_CAPITALS}(?:\W+\b\p{{Lu}}+\b)*"
    lowered = regex.sub(words, lambda match: match.group().lower(), text)
    for start, _ in sentence_spans(lowered) if lowered != text else ():
        lowered = lowered[:start] + lowered[start].upper() + lowered[start + 1 :]
    return lowered


def _ended(pattern: str, otherwise: str) -> Adder:
    """Every sentence with the commonest run of marks for its full stop; one behind the text where none has one."""

    def add(texts: Sequence[str]) -> TextEditor:
        marks = _commonest(texts, pattern, otherwise)

        def edit(text: str) -> str:
            changed = regex.sub(r"(?<!\.)\.(?=\s|$)|。", marks, text)
            return changed if changed != text else text + marks

        return edit

    return add


def _broken_up(texts: Sequence[str]) -> TextEditor:
    breaks = _commonest([text.strip() for text in texts], r"\n+", "\n\n")
    return lambda text: breaks.join(sentences(text))


FEATURES = (
    Feature("bullets", "bulleted lists", _blocks("bullet_list_open item"), _bulleted, _unlisted),
    Feature("numbers", "numbered lists", _blocks("ordered_list_open item"), _numbered, _unlisted),
    Feature(
        "headings",
        "headings",
        _blocks("heading_open"),
        _headed,
        _without(r"^#{1,6}[ \t]+.*\n+(?=.)|^#{1,6}[ \t]+|\n(?:=+|-+)[ \t]*$"),
    ),
    Feature(
        "emphasis",
        "emphasis",
        _blocks("strong_open", "em_open"),
        _emphasised,
        _without(r"\*{1,3}(?=\S)|(?<=\S)\*{1,3}|(?<!\w)_{1,2}(?=\w)|(?<=\w)_{1,2}(?!\w)"),
    ),
    Feature("code", "code blocks and code marks", _blocks("fence", "code_inline"), _coded, _without(r"^```.*\n?|`")),
    Feature(
        "tables",
        "tables",
        _blocks("table_open"),
        _tabled,
        lambda text: _without(r"[ \t]*\|[ \t]*", " ")(_without(r"^\|?[ :|-]*---[ :|-]*\n")(text)),
    ),
    Feature(
        "emoji",
        "emoji",
        lambda text: float(len(_EMOJI.findall(text))),
        _with_emoji,
        lambda text: regex.sub(r"[ ]{2,}", " ", _EMOJI.sub("", text)).strip(),
    ),
    Feature("exclamation", "exclamation marks", _characters("[!！]"), _ended("[!！]+", "!"), _without("[!！]+", ".")),
    Feature(
        "ellipsis",
        "dots that trail off",
        _characters(r"\.{3}|…"),
        _ended(r"\.{3,}|…+", "..."),
        _without(r"\.{3,}|…+", "."),
    ),
    Feature("capitals", "words in capitals", _characters(_CAPITALS), _shouted, _quiet),
    Feature("lines", "line breaks", _characters("\n"), _broken_up, _without(r"\s*\n\s*", " ")),
)
