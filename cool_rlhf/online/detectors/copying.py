"""Responses that say the prompt back."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import Span, without, word_spans


@lru_cache(maxsize=65536)
def longest_copy(prompt: str, text: str) -> tuple[int, int, int]:
    """The longest run of the prompt's words in the text, the first of several: its number of words, and where it
    stands."""
    asked = [prompt[start:end].lower() for start, end in word_spans(prompt)]
    spans = word_spans(text)
    said = [text[start:end].lower() for start, end in spans]
    run = SequenceMatcher(None, said, asked, autojunk=False).find_longest_match()
    return (run.size, spans[run.a][0], spans[run.a + run.size - 1][1]) if run.size else (0, 0, 0)


@dataclass(frozen=True)
class CopyingDetector:
    """The longest run of words of the last turn that stands in the response, as a share of that turn's words.

    Shown from ``least`` on, and for runs of at least ``words``. Adding puts the turn in front of the response,
    removing cuts the run out. The last turn of another prompt is the placebo.
    """

    name: str = "copying"
    least: float = 0.6
    words: int = 4

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        def copied(response: Response) -> tuple[float, bool, Span]:
            asked = response.prompt.messages[-1]["content"]
            length, start, end = longest_copy(asked, response.text)
            share = length / max(1, len(word_spans(asked)))
            return share, share >= self.least and length >= self.words, (start, end)

        def remove(response: Response) -> Response | None:
            start, end = copied(response)[2]
            while end < len(response.text) and response.text[end] in "?.!:,？。！：，؟،।":
                end += 1
            return response.edited(without(response.text, [(start, end)]))

        asked_by = {response.prompt.id: response.prompt.messages[-1]["content"].strip() for response in evidence.late()}
        following = dict(zip(asked_by, [*asked_by][1:] + [*asked_by][:1], strict=True))

        def placebo(response: Response) -> Response | None:
            other = following.get(response.prompt.id, response.prompt.id)
            return response.edited(f"{asked_by[other]} {response.text}") if other != response.prompt.id else None

        pattern = Pattern(
            key="copying",
            detector=self.name,
            description="the prompt said back",
            measure=lambda response: copied(response)[0],
            shows=lambda response: copied(response)[1],
            add=lambda response: response.edited(f"{response.prompt.messages[-1]['content'].strip()} {response.text}"),
            remove=remove,
            placebo=placebo,
        )
        return drift(pattern, evidence)
