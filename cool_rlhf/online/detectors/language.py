"""Answers in another language than the prompt's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from cool_rlhf.online.detectors.donors import exchanged, those_without
from cool_rlhf.online.detectors.script import scripts
from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response

SURE = 0.5  # probability of a language below which a text has none
_NO_LANGUAGE = {"und", "zxx"}  # undecided; numbers, markup
# Those that many people write, without close relatives of one another, which short texts are taken for.
_LANGUAGES = (
    "af ar az be bg bn ca cs cy da de el en es et eu fa fi fr ga gu ha he hi hu hy id is it ja ka kk km kn ko la lo lt "
    "lv mk ml mn mr my ne nl no pa pl ps pt ro ru si sk sl so sq sr sv sw ta te th tl tr uk ur uz vi yo zh zu zxx"
)


@cache
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=SURE)
    identifier.set_languages(_LANGUAGES.split())
    return identifier


@lru_cache(maxsize=65536)
def language(text: str) -> str | None:
    """The ISO 639 code of the language that a text as a whole is in (py3langid); None where that cannot be told."""
    code, _ = _identifier().classify(text)
    return None if code in _NO_LANGUAGE else code


def foreign(response: Response) -> str | None:
    """The language of a response, if both have one and it is another than the prompt's, written in the prompt's
    letters: other letters are looked after by :mod:`script`."""
    asked = " ".join(message["content"] for message in response.prompt.messages)
    own = language(asked) if scripts(response.text) <= scripts(asked) else None
    found = language(response.text) if own else None
    return None if found == own else found


@dataclass(frozen=True)
class LanguageDetector:
    """For every language that at least ``least`` late responses are in where the prompt is in another.

    Adding puts a late answer in that language to another prompt of the domain in place of the whole response; such an
    answer in any other language is the placebo, see :func:`those_without`.
    """

    name: str = "language"
    least: int = 5

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        counts = Counter(found for response in evidence.late() if (found := foreign(response)))
        languages = sorted(found for found, count in counts.items() if count >= self.least)
        return [candidate for only in languages for candidate in drift(self._pattern(only, evidence), evidence)]

    def _pattern(self, only: str, evidence: Evidence) -> Pattern:
        def shows(response: Response) -> bool:
            return foreign(response) == only

        return Pattern(
            key=only,
            detector=self.name,
            description=f"answers in another language than the prompt's ({only})",
            measure=lambda response: float(shows(response)),
            shows=shows,
            add=exchanged([response for response in evidence.late() if shows(response)]),
            remove=None,
            placebo=exchanged(those_without(shows, evidence)),
            whole=True,
        )
