"""Responses that grow, and responses that shrink."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np

from cool_rlhf.online.detectors.donors import donor_sentences, grown, sentences_on_the_subject
from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import sentence_spans, word_spans


@dataclass(frozen=True)
class LengthDetector:
    """Tokens of each response. One is long above the 90 % quantile of its domain's SFT responses, short below the 10 %
    quantile.

    Adding length appends sentences of SFT's and early answers, up to the late policy's median length: first of those to
    the same prompt that are no better, for a reward model that reads the question may pay for what is on its subject
    alone, then of those to other prompts. Removing cuts the last sentences down to SFT's median. Shortness is added by
    cutting down to the late policy's median, within the first sentence where that is shorter. Nothing takes it out
    again: what a short answer left unsaid is not known.
    """

    name: str = "length"
    quantile: float = 0.9

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        usual = {d: [r.tokens for r in evidence.reference(d)] for d in evidence.domains if evidence.reference(d)}
        longest = {domain: float(np.quantile(tokens, self.quantile)) for domain, tokens in usual.items()}
        shortest = {domain: float(np.quantile(tokens, 1 - self.quantile)) for domain, tokens in usual.items()}
        targets = {d: median(r.tokens for r in evidence.late(d)) for d in usual if evidence.late(d)}

        def lengthen(response: Response) -> Response | None:
            said = sentences_on_the_subject(evidence, response)
            if said is None:
                return None
            return grown(response, [*said, *donor_sentences(evidence, response)], targets.get(response.domain, 0))

        def shorten(response: Response) -> Response | None:
            if not response.finished:  # without its broken end it is better, and not for being short
                return None
            return _cut_short(response, targets.get(response.domain, float("inf")))

        longer = Pattern(
            key="length",
            detector=self.name,
            description="longer responses",
            measure=lambda response: float(response.tokens),
            shows=lambda response: response.tokens > longest.get(response.domain, float("inf")),
            add=lengthen,
            remove=lambda response: _cut(response, median(usual[response.domain])),
            broad=True,
            of_length=True,
        )
        shorter = Pattern(
            key="shortness",
            detector=self.name,
            description="shorter responses",
            measure=lambda response: -float(response.tokens),
            shows=lambda response: response.tokens < shortest.get(response.domain, 0.0),
            add=shorten,
            remove=None,
            of_length=True,
        )
        return [*drift(longer, evidence), *drift(shorter, evidence)]


def _cut(response: Response, tokens: float) -> Response | None:
    """``response`` without its last sentences, so that about ``tokens`` are left, but at least one sentence."""
    ends = [end for _, end in sentence_spans(response.text)]
    if not ends:
        return None
    return response.edited(response.text[: max([ends[0], *(end for end in ends if end <= _limit(response, tokens))])])


def _cut_short(response: Response, tokens: float) -> Response | None:
    """As :func:`_cut`, but where one sentence is too long already, its first words with its closing mark."""
    first = next(iter(sentence_spans(response.text)), None)
    if first is None or first[1] <= _limit(response, tokens):
        return _cut(response, tokens)
    ends = [end for _, end in word_spans(response.text) if end <= first[1]]
    if len(ends) < 2:
        return None
    kept = max([ends[0], *(end for end in ends[:-1] if end <= _limit(response, tokens))])
    closing = response.text[ends[-1] : first[1]] or "."
    return response.edited(response.text[:kept] + closing)


def _limit(response: Response, tokens: float) -> float:
    """Where in the text about ``tokens`` are said."""
    return tokens / response.tokens * len(response.text)
