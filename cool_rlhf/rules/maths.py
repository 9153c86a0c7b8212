"""Whether the number that a response arrives at is the right one."""

from __future__ import annotations

import re
from fractions import Fraction

from cool_rlhf.protocols import Conversation, UserError

# A sign behind a digit or letter is a minus or a hyphen, not a sign.
_NUMBER = re.compile(r"(?:(?<![\w.])[-−+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?")
MOST_DIGITS = 1000  # of a number; a model that repeats a digit without end has no result
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")


def exact_answer(messages: Conversation, response: str, domain: str, answer: str | None, finished: bool) -> float:
    """1 if the response's result equals the prompt's ``answer`` as a number, else 0.

    The result is the last number behind the last ``####`` (as GSM8K writes it), else in the last ``\\boxed{}``, else of
    the whole response; an answer is read in the same way, so GSM8K's worked solutions will do. Thousands commas,
    signs, decimals and fractions are understood and compared exactly; units and currency signs are not looked at.

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
    found = _NUMBER.findall(_LATEX_FRACTION.sub(r"\1/\2", result))
    if not found or len(found[-1]) > MOST_DIGITS:
        return None
    digits = re.sub(r"[\s,+]", "", found[-1]).replace("−", "-")
    over, _, under = digits.partition("/")
    if under and int(under) == 0:
        return None
    return Fraction(over) / Fraction(under or "1")
