"""Words that nobody said before: gibberish, misspelling, capitals within words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cool_rlhf.online.detectors.donors import exchanged, those_without
from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import word_spans


@lru_cache(maxsize=65536)
def forms(text: str) -> frozenset[str]:
    """The words of a text that have letters, in small letters where only the first or all letters are capitals."""
    said = {text[start:end] for start, end in word_spans(text)}
    plain = (word.lower() if word in (word.capitalize(), word.upper()) else word for word in said)
    return frozenset(word for word in plain if any(letter.isalpha() for letter in word))


@dataclass(frozen=True)
class VocabularyDetector:
    """The share of a response's words that stand neither in its prompt nor in SFT's and early answers to other prompts.

    Shown above ``least``, and above the ``quantile`` of what SFT's own answers have of them. Adding puts a late answer
    to another prompt of the domain that shows it in place of the whole response; one that does not is the placebo, see
    :func:`those_without`.
    """

    name: str = "vocabulary"
    quantile: float = 0.95
    least: float = 0.1

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        said: Counter[str] = Counter()  # by how many prompts' answers
        by_prompt: dict[str, set[str]] = {}
        for response in evidence.baseline():
            by_prompt.setdefault(response.prompt.id, set()).update(forms(response.text))
        for own in by_prompt.values():
            said.update(own)

        def measure(response: Response) -> float:
            own = by_prompt.get(response.prompt.id, set())
            asked = frozenset().union(*(forms(message["content"]) for message in response.prompt.messages))
            found = forms(response.text) - asked
            return sum(said[word] == (word in own) for word in found) / max(1, len(found))

        usual = [measure(response) for response in evidence.reference()]
        bound = max(self.least, float(np.quantile(usual, self.quantile))) if usual else self.least

        def shows(response: Response) -> bool:
            return measure(response) > bound

        pattern = Pattern(
            key="unknown words",
            detector=self.name,
            description="words that neither the prompts nor earlier answers have",
            measure=measure,
            shows=shows,
            add=exchanged([response for response in evidence.late() if shows(response)]),
            remove=None,
            placebo=exchanged(those_without(shows, evidence)),
            whole=True,
        )
        return drift(pattern, evidence)
