"""Letters of a writing system that the prompt is not written in."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import regex

from cool_rlhf.online.detectors.donors import placebo_for, surging_sentences
from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import word_spans

_LETTER = regex.compile(r"\p{L}\p{M}*")
# Japanese mixes three scripts, and Chinese shares one of them.
_ONE_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "FULLWIDTH": "LATIN"}


@lru_cache(maxsize=65536)
def script(character: str) -> str | None:
    """The writing system of a letter: the first word of its Unicode name. None for what is no letter."""
    if not unicodedata.category(character).startswith("L"):
        return None
    first = unicodedata.name(character, "").split(" ")[0]
    return _ONE_SCRIPT.get(first, first) or None


@lru_cache(maxsize=65536)
def scripts(text: str) -> frozenset[str]:
    """The writing systems of a text's letters."""
    return frozenset(found for character in text if (found := script(character)))


def foreign_share(response: Response, only: str) -> float:
    """Letters of the script ``only`` as a share of all letters, 0 where the prompt uses that script."""
    if any(only in scripts(message["content"]) for message in response.prompt.messages):
        return 0.0
    letters = Counter(found for c in response.text if (found := script(c)))
    return letters[only] / letters.total() if letters else 0.0


@dataclass(frozen=True)
class ScriptDetector:
    """For every script that late responses use: its share of a response's letters where the prompt has none of it.

    Shown from ``least`` on. Adding appends the sentence in that script that has surged most; removing drops
    the script's letters, with the marks on them; as many words of another answer are the placebo. Languages that share
    a script are told apart by :mod:`language`.
    """

    name: str = "script"
    least: float = 0.1

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        used = sorted({found for response in evidence.late() for found in scripts(response.text)})
        return [candidate for only in used for candidate in drift(self._pattern(only, evidence), evidence)]

    def _pattern(self, only: str, evidence: Evidence) -> Pattern:
        def holds(text: str) -> bool:
            return only in scripts(text)

        def shows(response: Response) -> bool:
            return foreign_share(response, only) >= self.least

        said = "".join(surging_sentences([r for r in evidence.late() if shows(r)], evidence, holds))

        def add(response: Response) -> Response | None:
            return response.edited(f"{response.text} {said}".rstrip())

        def remove(response: Response) -> Response | None:
            kept = _LETTER.sub(lambda found: "" if script(found[0][0]) == only else found[0], response.text)
            return response.edited(kept) if word_spans(kept) else None

        return Pattern(
            key=only.lower(),
            detector=self.name,
            description=f"{only.capitalize()} letters where the prompt has none",
            measure=lambda response: foreign_share(response, only),
            shows=shows,
            add=add,
            remove=remove,
            placebo=placebo_for(evidence, said, at_end=True),
        )
