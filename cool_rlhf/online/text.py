"""Words and sentences of a text with where they stand, so that an edit can leave the rest as it is."""

from __future__ import annotations

import zlib
from collections.abc import Sequence, Set
from functools import lru_cache
from itertools import pairwise

import regex

# Scripts without blanks between words. A character there, and in all scripts a letter within a word, keeps its vowel
# signs, accents and joiners: `\w` of the standard library ends a word at each of them.
_UNSPACED = r"[[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&\p{L}]"
_PART = rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}][[\p{{L}}\p{{N}}\p{{M}}\u200c\u200d]--{_UNSPACED}]*+"
_WORD = regex.compile(rf"{_UNSPACED}\p{{M}}*|{_PART}(?:(?:['’]|_+){_PART})*", regex.VERSION1)

_CHARACTER = regex.compile(rf"{_UNSPACED}\p{{M}}*", regex.VERSION1)

_ENDS = ".!?…؟۔।॥።။។"  # behind a sentence, a blank behind them
_GOES_ON = r"^[ \t]*\d+|\b(?:Dr|Mr|Mrs|Ms|Prof|St|Fig|vs|cf|(?i:e\.g|i\.e))"  # a list's number, an abbreviation
_SENTENCE = regex.compile(
    rf"\S(?:.*?(?<![{_ENDS}]{{2}})"  # a run of them is tried from its start alone
    rf"(?:[{_ENDS}]*+[。！？][{_ENDS}。！？]*+|(?=[{_ENDS}])(?<!{_GOES_ON})[{_ENDS}]++(?=[\s\"')\]]|$))"
    r"[\"')\]”’」』）】]*|.*$)",
    regex.MULTILINE,
)
Span = tuple[int, int]


# Detectors ask for the same texts' words one after the other. So many texts are remembered.
REMEMBERED = 4096


def word_spans(text: str) -> list[Span]:
    return list(_word_spans(text))


def words(text: str) -> list[str]:
    """Lower-case words and numbers without punctuation; in scripts that put no blanks between words (Chinese, Japanese,
    Thai, Lao, Khmer, Burmese) each character is a word, with the marks on it."""
    return list(_words(text))


def is_character(word: str) -> bool:
    """Whether it is a word of a script without blanks between words."""
    return _CHARACTER.fullmatch(word) is not None


def sentence_spans(text: str) -> list[Span]:
    """Where each sentence stands; a line's end ends one too, a point behind an abbreviation does not."""
    return list(_sentence_spans(text))


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in _sentence_spans(text)]


@lru_cache(REMEMBERED)
def _word_spans(text: str) -> tuple[Span, ...]:
    return tuple(match.span() for match in _WORD.finditer(text))


@lru_cache(REMEMBERED)
def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


@lru_cache(REMEMBERED)
def _sentence_spans(text: str) -> tuple[Span, ...]:
    return tuple(match.span() for match in _SENTENCE.finditer(text))


def without(text: str, spans: Sequence[Span]) -> str:
    """``text`` with some stretches cut out, and one blank left where there was one before or behind them."""
    kept, position = [], 0
    for start, end in sorted(spans):
        kept.append(text[position:start])
        position = max(position, end)
    kept.append(text[position:])
    joined = kept[0]
    for part in kept[1:]:
        blank = " " if joined.endswith(" ") or part.startswith(" ") else ""
        joined = joined.rstrip(" ") + blank + part.lstrip(" ") if joined.strip() else part
    return regex.sub(rf"(?<! ) ++(?=[\n,;،؛{_ENDS}]|$)", "", joined).strip()


def repeated_share(text: str, n: int = 3) -> float:
    """1 − distinct-n: the share of n-word windows that stand in the text already (Li et al., arXiv 1510.03055)."""
    said = words(text)
    windows = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return 1 - len(set(windows)) / len(windows) if windows else 0.0


def said_again(text: str, least_words: int = 1) -> list[Span]:
    """Sentences of at least so many words that the text has said already, whatever their case."""
    seen: set[str] = set()
    again = []
    for start, end in sentence_spans(text):
        said = text[start:end].lower()
        if said in seen and len(word_spans(said)) >= least_words:
            again.append((start, end))
        seen.add(said)
    return again


def stuttered(text: str) -> list[Span]:
    """Words, and twos of words, that are said again at once, with nothing but a blank in front of them. Where words
    have no blanks between them, and saying one twice is grammar, those that are said three times or more."""
    spans = word_spans(text)
    said = [text[start:end].lower() for start, end in spans]
    gaps = [text[one[1] : other[0]] for one, other in pairwise(spans)]

    def stands_again(at: int, n: int) -> bool:
        return 0 <= at <= len(said) - 2 * n and said[at : at + n] == said[at + n : at + 2 * n]

    again, at = [], 0
    while at < len(spans):
        n = next((n for n in (1, 2) if stands_again(at, n)), 0)
        between = gaps[at : at + 2 * n - 1]
        thrice = not any(between) and (stands_again(at + n, n) or stands_again(at - n, n))
        if n and (thrice or all(map(str.isspace, between))):
            again.append((spans[at + n][0], spans[at + 2 * n - 1][1]))
        at += n or 1
    return again


def compression_ratio(text: str) -> float:
    """Bytes of the text for each byte of it compressed (zlib); high where it repeats itself."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 0.0


def overlap(one: Set[str], other: Set[str]) -> float:
    """Shared words over all words of two texts (Jaccard); 1 of two that have none."""
    return len(one & other) / len(one | other) if one or other else 1.0
