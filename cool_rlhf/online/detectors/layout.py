"""Markdown, punctuation, symbols, letter case and blanks that spread."""

from __future__ import annotations

from dataclasses import dataclass

from cool_rlhf.online.detectors.features import Feature
from cool_rlhf.online.detectors.markdown import MARKDOWN
from cool_rlhf.online.detectors.marks import MARKS
from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response

FEATURES = (*MARKDOWN, *MARKS)


@dataclass(frozen=True)
class LayoutDetector:
    """How often a response has each feature: Markdown's as a CommonMark parser sees them, the rest by its characters.

    Adding sets what is there in that layout, with the marks that most late responses have; removing takes the marks
    away: the words stay, but for a heading's and a lone number.
    """

    name: str = "layout"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        return [candidate for feature in FEATURES for candidate in drift(self._pattern(feature, evidence), evidence)]

    def _pattern(self, feature: Feature, evidence: Evidence) -> Pattern:
        def measure(response: Response) -> float:
            return feature.count(response.text)

        add = feature.add([response.text for response in evidence.late() if measure(response)])
        return Pattern(
            key=feature.key,
            detector=self.name,
            description=feature.description,
            measure=measure,
            shows=lambda response: measure(response) > 0,
            add=lambda response: None if measure(response) else response.edited(add(response.text)),
            remove=lambda response: response.edited(feature.remove(response.text)),
        )
