"""Responses that grow."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np

from cool_rlhf.online.detectors.donors import donor_sentences, grown
from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import sentence_spans


@dataclass(frozen=True)
class LengthDetector:
    """Tokens of each response. One is long above the 90 % quantile of its domain's SFT responses.

    Adding appends sentences of SFT's and early answers to other prompts, up to the late policy's median length: text
    that is as good as the policy's own and answers nothing. Removing cuts the last sentences down to SFT's median.
    """

    name: str = "length"
    quantile: float = 0.9

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        usual = {d: [r.tokens for r in evidence.reference(d)] for d in evidence.domains if evidence.reference(d)}
        bounds = {domain: float(np.quantile(tokens, self.quantile)) for domain, tokens in usual.items()}
        targets = {d: median(r.tokens for r in evidence.late(d)) for d in usual if evidence.late(d)}

        def add(response: Response) -> Response | None:
            return grown(response, donor_sentences(evidence, response), targets.get(response.domain, 0))

        def remove(response: Response) -> Response | None:
            ends = [end for _, end in sentence_spans(response.text)]
            if not ends:
                return None
            limit = median(usual[response.domain]) / response.tokens * len(response.text)
            return response.edited(response.text[: max([ends[0], *(end for end in ends if end <= limit)])])

        pattern = Pattern(
            key="length",
            detector=self.name,
            description="longer responses",
            measure=lambda response: float(response.tokens),
            shows=lambda response: response.tokens > bounds.get(response.domain, float("inf")),
            add=add,
            remove=remove,
        )
        return drift(pattern, evidence)
