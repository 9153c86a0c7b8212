"""Responses that break off."""

from __future__ import annotations

from dataclasses import dataclass

import regex

from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import sentence_spans, word_spans

_OPEN_END = regex.compile(r"(?:[\p{L}\p{N}]\p{M}*|[,;،؛\-–—])\s*$")


def breaks_off(text: str) -> bool:
    """Whether a text ends in a letter, a digit, a comma or a dash rather than in something that closes it."""
    return _OPEN_END.search(text) is not None


@dataclass(frozen=True)
class EndingDetector:
    """Two kinds: responses that hit the token limit, and responses that end without a closing mark.

    The first is added by scoring the same text as unfinished and removed by scoring it as finished; the second by
    cutting the last words off and by cutting back to the last whole sentence (a full stop where there is none).
    """

    name: str = "endings"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        unfinished = Pattern(
            key="unfinished",
            detector=self.name,
            description="responses that hit the token limit",
            measure=lambda response: float(not response.finished),
            shows=lambda response: not response.finished,
            add=lambda response: response.edited(response.text, finished=False),
            remove=lambda response: response.edited(response.text, finished=True),
        )
        broken = Pattern(
            key="broken off",
            detector=self.name,
            description="responses that end without a closing mark",
            measure=lambda response: float(breaks_off(response.text)),
            shows=lambda response: breaks_off(response.text),
            add=_break_off,
            remove=_close,
        )
        return drift(unfinished, evidence) + drift(broken, evidence)


def _break_off(response: Response) -> Response | None:
    """The last quarter of the last sentence gone, and at least its closing mark."""
    sentences = sentence_spans(response.text)
    spans = [span for span in word_spans(response.text) if span[0] >= sentences[-1][0]] if sentences else []
    if not spans:
        return None
    kept = spans[: max(1, len(spans) - max(1, len(spans) // 4))] if len(spans) > 1 else spans
    return response.edited(response.text[: kept[-1][1]])


def _close(response: Response) -> Response | None:
    whole = [end for start, end in sentence_spans(response.text) if not breaks_off(response.text[start:end])]
    return response.edited(response.text[: whole[-1]] if whole else response.text.rstrip(" ,;-") + ".")
