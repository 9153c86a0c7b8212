"""From how much of something on a response shows it: of what SFT never does any, of what it does more than usual, and
of what it mostly does fewer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from cool_rlhf.online.detectors.features import Feature, TextEditor
from cool_rlhf.online.patterns import Editor, Pattern
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import Span, sentence_spans, word_spans

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
        return _until(edit, self.shows)

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


@dataclass(frozen=True)
class Lack:
    """Having none of what ``count`` counts, or fewer, in all and for each word, than all but few of SFT's responses of
    the domain, which have at least ``least`` and that ``rate``. ``middle``: their median rate.

    What is too short to hold half of one at that rate lacks nothing.
    """

    count: Callable[[str], float]
    least: Mapping[str, tuple[float, float]]
    middle: Mapping[str, float]

    def measure(self, response: Response) -> float:
        return -_rate(self.count, response.text) if response.domain in self.least else 0.0

    def shows(self, response: Response) -> bool:
        if len(word_spans(response.text)) * self.middle.get(response.domain, 0.0) < 0.5:
            return False
        count, rate = self.count(response.text), _rate(self.count, response.text)
        least, least_rate = self.least[response.domain]
        return count == 0 or (count < least and rate < least_rate)

    def adding(self, edit: TextEditor) -> Editor:
        return _until(edit, self.shows)

    def removing(self, edit: TextEditor) -> Editor:
        return _until(edit, lambda response: not self.shows(response))


def _rate(count: Callable[[str], float], text: str) -> float:
    """For each word."""
    return count(text) / max(1, len(word_spans(text)))


def _until(edit: TextEditor, holds: Callable[[Response], bool]) -> Editor:
    """``edit`` for responses of which something does not hold, and does so afterwards."""

    def edited(response: Response) -> Response | None:
        changed = None if holds(response) else response.edited(edit(response.text))
        return changed if changed is not None and holds(changed) else None

    return edited


def more(
    feature: Feature,
    evidence: Evidence,
    detector: str,
    broad: bool = False,
    spans: Callable[[str], Sequence[Span]] = sentence_spans,
) -> list[Pattern]:
    """Patterns of having a feature, and of having more of it than usual, see :func:`amounts`: put in as the late
    responses that show them have it. ``spans``: see :meth:`Amount.removing`."""
    return [
        Pattern(
            key=amount.key(feature.key),
            detector=detector,
            description=amount.described(feature.description),
            measure=amount.measure,
            shows=amount.shows,
            add=amount.adding(feature.add([r.text for r in evidence.late() if amount.shows(r)])),
            remove=amount.removing(feature.remove, spans),
            broad=broad,
        )
        for amount in amounts(feature.count, evidence)
    ]


def fewer(feature: Feature, evidence: Evidence, detector: str, broad: bool = False) -> list[Pattern]:
    """The pattern of having fewer, where most of SFT's responses of a domain have some: added by taking all out, and
    taken out by putting in as many as SFT's have."""
    said = {domain: [response.text for response in evidence.reference(domain)] for domain in evidence.domains}
    said = {domain: texts for domain, texts in said.items() if texts and median(map(feature.count, texts)) > 0}
    if not said:
        return []
    rates = {domain: [_rate(feature.count, text) for text in texts] for domain, texts in said.items()}
    least = {domain: (_least([*map(feature.count, texts)]), _least(rates[domain])) for domain, texts in said.items()}
    lack = Lack(feature.count, least, {domain: median(of_domain) for domain, of_domain in rates.items()})
    usual = [response.text for domain in said for response in evidence.reference(domain) if not lack.shows(response)]
    return [
        Pattern(
            key=f"fewer {feature.key}",
            detector=detector,
            description=f"{feature.description}, fewer than usual",
            measure=lack.measure,
            shows=lack.shows,
            add=lack.adding(feature.remove),
            remove=lack.removing(feature.add(usual)),
            broad=broad,
        )
    ]


def _least(values: Sequence[float]) -> float:
    """What all but few have at least."""
    return float(np.quantile(values, 1 - FEW, method="inverted_cdf"))


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
