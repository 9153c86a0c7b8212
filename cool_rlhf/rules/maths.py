"""Whether the number that a response arrives at is the right one."""

from __future__ import annotations

import re
from fractions import Fraction

from cool_rlhf.protocols import Conversation, UserError

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_FRACTION = r"\s?/\s?\d+"
# A sign behind a digit or letter is a minus or a hyphen, not a sign. A mixed number comes first: 2 1/2 is none of 1/2.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.])[-−+])?(?:"
    rf"(?P<whole>{_WHOLE})[^\S\n]+(?P<part>\d+{_FRACTION})"
    rf"|(?P<plain>(?:{_WHOLE}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?!\w))?(?:{_FRACTION})?)"
    r")"
)
MOST_DIGITS = 1000  # of a number; a model that repeats a digit without end has no result
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX_FRACTION = re.compile(
    r"(?P<outer>(?<![\w.])[-−+])?\\[dt]?frac\{\s*(?P<upper>[-−+]?)\s*(\d+)\s*\}\{\s*(?P<lower>[-−+]?)\s*(\d+)\s*\}"
)
_BEFORE_FRACTION = re.compile(r"(?<=\d)(?=\\[dt]?frac)")
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\,)(?=\d{3})")


def exact_answer(messages: Conversation, response: str, domain: str, answer: str | None, finished: bool) -> float:
    """1 if the response's result equals the prompt's ``answer`` as a number, else 0.

    The result is the last number behind the last ``####`` (as GSM8K writes it), else in the last ``\\boxed{}``, else of
    the whole response; an answer is read in the same way, so GSM8K's worked solutions will do. Thousands commas,
    signs, decimals, fractions, mixed numbers (2 1/2) and powers of ten (1e5) are understood and compared exactly; units
    and currency signs are not looked at.

    Raises: UserError where the prompt has no answer, or one without a number.
    """
    if answer is None:
        raise UserError(
            f"the rule cool_rlhf.rules.maths:exact_answer needs an `answer` with every prompt of domain {domain!r}: "
            "add that field to its rows"
        )
    wanted = last_number(answer)
    if wanted is None:
        raise UserError(f"the `answer` {answer!r} of a prompt of domain {domain!r} holds no number to compare with")
    return float(last_number(response) == wanted)


def last_number(text: str) -> Fraction | None:
    """The number that ``text`` arrives at; None where it holds none, a fraction over zero or an endless one."""
    _, marked, result = text.rpartition("####")
    boxed = _BOXED.findall(text)
    if not marked:
        result = boxed[-1] if boxed else text
    found = list(_NUMBER.finditer(_plain(result)))
    if not found or len(found[-1][0]) > MOST_DIGITS:
        return None
    last = found[-1]
    if last["plain"]:
        return _signed(last, _quotient(last["plain"]))
    part = _quotient(last["part"])
    if part is None or part >= 1:  # 3 10/5 are two numbers
        return part
    return _signed(last, Fraction(last["whole"].replace(",", "")) + part)


def _plain(text: str) -> str:
    """LaTeX's fractions and thousands commas as they are written without it."""
    text = _LATEX_FRACTION.sub(_plain_fraction, _BEFORE_FRACTION.sub(" ", text))
    return _LATEX_COMMA.sub(",", text)


def _plain_fraction(match: re.Match[str]) -> str:
    """With one sign in front, which stands for all that the fraction has."""
    minus = sum(match[place] in ("-", "−") for place in ("outer", "upper", "lower")) % 2
    return f"{'-' if minus else ''}{match[3]}/{match[5]}"


def _signed(match: re.Match[str], value: Fraction | None) -> Fraction | None:
    return -value if value is not None and match["sign"] in ("-", "−") else value


def _quotient(text: str) -> Fraction | None:
    over, _, under = re.sub(r"[\s,]", "", text).partition("/")
    _, _, exponent = over.lower().partition("e")
    if (under and int(under) == 0) or abs(int(exponent or "0")) > MOST_DIGITS:
        return None
    return Fraction(over) / Fraction(under or "1")
