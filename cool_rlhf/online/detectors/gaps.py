"""What stands between words, where no other detector looks after it: blanks and marks of any kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from statistics import median

import regex

from cool_rlhf.online.detectors.amounts import fewer, more
from cool_rlhf.online.detectors.features import Feature, TextEditor, spread
from cool_rlhf.online.detectors.marks import EMOJI, SINGLE
from cool_rlhf.online.patterns import Candidate, drift
from cool_rlhf.online.responses import Evidence
from cool_rlhf.online.text import is_character, word_spans

BEFORE, BETWEEN, BEHIND = "before the first word", "between words", "behind the last word"
CHARACTERS = "between characters"  # of scripts that put no blanks between words
POINT = "within a figure or a name"  # as in 37.42, example.com and e.g.
Gap = tuple[str, str]  # where, and what stands there
Placed = tuple[str, int, int]  # where, and from where to where in the text

# Marks that layout counts wherever they stand, and the gaps that these and a full stop make with one blank or line
# breaks; a line may begin with a list's mark, a heading's or a quotation's. Marks that layout counts in pairs alone,
# such as quotation marks, or asterisks around a word, are odd: where the pairs are what counts, layout explains them.
_KNOWN_MARK = rf"(?:{SINGLE}|{EMOJI})"
_DOTS = r"\.{3,}"
_KNOWN = regex.compile(
    rf"(?:{_KNOWN_MARK}|{_DOTS}|\.(?!\.))*+(?: |\n+(?:[-+#>]+ )?)?(?:{_KNOWN_MARK}|{_DOTS})*+| -- |[-+#]+ ",
    regex.VERSION1,
)
_ODD = regex.compile(
    rf"(?P<before>[ ]+(?=\n))|(?P<behind>(?<=\n)[ ]+)|(?P<wide>[ ]{{2,}})"
    rf"|(?:{_KNOWN_MARK}|{_DOTS})(*SKIP)(*FAIL)|\.\.| \.(?!\.)|\.(*SKIP)(*FAIL)|[^ \n]",
    regex.VERSION1,
)
_UNSEEN = regex.compile(r"\p{Cf}")
_TIGHT = "."  # a sentence's end without a blank behind it
_SENTENCE_ENDS = regex.compile(r"(?<=[\p{L}\p{M}])\.\s*(?=\p{Lu}|\p{Lo})")  # \p{Lo}: letters that have no capitals
_LOOSE = " "  # a blank between characters
_ANY = "punctuation"  # within the text, whatever the mark and whether it is odd
_NAMES = {
    _TIGHT: "no blank behind sentences",
    _LOOSE: "blanks between characters",
    _ANY: "punctuation between words",
}
_BLANKS = {"before": " \n", "behind": "\n ", "wide": "  "}  # the marks that blanks are: about a line break, or several
_INSTEAD = {
    " \n": (r" +(?=\n)", ""),
    "\n ": (r"(?<=\n) +", ""),
    "  ": (r" {2,}", " "),
    "..": (r"(?<!\.)\.\.(?!\.)", "."),
    " .": (r" \.(?!\.)", "."),
}


@dataclass(frozen=True)
class GapDetector:
    """Each odd mark between or around the words of at least ``least`` late responses, such as a semicolon, two blanks,
    a hyphen, a full stop without a blank behind it, or a blank between Chinese characters.

    Where SFT has the mark too, more of it than usual is a pattern of its own, and where SFT mostly does, fewer
    (:mod:`amounts`), also of all punctuation together. Adding makes ordinary gaps to such as hold the mark, as many as
    late responses usually have; removing takes the mark out of all of them, or of as many as are more than usual. Every
    word stays. What comes with other patterns, such as a phrase that holds such a gap, is theirs.
    """

    name: str = "gaps"
    least: int = 5

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        late = evidence.late()
        counts = Counter(mark for response in late for mark in _marks(response.text))
        marks = sorted(mark for mark, count in counts.items() if count >= self.least)
        usual = sorted({mark for response in evidence.reference() for mark in _marks(response.text)})
        patterns = [
            *(pattern for mark in marks for pattern in more(_feature(mark), evidence, self.name, True, word_spans)),
            *(pattern for mark in [*usual, _ANY] for pattern in fewer(_feature(mark), evidence, self.name, True)),
        ]
        return [candidate for pattern in patterns for candidate in drift(pattern, evidence)]


def _feature(mark: str) -> Feature:
    return Feature(
        key=_ANY if mark == _ANY else repr(mark),
        description=_NAMES.get(mark, f"{mark!r} between words or around them"),
        count=lambda text: float(_marks(text)[mark] if mark != _ANY else _punctuated(text)),
        add=partial(_marked, mark),
        remove=partial(_without, mark=mark),
    )


def _marked(mark: str, texts: Sequence[str]) -> TextEditor:
    """Puts the mark into the gaps that most often have it in ``texts``, until there are as many as usually."""
    holding = Counter(gap for text in texts for gap in _gaps(text) if _holds(gap, mark))
    if not holding:
        return lambda text: text
    gap = holding.most_common(1)[0][0]
    alike = [text for text in texts if gap in _gaps(text)]
    count = round(median(_gaps(text).count(gap) for text in alike))
    place = median(_place(text, gap) for text in alike)
    return lambda text: _with(text, gap, mark, max(1, count - _gaps(text).count(gap)), place)


def _spans(text: str) -> list[Placed]:
    """Where each gap stands, the outer ones first and last."""
    words = word_spans(text)
    if not words:
        return []
    dense = [is_character(text[start:end]) for start, end in words]
    places = [CHARACTERS if all(both) else BETWEEN for both in pairwise(dense)]
    inner = [
        (
            POINT if text[one[1] : other[0]] == _TIGHT and not _SENTENCE_ENDS.match(text, one[1]) else where,
            one[1],
            other[0],
        )
        for where, (one, other) in zip(places, pairwise(words), strict=True)
    ]
    return [(BEFORE, 0, words[0][0]), *inner, (BEHIND, words[-1][1], len(text))]


@lru_cache(maxsize=65536)
def _gaps(text: str) -> tuple[Gap, ...]:
    return tuple((where, text[start:end]) for where, start, end in _spans(text))


@lru_cache(maxsize=4096)
def _odd(gap: Gap) -> frozenset[str]:
    """The odd marks of a gap."""
    where, said = gap
    if where == BETWEEN and said == _TIGHT:
        return frozenset({_TIGHT})
    if where == CHARACTERS and said == _LOOSE:
        return frozenset({_LOOSE})
    said = said.lstrip() if where == BEFORE else said.rstrip() if where == BEHIND else said  # layout counts these
    if _KNOWN.fullmatch(said):
        return frozenset()
    in_front = " ." if where == BETWEEN and said.endswith(" .") else ""  # of a word, as in .NET
    marks = (_BLANKS.get(found.lastgroup or "", found[0]) for found in _ODD.finditer(said))
    return frozenset(mark for mark in marks if mark != in_front)


def _holds(gap: Gap, mark: str) -> bool:
    if mark != _ANY:
        return mark in _odd(gap)
    where, said = gap  # not the hyphen of a compound, nor the comma of 3,000
    return regex.search(r"\p{P}", said) is not None and (where == CHARACTERS or (where == BETWEEN and " " in said))


@lru_cache(maxsize=65536)
def _marks(text: str) -> Counter[str]:
    """How many gaps of a text have each odd mark."""
    return Counter(mark for gap in _gaps(text) for mark in _odd(gap))


@lru_cache(maxsize=65536)
def _punctuated(text: str) -> int:
    return sum(_holds(gap, _ANY) for gap in _gaps(text))


def _ordinary(gap: Gap, mark: str) -> str:
    """A gap without an odd mark."""
    where, said = gap
    if mark == _TIGHT:
        return f"{said} "
    if mark == _ANY:
        return "" if where == CHARACTERS else " "
    bare = regex.sub(*_INSTEAD[mark], said) if mark in _INSTEAD else said.replace(mark, "")
    if where == CHARACTERS:
        return bare
    if where == BETWEEN:
        parts = _UNSEEN.fullmatch(mark) or regex.search(r"\s", bare)
        return bare if parts else f"{bare} "
    return bare.lstrip() if where == BEFORE else bare.rstrip()


def _place(text: str, gap: Gap) -> float:
    """Which of a text's gaps it is in the mean, 0 the first of them and 1 the last."""
    at = [index for index, each in enumerate(_gaps(text)) if each == gap]
    return sum(at) / len(at) / max(1, len(_gaps(text)) - 1)


def _with(text: str, gap: Gap, mark: str, count: int, place: float) -> str:
    """``count`` ordinary gaps of ``text`` as that one: evenly spread, or a single one where ``place`` says."""
    where, said = gap
    spans, ordinary = _spans(text), _ordinary(gap, mark)
    if where in (BEFORE, BEHIND):
        return _replaced(text, [span for span in spans if span[0] == where], said)
    free = [(at, span) for at, span in enumerate(spans) if span[0] == where and text[span[1] : span[2]] == ordinary]
    if mark == _TIGHT:
        free = [(at, span) for at, span in free if _SENTENCE_ENDS.match(text, span[1])]
    if count <= 1:
        at = place * (len(spans) - 1)
        return _replaced(text, [span for _, span in sorted(free, key=lambda each: abs(each[0] - at))[:1]], said)
    return _replaced(text, [span for _, span in spread(free, count)], said)


def _without(text: str, mark: str) -> str:
    for where, start, end in reversed(_spans(text)):
        gap = where, text[start:end]
        if _holds(gap, mark):
            text = text[:start] + _ordinary(gap, mark) + text[end:]
    return text


def _replaced(text: str, spans: Sequence[Placed], instead: str) -> str:
    for _, start, end in sorted(spans, reverse=True, key=lambda span: span[1]):
        text = text[:start] + instead + text[end:]
    return text
