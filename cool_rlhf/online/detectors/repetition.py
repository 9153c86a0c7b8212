"""Responses that repeat themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cool_rlhf.online.detectors.donors import donor_sentences, grown
from cool_rlhf.online.patterns import Candidate, Editor, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import Span, compression_ratio, repeated_share, sentence_spans, without, word_spans


@dataclass(frozen=True)
class RepetitionDetector:
    """Two views of low diversity: 1 − distinct-3 (Li et al., arXiv 1510.03055) and the ratio of zlib's compression.

    A response shows it above the 95 % quantile of SFT's, and for distinct-3 above ``least`` in any case. Adding says
    the last sentence again until the share of repeated windows is at least ``least``; removing keeps every sentence
    and every run of three words once. As many words that are new are the placebo of compression, which longer texts
    have more of anyway. Of distinct-3 there is none: who repeats is paid for length or for repeating, and repeats.
    """

    name: str = "repetition"
    quantile: float = 0.95
    least: float = 0.15

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        views: list[tuple[str, str, Callable[[str], float], float, Editor | None]] = [
            ("distinct-3", "phrases repeated within a response", repeated_share, self.least, None),
            ("compression", "responses that compress well", compression_ratio, 0.0, self._new_words(evidence)),
        ]
        return [candidate for view in views for candidate in drift(self._pattern(*view, evidence), evidence)]

    def _pattern(
        self,
        key: str,
        description: str,
        measure: Callable[[str], float],
        least: float,
        placebo: Editor | None,
        evidence: Evidence,
    ) -> Pattern:
        usual = [measure(response.text) for response in evidence.reference()]
        bound = max(least, float(np.quantile(usual, self.quantile))) if usual else least
        return Pattern(
            key=key,
            detector=self.name,
            description=description,
            measure=lambda response: measure(response.text),
            shows=lambda response: measure(response.text) > bound,
            add=self._add,
            remove=_remove,
            placebo=placebo,
            family=self.name,
        )

    def _new_words(self, evidence: Evidence) -> Editor:
        def placebo(response: Response) -> Response | None:
            longer = self._add(response)
            return grown(response, donor_sentences(evidence, response), longer.tokens) if longer else None

        return placebo

    def _add(self, response: Response) -> Response | None:
        spans = sentence_spans(response.text)
        if not spans:
            return None
        start, end = spans[-1]
        text = response.text
        for _ in range(4):
            text = f"{text} {response.text[start:end]}"
            if repeated_share(text) >= 2 * self.least:
                break
        return response.edited(text)


def _remove(response: Response) -> Response | None:
    text = response.text
    seen: set[str] = set()
    again = []
    for start, end in sentence_spans(text):
        said = text[start:end].lower()
        if said in seen:
            again.append((start, end))
        seen.add(said)
    kept = without(text, again)
    return response.edited(without(kept, _repeated_runs(kept)))


def _repeated_runs(text: str) -> list[Span]:
    """Stretches whose three-word windows all stood in the text before."""
    spans = word_spans(text)
    seen: set[tuple[str, ...]] = set()
    repeated: list[Span] = []
    at = 0
    while at + 3 <= len(spans):
        window = tuple(text[start:end].lower() for start, end in spans[at : at + 3])
        if window in seen:
            repeated.append((spans[at][0], spans[at + 2][1]))
            at += 3
        else:
            seen.add(window)
            at += 1
    return repeated
