"""Markdown, punctuation, symbols, letter case and blanks that spread."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cool_rlhf.online.detectors.amounts import amounts
from cool_rlhf.online.detectors.features import Feature
from cool_rlhf.online.detectors.markdown import MARKDOWN
from cool_rlhf.online.detectors.marks import MARKS
from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence

FEATURES = (*MARKDOWN, *MARKS)


@dataclass(frozen=True)
class LayoutDetector:
    """How often a response has each feature: Markdown's as a CommonMark parser sees them, the rest by its characters.

    Where SFT has a feature too, more of it than usual is a pattern of its own (:mod:`amounts`). Adding sets what
    is there in that layout, with the marks that most late responses have and as many as they have; removing takes the
    marks away, or as many as are more than usual: the words stay, but for a heading's and a lone number.
    """

    name: str = "layout"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        patterns = [pattern for feature in FEATURES for pattern in self._patterns(feature, evidence)]
        return [candidate for pattern in patterns for candidate in drift(pattern, evidence)]

    def _patterns(self, feature: Feature, evidence: Evidence) -> list[Pattern]:
        return [
            Pattern(
                key=amount.key(feature.key),
                detector=self.name,
                description=amount.described(feature.description),
                measure=amount.measure,
                shows=amount.shows,
                add=amount.adding(feature.add([r.text for r in evidence.late() if amount.shows(r)])),
                remove=amount.removing(feature.remove),
            )
            for amount in amounts(lru_cache(maxsize=65536)(feature.count), evidence)
        ]
