"""Numbers and text as a reader should see them."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any

# Control characters, those that turn the direction of a line, and lone surrogates, which no encoding can write.
HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_TEXT = 4000  # characters shown of one turn


def number_text(value: float) -> str:
    """Three significant figures, without exponents where a person would not write them."""
    if value < 0:
        return f"−{number_text(-value)}"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def cut(text: str) -> str:
    left = len(text) - LONGEST_TEXT
    return text if left <= 0 else f"{text[:LONGEST_TEXT]} … ({left:,} more characters)"


def visible(value: Any) -> Any:
    """Text from data with the characters of HIDDEN written out; markup as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", value)


def signed(value: float) -> str:
    return ("+" if value > 0 else "−" if value < 0 else "±") + number_text(abs(value))


def time_text(time: datetime) -> str:
    """To the minute, with its zone, which ``time`` has to know."""
    return time.strftime("%Y-%m-%d %H:%M %Z")
