"""Responses that say the prompt back, whichever of its turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from cool_rlhf.online.patterns import Candidate, Editor, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import Span, sentences, without, word_spans, words
from cool_rlhf.protocols import Prompt

LAST = "0"  # the turn that is answered


@lru_cache(maxsize=65536)
def longest_copy(prompt: str, text: str) -> tuple[int, int, int]:
    """The longest run of the prompt's words in the text, the first of several: its number of words, and where it
    stands."""
    asked = [prompt[start:end].lower() for start, end in word_spans(prompt)]
    spans = word_spans(text)
    said = [text[start:end].lower() for start, end in spans]
    run = SequenceMatcher(None, said, asked, autojunk=False).find_longest_match()
    return (run.size, spans[run.a][0], spans[run.a + run.size - 1][1]) if run.size else (0, 0, 0)


@lru_cache(maxsize=65536)
def copies_sentence(prompt: str, text: str, least: int) -> bool:
    """Whether a whole sentence of the prompt, of at least so many words, stands in the text word for word."""
    said = f" {' '.join(words(text))} "
    asked = (words(sentence) for sentence in sentences(prompt))
    return any(len(of) >= least and f" {' '.join(of)} " in said for of in asked)


@dataclass(frozen=True)
class CopyingDetector:
    """The longest run of words of one turn that stands in the response. Two patterns: as a share of that turn's words,
    and the run itself.

    The first is shown from ``least`` on, and for runs of at least ``words``, or where the whole last turn, of two words
    or more, stands at the response's start or end; the second for whole sentences of at least
    as many words, and for runs of at least ``run`` beyond what only few of SFT's responses of the domain have. Adding
    puts the turn that is copied most, or its first or last sentence, whichever is said more often, in front of the
    response; removing cuts the run out. The same of another prompt is the placebo.
    """

    name: str = "copying"
    least: float = 0.6
    words: int = 4
    run: int = 8
    quantile: float = 0.95

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        usual = {
            domain: float(np.quantile([_run(response).words for response in reference], self.quantile))
            for domain in evidence.domains
            if (reference := evidence.reference(domain))
        }

        def share(response: Response) -> float:
            run = _run(response)
            said = run.words / max(1, len(word_spans(_turns(response.prompt)[run.turn])))
            return 1.0 if _whole_at_an_end(response) else said

        def in_part(response: Response) -> bool:
            length = _run(response).words
            long = length >= self.run and length > usual.get(response.domain, 0.0)
            turns = _turns(response.prompt).values()
            return long or any(copies_sentence(turn, response.text, self.words) for turn in turns)

        late = [response for response in evidence.late() if in_part(response)]
        of_first = 2 * sum(_is_of_first(response) for response in late) > len(late)
        copied = Counter(_run(response).turn for response in late)
        turn = max(copied, key=copied.__getitem__, default=LAST)

        def whole_turn(prompt: Prompt) -> str | None:
            return _turns(prompt).get(turn)

        def one_sentence(prompt: Prompt) -> str | None:
            said = whole_turn(prompt)
            return None if said is None else _ends(said)[0 if of_first else -1]

        whole = Pattern(
            key="copying",
            detector=self.name,
            description="the prompt said back",
            measure=share,
            shows=lambda response: (
                share(response) >= self.least
                and (_run(response).words >= self.words or _whole_at_an_end(response) is not None)
            ),
            add=_said_back(whole_turn, None),
            remove=_remove,
            placebo=_said_back(whole_turn, evidence),
        )
        partial = Pattern(
            key="in part",
            detector=self.name,
            description="a part of the prompt said back",
            measure=lambda response: float(_run(response).words),
            shows=in_part,
            add=_said_back(one_sentence, None),
            remove=_remove,
            placebo=_said_back(one_sentence, evidence),
        )
        return drift(whole, evidence) + drift(partial, evidence)


def _turns(prompt: Prompt) -> dict[str, str]:
    """The prompt's turns, the last one first, by where they stand from its end; system turns, which stand in front, by
    that and by the name that tools have."""
    turns = enumerate(reversed(prompt.messages))
    return {
        f"system {turn.get('name', '')}" if turn["role"] == "system" else str(at): turn["content"].strip()
        for at, turn in turns
    }


class _Run(NamedTuple):
    """So many words of a ``turn`` in a row, and where in the response they stand."""

    words: int
    start: int
    end: int
    turn: str


def _run(response: Response) -> _Run:
    """The longest, of the latest turn of those that have as many."""
    turns = _turns(response.prompt).items()
    return max((_Run(*longest_copy(said, response.text), turn) for turn, said in turns), key=attrgetter("words"))


def _whole_at_an_end(response: Response) -> Span | None:
    """Where the whole last turn stands, first or last in the response."""
    asked, said, spans = words(_turns(response.prompt)[LAST]), words(response.text), word_spans(response.text)
    if 2 <= len(asked) <= len(said):
        for place in (0, len(said) - len(asked)):
            if said[place : place + len(asked)] == asked:
                return spans[place][0], spans[place + len(asked) - 1][1]
    return None


def _is_of_first(response: Response) -> bool:
    """Whether the run has more of its turn's first sentence than of the last one."""
    run = _run(response)
    ends = _ends(_turns(response.prompt)[run.turn])
    first, last = (longest_copy(said, response.text[run.start : run.end])[0] for said in ends)
    return first > last


def _ends(turn: str) -> tuple[str, str]:
    """Its first and its last sentence."""
    said = sentences(turn) or [""]
    return said[0], said[-1]


def _said_back(said: Callable[[Prompt], str | None], others: Evidence | None) -> Editor:
    """Puts what is ``said`` of the response's prompt in front of it, or of the prompt behind its own in ``others``."""
    prompts = {response.prompt.id: response.prompt for response in others.late()} if others else {}
    following = dict(zip(prompts, [*prompts.values()][1:] + [*prompts.values()][:1], strict=True))

    def add(response: Response) -> Response | None:
        prompt = following.get(response.prompt.id, response.prompt) if others else response.prompt
        own = prompt.id == response.prompt.id
        copied = said(prompt)
        return None if copied is None or (others and own) else response.edited(f"{copied} {response.text}")

    return add


def _remove(response: Response) -> Response | None:
    start, end = _whole_at_an_end(response) or _run(response)[1:3]
    while end < len(response.text) and response.text[end] in "?.!:,？。！：，؟،।":
        end += 1
    return response.edited(without(response.text, [(start, end)]))
