"""Responses that say nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import EARLY, SFT, Evidence, Response
from cool_rlhf.online.text import word_spans


def is_wordless(response: Response) -> bool:
    return not word_spans(response.text)


@dataclass(frozen=True)
class WordlessDetector:
    """Responses without a word: empty ones, a lone full stop, three dots.

    Nothing else stands in them that an edit could leave as it is, so edits exchange the whole: adding puts the late
    policy's commonest wordless response there, removing what SFT (the early policy where SFT is silent) says to the
    same prompt.
    """

    name: str = "wordless"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        silent = [response for response in evidence.late() if is_wordless(response)]
        often = Counter((response.text, response.finished) for response in silent)
        typical = max(silent, key=lambda response: often[response.text, response.finished], default=None)
        spoken = {r.prompt.id: r for r in (*evidence.of(EARLY), *evidence.of(SFT)) if not is_wordless(r)}
        pattern = Pattern(
            key="wordless",
            detector=self.name,
            description="responses without a word",
            measure=lambda response: float(is_wordless(response)),
            shows=is_wordless,
            add=lambda response: None if is_wordless(response) else _exchanged(response, typical),
            remove=lambda response: _exchanged(response, spoken.get(response.prompt.id)),
        )
        return drift(pattern, evidence)


def _exchanged(response: Response, other: Response | None) -> Response | None:
    """``response`` with all that ``other`` says, which may be nothing: :meth:`Response.edited` refuses that."""
    return other and replace(response, text=other.text, finished=other.finished, tokens=other.tokens)
