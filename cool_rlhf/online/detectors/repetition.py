"""Responses that repeat themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cool_rlhf.online.detectors.donors import donor_sentences, grown
from cool_rlhf.online.detectors.features import spread, usual
from cool_rlhf.online.patterns import Candidate, Editor, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import (
    Span,
    compression_ratio,
    repeated_share,
    said_again,
    sentence_spans,
    sentences,
    stuttered,
    without,
    word_spans,
)


@dataclass(frozen=True)
class RepetitionDetector:
    """Four views of low diversity: words that are said twice at once, sentences of ``words`` at least that are said
    again, 1 − distinct-3 (Li et al., arXiv 1510.03055), and the ratio of zlib's compression.

    A response shows the second where it has one such sentence, and the others above the 95 % quantile of SFT's,
    distinct-3 above ``least`` in any case. Adding says as many words twice as late responses do, or the last sentence
    again: once, or until the share of repeated windows is twice ``least``. Removing keeps such words once, or every
    sentence and every run of three words. As many words that are
    new are the placebo of compression, which longer texts have more of anyway. Of the others there is none: who repeats
    is paid for length or for repeating, and repeats.
    """

    name: str = "repetition"
    quantile: float = 0.95
    least: float = 0.15
    words: int = 3

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        patterns = [
            self._pattern(
                "words",
                "words said twice at once",
                _stutter,
                self._usual(_stutter, evidence),
                self._twice(evidence),
                _remove_stutter,
            ),
            self._pattern("sentences", "sentences said again", self._said_again, 0.0, self._once_more, _remove),
            self._pattern(
                "distinct-3",
                "phrases repeated within a response",
                repeated_share,
                max(self.least, self._usual(repeated_share, evidence)),
                self._add,
                _remove,
            ),
            self._pattern(
                "compression",
                "responses that compress well",
                compression_ratio,
                self._usual(compression_ratio, evidence),
                self._add,
                _remove,
                self._new_words(evidence),
            ),
        ]
        return [candidate for pattern in patterns for candidate in drift(pattern, evidence)]

    def _pattern(
        self,
        key: str,
        description: str,
        measure: Callable[[str], float],
        bound: float,
        add: Editor,
        remove: Editor,
        placebo: Editor | None = None,
    ) -> Pattern:
        """Shown by responses whose ``measure`` is above ``bound``."""
        return Pattern(
            key=key,
            detector=self.name,
            description=description,
            measure=lambda response: measure(response.text),
            shows=lambda response: measure(response.text) > bound,
            add=add,
            remove=remove,
            placebo=placebo,
            family=self.name,
        )

    def _usual(self, measure: Callable[[str], float], evidence: Evidence) -> float:
        """What only few of SFT's responses exceed."""
        values = [measure(response.text) for response in evidence.reference()]
        return float(np.quantile(values, self.quantile)) if values else 0.0

    def _twice(self, evidence: Evidence) -> Editor:
        texts = [response.text for response in evidence.late()]
        share = usual([_stutter(text) / len(word_spans(text)) for text in texts if _stutter(text)], 0.0)

        def add(response: Response) -> Response | None:
            spans = word_spans(response.text)
            text = response.text
            for start, end in reversed(spread(spans, max(1, round(share * len(spans))))):
                text = f"{text[:end]} {text[start:end]}{text[end:]}"
            return response.edited(text)

        return add

    def _said_again(self, text: str) -> float:
        """How many sentences of it."""
        return float(len(said_again(text, self.words)))

    def _once_more(self, response: Response) -> Response | None:
        long = [said for said in sentences(response.text) if len(word_spans(said)) >= self.words]
        return response.edited(f"{response.text} {long[-1]}") if long else None

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


def _stutter(text: str) -> float:
    return float(len(stuttered(text)))


def _remove_stutter(response: Response) -> Response | None:
    return response.edited(without(response.text, stuttered(response.text)))


def _remove(response: Response) -> Response | None:
    kept = without(response.text, said_again(response.text))
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
