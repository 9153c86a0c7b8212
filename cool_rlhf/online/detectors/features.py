"""What layout features are made of: how often a text has a mark, and how it is put there and taken away."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import median
from typing import TypeVar

import regex

from cool_rlhf.online.text import Span, sentence_spans, word_spans

Item = TypeVar("Item")
TextEditor = Callable[[str], str]
Adder = Callable[[Sequence[str]], TextEditor]  # from the late texts that have a feature: puts it in as they do
_STOP = regex.compile(r"(?<!\.|^[ \t]*\d+)\.(?=\s|$)|。", regex.MULTILINE)  # not a list's number


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


def spread(free: Sequence[Item], count: int) -> list[Item]:
    """``count`` of them from the first on, evenly spread; all where there are fewer."""
    count = min(count, len(free))
    return [free[len(free) * k // count] for k in range(count)]


def _nearest(free: Sequence[Span], places: Sequence[float], length: int, count: int) -> list[Span]:
    """``count`` stretches of a text of ``length`` characters that stand most nearly where marks usually do.
    ``places``: where those stand, 0 the start of a text and 1 its end; an even sample of them counts."""
    left, chosen = sorted(free), []
    ordered = sorted(places) or [1.0]
    for k in range(min(count, len(left))):
        place = length * (median(ordered) if count == 1 else ordered[int((k + 0.5) / count * len(ordered))])
        after = bisect_left(left, place, key=itemgetter(0))
        at = min(range(max(0, after - 1), min(after + 1, len(left))), key=lambda i: abs(left[i][0] - place))
        chosen.append(left.pop(at))
    return sorted(chosen)


def clear_of(spans: Sequence[Span], taken: Sequence[Span]) -> list[Span]:
    """Those that neither overlap one of ``taken``, which do not overlap each other, nor, where they are places between
    characters, touch one."""
    ends = [end for _, end in taken]

    def is_clear(start: int, end: int) -> bool:
        at = bisect_left(ends, start if start == end else start + 1)
        return at == len(taken) or (end < taken[at][0] if start == end else end <= taken[at][0])

    return [(start, end) for start, end in spans if is_clear(start, end)]


def _replaced(text: str, spans: Sequence[Span], instead: Callable[[str], str]) -> str:
    for start, end in sorted(spans, reverse=True):
        text = text[:start] + instead(text[start:end]) + text[end:]
    return text


def ended(pattern: str, otherwise: str) -> Adder:
    """The commonest run of marks for as large a share of the full stops as it usually is, where it usually stands; one
    behind the text where none is left."""
    found = compiled(pattern)

    def add(texts: Sequence[str]) -> TextEditor:
        marks = commonest(texts, pattern, otherwise)
        runs = [[match.start() / len(text) for match in found.finditer(text)] for text in texts]
        stops = [sum(1 for _ in _STOP.finditer(text)) for text in texts]
        share = usual([len(run) / (len(run) + n) for run, n in zip(runs, stops, strict=True) if run], 1.0)
        places = [place for run in runs for place in run]

        def edit(text: str) -> str:
            free = [match.span() for match in _STOP.finditer(text)]
            present = sum(1 for _ in found.finditer(text))
            more = max(1, round(share * (present + len(free))) - present)
            chosen = _nearest(free, places, len(text), more)
            return _replaced(text, chosen, lambda _: marks) if chosen else text + marks

        return edit

    return add


def placed(pattern: str, otherwise: str) -> Adder:
    """The commonest match, as often as usual and where it usually stands: in front, behind, or between sentences."""
    found = compiled(pattern)

    def add(texts: Sequence[str]) -> TextEditor:
        marks = commonest(texts, pattern, otherwise)
        matches = [[(match, text) for match in found.finditer(text)] for text in texts]
        often = round(usual([float(len(of_text)) for of_text in matches], 1.0))
        places = [match.start() / max(1, len(text) - len(match[0])) for of_text in matches for match, text in of_text]

        def edit(text: str) -> str:
            taken = [match.span() for match in found.finditer(text)]
            ends = dict.fromkeys([0, *(end for _, end in sentence_spans(text)), len(text)])
            free = clear_of([(end, end) for end in ends], taken)
            for at, _ in reversed(_nearest(free, places, len(text), max(1, often - len(taken)))):
                text = text[:at] + marks + (text[at:].lstrip(" ") if marks.endswith(" ") else text[at:])
            return text

        return edit

    return add


def enclosed(pattern: str, opening: str, closing: str) -> Adder:
    """Every line between marks where late texts mostly are as a whole, else so many words as usually, as often as
    usual: the first ones, and others evenly spread.

    ``pattern``: three groups, the opening mark, what it encloses, and the closing mark.
    """
    found = compiled(pattern)

    def add(texts: Sequence[str]) -> TextEditor:
        matches = [(match, text) for text in texts for match in found.finditer(text)]
        pairs = Counter((match[1], match[3]) for match, _ in matches)
        first, last = pairs.most_common(1)[0][0] if pairs else (opening, closing)
        alike = [(match, text) for match, text in matches if (match[1], match[3]) == (first, last)]
        whole = usual([len(match[0]) / len(text) for match, text in alike], 0.0) > 0.8
        length = max(1, round(usual([len(word_spans(match[2])) for match, _ in alike], 3)))
        often = round(usual([float(sum(1 for _ in found.finditer(text))) for text in texts], 1.0))

        def edit(text: str) -> str:
            if whole:
                return regex.sub(r"^.*\S", lambda line: first + line[0] + last, text, flags=regex.MULTILINE)
            taken = [match.span() for match in found.finditer(text)]
            free = clear_of(_runs(text, length), taken)
            return _replaced(text, spread(free, max(1, often - len(taken))), lambda said: first + said + last)

        return edit

    return add


def _runs(text: str, length: int) -> list[Span]:
    """Stretches of so many words, one after the other; the last of a line may be shorter."""
    runs = []
    for line in regex.finditer(r".+", text):
        spans = [(line.start() + start, line.start() + end) for start, end in word_spans(line[0])]
        runs += [(spans[at][0], spans[min(at + length, len(spans)) - 1][1]) for at in range(0, len(spans), length)]
    return runs


def bared(pattern: str) -> TextEditor:
    """What stands between marks (:func:`enclosed`) without them, also within others."""
    found = compiled(pattern)

    def remove(text: str) -> str:
        while (changed := found.sub(r"\2", text)) != text:
            text = changed
        return text

    return remove
