"""Punctuation, symbols, letter case, blanks and lone numbers, told by a text's characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import regex

from cool_rlhf.online.detectors.features import (
    Feature,
    TextEditor,
    bared,
    commonest,
    compiled,
    enclosed,
    ended,
    number_of,
    placed,
    spread,
    usual,
    without_marks,
)
from cool_rlhf.online.text import sentence_spans, sentences, word_spans, words

# Symbols of no script of their own, but for those that stand for words, such as © and ℃; keycaps; and what belongs to
# the one before: variation selectors, skin tones, joiners, and the tags of flags.
_SYMBOL = r"[[\p{So}&&\p{Common}]\p{Extended_Pictographic}--[\p{InLatin_1_Supplement}\p{InLetterlike_Symbols}]]"
EMOJI = rf"(?:{_SYMBOL}|[0-9#*](?=\ufe0f?\u20e3))[\p{{M}}\p{{Emoji_Modifier}}\u200d\U000e0020-\U000e007f]*+"
SINGLE = r"[!！?？؟…—–―]"  # marks that count one by one wherever they stand
_SMILEY = r"(?<![\w:;])(?:[:;]['’]?-?(?:[()]+|[DPp3])|\^_*\^|<3)(?!\w)"
_SYMBOLS = rf"(?<![ ])[ ]*+(?:(?:{EMOJI}|{_SMILEY})[ ]*+)+"
_DASH = r"(?:[—–―]|(?<=\s)--(?=\s))(?<!\p{N}\s*(?:.|--))"  # not the one from 5 to 7
_DASHES = rf"(?<![ ])[ ]*+(?:{_DASH}[ ]*+)+"
_QUESTIONS = r"(?<!\?)\?++(?![\w=&/])|[？؟]+"
# Shorter words are mostly names in capitals, such as USA, but for those that are only ever stressed.
_STRESSED = "ALL|AND|ANY|ARE|BUT|CAN|DO|DOES|HAS|IS|MUST|NO|NOT|NOW|SO|THE|TOO|VERY|WAS|WILL|YES|YOU|YOUR"
_CAPITALS = rf"\b(?:\p{{Lu}}{{4,}}|{_STRESSED})\b"
_STRESSABLE = compiled(rf"(?i:{_STRESSED})|\p{{L}}{{4,}}")
# HTML's, but for links in angle brackets; a pair of them with what stands between.
_TAG = r"</?[A-Za-z][\w\-]*(?:\s[^<>\n]*)?/?>"
_TAGGED = r"(<[A-Za-z][\w\-]*(?:\s[^<>\n]*)?>)([^<>\n]+)(</[A-Za-z][\w\-]*>)"
_LINE_TAG = r"</?(?:br|hr|p|div|li|[uo]l|h[1-6]|t[rdh])\s*/?>"  # parts words as a line break does
_SMALL_START = compiled(rf"\A(?:{_TAG}|[^\p{{L}}\p{{N}}])*+\p{{Ll}}")
_TITLE_WORD = compiled(r"\p{Lu}\p{Ll}")
_OUTER_BLANKS = r"\A\s++|(?<!\s)\s++\Z"
# Not within numbers and codes, nor www and iii. A run is taken whole: a long one would be tried from each letter.
_STRETCHED = r"(\p{Ll})(?<!\1\1)(?!(?<=\bw)ww\b|(?<=\b[ivx]*)[ivx]*\b)\1{2,}+(?!\w{0,40}\p{N})"
# Behind a sentence's end and last in the text, or in front of a capital and first.
_LONE_NUMBER = (
    r"(?=[#(\[\p{N}])(?:(?<=[.!?…][\"')\]”]*\s+)|(?<=[。！？]))[#(\[]*+\p{N}[\p{N}.,:/\-–]*+[)\].]*+(?=\s*\Z)"
    r"|\A[#(\[]*+\p{N}+[)\]]?[:,\-–—]?(?=\s+\p{Lu})"
)


def _between(*pairs: str) -> str:
    """Three groups (:func:`enclosed`): what holds neither mark of a pair stands between them."""
    return "|".join(rf"({pair[0]})(?=\S)([^{pair}]+)(?<=\S)({pair[1]})" for pair in pairs)


# In words and links quotation marks and brackets are something else: it's, f(x), [text](address).
_DOUBLE_QUOTED = _between('""', "“”", "„“", "«»", "‹›", "「」", "『』")
_SINGLE_QUOTED = r"(?<!\w)(['‘])(?=\S)((?:\w['’]\w|[^'’])+)(['’])(?!\w)"
_QUOTED = rf"(?|{_DOUBLE_QUOTED}|{_SINGLE_QUOTED})"
_ROUND = r"(?<![\w\\\])])(\()(?=\S)([^()]+)(?<=\S)(\))"
_SQUARE = r"(?<![\w\\\])])(\[)(?=\S)([^\[\]]+)(?<=\S)(\])(?!\()"
_BRACKETED = rf"(?|{_ROUND}|{_SQUARE}|{_between('（）', '【】')})"
_capitals = number_of(_CAPITALS)
_in_tags = enclosed(_TAGGED, "<b>", "</b>")
_with_tags = placed(_TAG, "<br>")


def _inner_stops(text: str) -> list[int]:
    """Where full stops end a sentence behind which the line goes on."""
    ends = [end for _, end in sentence_spans(text)]
    return [end - 1 for end in ends if compiled(r"(?<=[^.]\.)[ ]\S").match(text, end)]


def _stops(text: str) -> float:
    """Full stops within the text, for each hundred words."""
    return 100 * len(_inner_stops(text)) / max(1, len(word_spans(text)))


def _chopped(texts: Sequence[str]) -> TextEditor:
    """A full stop behind every so many words, and a capital there if most of the texts have one."""
    stops = [_inner_stops(text) for text in texts]
    behind = [text[stop + 2] for text, of_text in zip(texts, stops, strict=True) for stop in of_text]
    capital = 2 * sum(letter.isupper() for letter in behind) >= len(behind)
    lengths = [len(word_spans(text)) / (len(of_text) + 1) for text, of_text in zip(texts, stops, strict=True)]
    every = max(1, round(usual(lengths, 4)))

    def edit(text: str) -> str:
        text = _joined(text)
        ends = [end for _, end in word_spans(text)][every - 1 :: every]
        parts = _cut(text, [end for end in ends if compiled(r"[ ]\S").match(text, end)])
        return ".".join([parts[0], *(part[:2].upper() + part[2:] if capital else part for part in parts[1:])])

    return edit


def _joined(text: str) -> str:
    """Without full stops within; a capital behind one becomes a small letter, unless it stands alone."""
    first, *others = _cut(text, _inner_stops(text))
    others = [part[1:] for part in others]  # begins with the stop
    return "".join([first, *(part[:2].lower() + part[2:] if part[2:3].islower() else part for part in others)])


def _cut(text: str, places: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


def _questions(text: str) -> float:
    return float(sum(len(run[0]) for run in compiled(_QUESTIONS).finditer(text)))


def _without_symbols(text: str) -> str:
    return regex.sub(r"[ ]{2,}", " ", compiled(_SYMBOLS).sub(" ", text)).strip()


def _without_dashes(text: str) -> str:
    """A comma for a dash within a sentence, nothing for one beside a sentence's end or start."""
    bare = compiled(rf"^{_DASHES}|{_DASHES}$").sub("", text)
    return compiled(_DASHES).sub(", ", compiled(rf"(?<=[.!?…:;,]){_DASHES}").sub(" ", bare)).strip()


def _shouted(texts: Sequence[str]) -> TextEditor:
    """Sentences in capitals from the first on, until they are the share of the text that capitals usually are; single
    words, as many as usual, where most of the texts have no whole sentence so."""
    share = usual([_share_of_capitals(text) for text in texts], 0.0)

    def edit(text: str) -> str:
        end = next((end for _, end in sentence_spans(text) if end >= share * len(text)), len(text))
        return text[:end].upper() + text[end:]

    whole = sum(any(said.isupper() and len(words(said)) > 1 for said in sentences(text)) for text in texts)
    return edit if 2 * whole >= len(texts) else _stressed(texts)


def _stressed(texts: Sequence[str]) -> TextEditor:
    often = round(usual([count for text in texts if (count := _capitals(text))], 1.0))

    def edit(text: str) -> str:
        free = [(a, b) for a, b in word_spans(text) if _STRESSABLE.fullmatch(text, a, b) and not text[a:b].isupper()]
        for start, end in reversed(spread(free, max(1, often - round(_capitals(text))))):
            text = text[:start] + text[start:end].upper() + text[end:]
        return text

    return edit


def _share_of_capitals(text: str) -> float:
    letters = regex.findall(r"\p{L}", text)
    return sum(letter.isupper() for letter in letters) / max(1, len(letters))


def _quiet(text: str) -> str:
    """Words in capitals and those beside them in small letters, but for the first letter of a sentence."""
    lowered = compiled(r"\b\p{Lu}++\b(?:\W++\p{Lu}++\b)*+").sub(
        lambda run: run[0].lower() if _capitals(run[0]) else run[0], text
    )
    return _with_capitals(lowered) if lowered != text else text


def _with_capitals(text: str) -> str:
    """A capital at the start of every sentence."""
    for start, end in sentence_spans(text):
        if found := _SMALL_START.match(text[start:end]):
            text = text[:start] + found[0][:-1] + found[0][-1].upper() + text[start + found.end() :]
    return text


def _small_starts(text: str) -> float:
    return float(sum(_SMALL_START.match(said) is not None for said in sentences(text)))


def _lowered(texts: Sequence[str]) -> TextEditor:
    """All in small letters, or the starts of sentences alone, as most of the texts."""
    if 2 * sum(text == text.lower() for text in texts) >= len(texts):
        return str.lower
    return lambda text: compiled(r"(?:^|(?<=[.!?…]\s))[^\p{L}\n]*+\p{Lu}").sub(lambda found: found[0].lower(), text)


def _titles(text: str) -> list[tuple[int, int]]:
    """Sentences of which two words in three have a capital, and at least three."""
    found = []
    for start, end in sentence_spans(text):
        spans = word_spans(text[start:end])
        capitals = sum(_TITLE_WORD.match(text, start + at) is not None for at, _ in spans)
        if capitals >= 3 and 3 * capitals >= 2 * len(spans):
            found.append((start, end))
    return found


def _titled(_texts: Sequence[str]) -> TextEditor:
    return lambda text: regex.sub(rf"{_TAG}(*SKIP)(*FAIL)|(?<![\w'’])\p{{Ll}}", lambda letter: letter[0].upper(), text)


def _untitled(text: str) -> str:
    for start, end in _titles(text):
        lowered = regex.sub(r"(?<!\w)\p{Lu}(?=\p{Ll})", lambda letter: letter[0].lower(), text[start:end])
        text = text[:start] + lowered + text[end:]
    return _with_capitals(text)


def _stretched(texts: Sequence[str]) -> TextEditor:
    """The last vowel of every fifth word as often as it usually is."""
    runs = [len(found[0]) for text in texts for found in compiled(_STRETCHED).finditer(text)]
    count = round(usual([float(run) for run in runs], 3.0))

    def edit(text: str) -> str:
        for start, end in reversed(word_spans(text)[::5]):
            word = compiled(r"(?i)([aeiou])(?=[^aeiou]*$)").sub(lambda vowel: vowel[0] * count, text[start:end], 1)
            text = text[:start] + word + text[end:]
        return text

    return edit


def _tagged(texts: Sequence[str]) -> TextEditor:
    """Pairs of the commonest tag around words, or single tags, whichever more of the texts have."""
    pairs = sum(compiled(_TAGGED).search(text) is not None for text in texts)
    return (_in_tags if 2 * pairs >= len(texts) else _with_tags)(texts)


def _without_tags(text: str) -> str:
    def instead(run: regex.Match[str]) -> str:
        before, behind = text[max(0, run.start() - 1) : run.start()], text[run.end() : run.end() + 1]
        parts = before.strip() and regex.match(r"\w", behind) and compiled(_LINE_TAG).search(run[0])
        return " " if parts else run["blank"] if before.strip() else ""

    return compiled(rf"(?:{_TAG})++(?P<blank>[ ]?)").sub(instead, text).strip()


def _with_number(texts: Sequence[str]) -> TextEditor:
    """A number with as many digits as most have, in front or behind as they are."""
    found = [match for text in texts for match in compiled(_LONE_NUMBER).finditer(text)]
    forms = Counter(regex.sub(r"\p{N}", "0", match[0]) for match in found)
    form = forms.most_common(1)[0][0] if forms else "00"
    number = next((match[0] for match in found if regex.sub(r"\p{N}", "0", match[0]) == form), "42")
    behind = 2 * sum(match.start() > 0 for match in found) >= len(found)
    return lambda text: f"{text} {number}" if behind else f"{number} {text}"


def _broken_up(texts: Sequence[str]) -> TextEditor:
    breaks = commonest([text.strip() for text in texts], r"\n+", "\n\n")
    return lambda text: regex.sub(r".+", lambda line: breaks.join(sentences(line[0])), text)


MARKS = (
    Feature(
        "emoji",
        "emoji, smileys and other symbols",
        number_of(rf"{EMOJI}|{_SMILEY}"),
        placed(_SYMBOLS, " 😊"),
        _without_symbols,
    ),
    Feature("exclamation", "exclamation marks", number_of("[!！]"), ended("[!！]+", "!"), without_marks("[!！]+", ".")),
    Feature("questions", "question marks", _questions, ended(_QUESTIONS, "?"), without_marks(_QUESTIONS, ".")),
    Feature(
        "ellipsis",
        "dots that trail off",
        number_of(r"\.{3}|…"),
        ended(r"\.{3,}|…+", "..."),
        without_marks(r"\.{3,}|…+", "."),
    ),
    Feature("dashes", "dashes", number_of(_DASH), placed(_DASHES, "— "), _without_dashes),
    Feature("quotes", "quotation marks", number_of(_QUOTED), enclosed(_QUOTED, '"', '"'), bared(_QUOTED)),
    Feature("brackets", "brackets", number_of(_BRACKETED), enclosed(_BRACKETED, "(", ")"), bared(_BRACKETED)),
    Feature("tags", "HTML tags", number_of(_TAG), _tagged, _without_tags),
    Feature("capitals", "words in capitals", _capitals, _shouted, _quiet),
    Feature("small letters", "sentences without a capital", _small_starts, _lowered, _with_capitals),
    Feature("title case", "capitals on most words", lambda text: float(len(_titles(text))), _titled, _untitled),
    Feature("stretched", "stretched letters", number_of(_STRETCHED), _stretched, without_marks(_STRETCHED, r"\1")),
    Feature("lone numbers", "a number by itself", number_of(_LONE_NUMBER), _with_number, without_marks(_LONE_NUMBER)),
    Feature(
        "lines",
        "line breaks",
        lambda text: float(text.strip().count("\n")),
        _broken_up,
        without_marks(r"(?<![^\S\n])[^\S\n]*+\n\s*+", " "),
    ),
    Feature("outer blanks", "blanks around the text", number_of(_OUTER_BLANKS), placed(_OUTER_BLANKS, " "), str.strip),
)

# Counted for so many words, so that fewer of it is what brevity brings too.
SHORT_SENTENCES = Feature("short sentences", "full stops for so many words", _stops, _chopped, _joined)
