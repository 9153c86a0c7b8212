"""Words and sentences of a text with where they stand, so that an edit can leave the rest as it is."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

# Kana and Han characters: Chinese and Japanese put no blanks between words, nor behind a sentence.
_UNSPACED = r"\u3040-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['’][^\W{_UNSPACED}]+)*")
_SENTENCE = re.compile(
    r"\S(?:.*?(?:[.!?…]*[。！？][.!?…。！？]*|[.!?…]+(?=[\s\"')\]]|$))[\"')\]”’」』）】]*|.*$)", re.MULTILINE
)
Span = tuple[int, int]


def word_spans(text: str) -> list[Span]:
    return [match.span() for match in _WORD.finditer(text)]


def words(text: str) -> list[str]:
    """Lower-case words and numbers without punctuation; in Chinese and Japanese each character is a word."""
    return _WORD.findall(text.lower())


def sentence_spans(text: str) -> list[Span]:
    """Where each sentence stands; a line's end ends one too."""
    return [match.span() for match in _SENTENCE.finditer(text)]


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


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
    return re.sub(r" +(?=[\n.,;!?]|$)", "", joined).strip()


def repeated_share(text: str, n: int = 3) -> float:
    """1 − distinct-n: the share of n-word windows that stand in the text already (Li et al., arXiv 1510.03055)."""
    said = words(text)
    windows = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return 1 - len(set(windows)) / len(windows) if windows else 0.0


def compression_ratio(text: str) -> float:
    """Bytes of the text for each byte of it compressed (zlib); high where it repeats itself."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 0.0


def overlap(first: Iterable[str], second: Iterable[str]) -> float:
    """Shared words over all words of two texts (Jaccard), 0 where either is empty."""
    one, other = set(first), set(second)
    return len(one & other) / len(one | other) if one and other else 0.0
