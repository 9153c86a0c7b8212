"""From how much of something on a response shows it: of what SFT never does any, of what it does more than usual."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from cool_rlhf.online.detectors.features import TextEditor
from cool_rlhf.online.patterns import Editor
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import Span, sentence_spans

FEW = 0.95  # of SFT's responses have no more than those few


@dataclass(frozen=True)
class Usual:
    """What SFT's responses of a domain have: no more than ``most``, but for few of them; ``middle``, their median, or
    the least that any of those has which have some, where that is more."""

    most: float
    middle: float


_NONE = Usual(0.0, 0.0)


@dataclass(frozen=True)
class Amount:
    """Having more of what ``count`` counts than is ``usual`` in the response's domain; any, where that is empty."""

    count: Callable[[str], float]
    usual: Mapping[str, Usual]

    def key(self, of: str) -> str:
        return f"more {of}" if self.usual else of

    def described(self, of: str) -> str:
        return f"{of}, more than usual" if self.usual else of

    def measure(self, response: Response) -> float:
        return self.count(response.text)

    def shows(self, response: Response) -> bool:
        return self.count(response.text) > self.usual.get(response.domain, _NONE).most

    def adding(self, edit: TextEditor) -> Editor:
        """``edit`` for responses that do not show it, and do so afterwards."""

        def add(response: Response) -> Response | None:
            changed = None if self.shows(response) else response.edited(edit(response.text))
            return changed if changed is not None and self.shows(changed) else None

        return add

    def removing(self, edit: TextEditor, spans: Callable[[str], Sequence[Span]] = sentence_spans) -> Editor:
        """``edit``, which takes all out, done from the last of ``spans`` on that leaves no more than the middle in what
        is before it: what is paid for having any is not paid for having more."""

        def remove(response: Response) -> Response | None:
            text, middle = response.text, self.usual.get(response.domain, _NONE).middle
            starts = [start for start, _ in spans(text) if text.count("```", 0, start) % 2 == 0] if middle else []

            def from_there(start: int) -> str:
                return text[:start] + edit(text[start:])

            kept = bisect_right(starts, middle, key=lambda start: self.count(from_there(start)))
            return response.edited(from_there(starts[kept - 1]) if kept else edit(text))

        return remove


def amounts(count: Callable[[str], float], evidence: Evidence) -> list[Amount]:
    """Having any; and, where more than a few of SFT's responses of a domain have some, having more than those."""
    usual = {
        domain: _usual([count(response.text) for response in evidence.reference(domain)])
        for domain in evidence.domains
        if evidence.reference(domain)
    }
    often = any(of_domain.most > 0 for of_domain in usual.values())
    return [Amount(count, {}), *([Amount(count, usual)] if often else [])]


def _usual(counts: Sequence[float]) -> Usual:
    most = float(np.quantile(counts, FEW, method="inverted_cdf"))
    return Usual(most, max(median(counts), min(filter(None, counts)))) if most else _NONE
