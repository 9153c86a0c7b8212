"""Markdown, punctuation, symbols, letter case and blanks that spread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from cool_rlhf.online.detectors.amounts import fewer, more
from cool_rlhf.online.detectors.markdown import MARKDOWN
from cool_rlhf.online.detectors.marks import MARKS, SHORT_SENTENCES
from cool_rlhf.online.patterns import Candidate, drift
from cool_rlhf.online.responses import Evidence

FEATURES = (*MARKDOWN, *MARKS, SHORT_SENTENCES)


@dataclass(frozen=True)
class LayoutDetector:
    """How often a response has each feature: Markdown's as a CommonMark parser sees them, the rest by its characters.

    Where SFT has a feature too, more of it than usual is a pattern of its own, and where SFT mostly does, fewer
    (:mod:`amounts`). Adding sets what is there in that layout, with the marks that most late responses have and as many
    as they have; removing takes the marks away, or as many as are more than usual: the words stay, but for a heading's
    and a lone number. Fewer are added by removing and removed by adding, as SFT's responses have them.
    """

    name: str = "layout"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        patterns = []
        for feature in FEATURES:
            counted = replace(feature, count=lru_cache(maxsize=65536)(feature.count))
            patterns += more(counted, evidence, self.name)
            patterns += fewer(counted, evidence, self.name) if feature is not SHORT_SENTENCES else []
        return [candidate for pattern in patterns for candidate in drift(pattern, evidence)]
