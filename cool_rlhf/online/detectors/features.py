"""What layout features are made of: how often a text has a mark, and how it is put there and taken away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import regex

from cool_rlhf.online.text import sentence_spans, word_spans

TextEditor = Callable[[str], str]
Adder = Callable[[Sequence[str]], TextEditor]  # from the late texts that have a feature: puts it in as they do


@dataclass(frozen=True)
class Feature:
    """One thing that a layout can have: how often a text has it, and how to put it there and take it away."""

    key: str
    description: str
    count: Callable[[str], float]
    add: Adder
    remove: TextEditor


def compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.MULTILINE | regex.VERSION1)


def number_of(pattern: str) -> Callable[[str], float]:
    found = compiled(pattern)
    return lambda text: float(sum(1 for _ in found.finditer(text)))


def without_marks(pattern: str, instead: str = "") -> TextEditor:
    found = compiled(pattern)
    return lambda text: found.sub(instead, text).strip()


def commonest(texts: Sequence[str], pattern: str, otherwise: str) -> str:
    """What ``pattern`` matches (its first group, where it has one) in most texts; ``otherwise`` where in none."""
    found = compiled(pattern)
    group = min(found.groups, 1)
    said = Counter(match for text in texts for match in dict.fromkeys(m[group] for m in found.finditer(text)))
    return said.most_common(1)[0][0] if said else otherwise


def usual(values: Sequence[float], otherwise: float) -> float:
    return float(median(values)) if values else otherwise


def ended(pattern: str, otherwise: str) -> Adder:
    """Every sentence with the commonest run of marks for its full stop; one behind the text where none has one."""

    def add(texts: Sequence[str]) -> TextEditor:
        marks = commonest(texts, pattern, otherwise)

        def edit(text: str) -> str:
            changed = regex.sub(r"(?<!\.)\.(?=\s|$)|。", lambda _: marks, text)
            return changed if changed != text else text + marks

        return edit

    return add


def placed(pattern: str, otherwise: str) -> Adder:
    """The commonest match where it usually stands: in front, behind, or between sentences."""
    found = compiled(pattern)

    def add(texts: Sequence[str]) -> TextEditor:
        marks = commonest(texts, pattern, otherwise)
        places = [m.start() / max(1, len(text) - len(m[0])) for text in texts for m in found.finditer(text)]
        place = usual(places, 1.0)

        def edit(text: str) -> str:
            ends = [0, *(end for _, end in sentence_spans(text)), len(text)]
            at = min(ends, key=lambda end: abs(end - place * len(text)))
            return text[:at] + marks + (text[at:].lstrip(" ") if marks.endswith(" ") else text[at:])

        return edit

    return add


def enclosed(pattern: str, opening: str, closing: str) -> Adder:
    """Every line between marks where late texts mostly are as a whole, else the first words, as many as usually.

    ``pattern``: three groups, the opening mark, what it encloses, and the closing mark.
    """

    def add(texts: Sequence[str]) -> TextEditor:
        found = compiled(pattern)
        matches = [(match, text) for text in texts for match in found.finditer(text)]
        pairs = Counter((match[1], match[3]) for match, _ in matches)
        first, last = pairs.most_common(1)[0][0] if pairs else (opening, closing)
        alike = [(match, text) for match, text in matches if (match[1], match[3]) == (first, last)]
        whole = usual([len(match[0]) / len(text) for match, text in alike], 0.0) > 0.8
        count = max(1, round(usual([len(word_spans(match[2])) for match, _ in alike], 3)))

        def edit(text: str) -> str:
            if whole:
                return regex.sub(r"^.*\S", lambda line: first + line[0] + last, text, flags=regex.MULTILINE)
            spans = word_spans(text.partition("\n")[0])[:count]
            if not spans:
                return text
            start, end = spans[0][0], spans[-1][1]
            return text[:start] + first + text[start:end] + last + text[end:]

        return edit

    return add


def bared(pattern: str) -> TextEditor:
    """What stands between marks (:func:`enclosed`) without them, also within others."""
    found = compiled(pattern)

    def remove(text: str) -> str:
        while (changed := found.sub(r"\2", text)) != text:
            text = changed
        return text

    return remove
