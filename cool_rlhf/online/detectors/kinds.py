"""Sentences of a kind, in whatever words: what late answers' sentences have in common that earlier ones have not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, pairwise

import numpy as np
import regex

from cool_rlhf.online.detectors.donors import TRIED, may_lend, those_without
from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.statistics import log_odds
from cool_rlhf.online.text import is_character, sentence_spans, without, word_spans, words
from cool_rlhf.protocols import Prompt
from cool_rlhf.schedule import derive_seed

FOLDS = 5
START, END, SUBJECT = "^", "$", "_"  # around a sentence's words, and for a word of the prompt's
Gram = tuple[str, ...]


@dataclass(frozen=True)
class KindDetector:
    """A kind of sentence whose wording varies: slots ("Smith counted 214 cases."), or dozens of openers, anecdotes,
    morals or refusals, each too rare to stand out as a phrase.

    A word, or two words on end, of a sentence counts for the lower bound (by one standard error) of its log-odds ratio,
    late responses against SFT's and early ones, with an informative prior (Monroe et al. 2008; of responses that hold
    it, where at least ``least`` do), where that is above 0; a sentence for the sum of its ``counted`` best. The odds
    are those of the responses to other prompts than its own, a fifth of the prompts at a time, so that no response
    tells the words that it is judged by. Digits are one, and so are the words that few other prompts share with its
    own. A response is worth its best sentence, and shows the kind where that is more than in ``usual`` of SFT's and
    early ones.

    Adding puts such a sentence of a late answer of the domain where it stands there; a sentence of about that length of
    an answer without the kind, in the same place, is the placebo. Removing drops all such sentences.
    """

    name: str = "kinds"
    least: int = 3
    counted: int = 4
    usual: float = 0.95
    prior_share: float = 0.1

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        if not evidence.late() or not evidence.baseline():
            return []
        return drift(self._pattern(evidence), evidence)

    def _pattern(self, evidence: Evidence) -> Pattern:
        kind = _Kind(self, evidence)
        editors = _Editors(kind, evidence)
        said = kind.examples(evidence.late())
        return Pattern(
            key=f"like: {' '.join(words(said[0])[:12]) if said else 'none'}",
            detector=self.name,
            description="sentences of a kind, such as " + ", ".join(f"“{one}”" for one in said),
            measure=lambda response: float(kind.shows(response)),
            shows=kind.shows,
            add=editors.add,
            remove=editors.remove,
            placebo=editors.placebo,
            broad=True,
        )


class _Kind:
    """What each sentence is worth behind a prompt, and from what on it is of the kind."""

    def __init__(self, detector: KindDetector, evidence: Evidence) -> None:
        self._detector = detector
        self._evidence = evidence
        self._own_words: dict[str, frozenset[str]] = {}
        self._worth = lru_cache(65536)(self._sum)
        self._in_prompts = Counter(word for prompt in self._prompts.values() for word in set(_asked(prompt)))
        self._weights = self._weighed()
        usual = [self.best(response) for response in evidence.baseline()]
        self._bound = float(np.quantile(usual, detector.usual))

    @cached_property
    def _prompts(self) -> Mapping[str, Prompt]:
        return {response.prompt.id: response.prompt for response in self._evidence.responses}

    def shows(self, response: Response) -> bool:
        return self.best(response) > self._bound

    def best(self, response: Response) -> float:
        return max((self.worth(said, response) for said in _sentences(response.text)), default=0.0)

    def is_of_it(self, said: str, response: Response) -> bool:
        """Whether a sentence would be of the kind in a response."""
        return self.worth(said, response) > self._bound

    def worth(self, said: str, response: Response) -> float:
        return self._worth(said, self._subject(response.prompt), _fold(response.prompt.id))

    def _sum(self, said: str, subject: frozenset[str], fold: int) -> float:
        weights = self._weights[fold]
        found = sorted((weights[gram] for gram in _grams(said, subject) if gram in weights), reverse=True)
        return sum(found[: self._detector.counted])

    def _subject(self, prompt: Prompt) -> frozenset[str]:
        """The words of a prompt that no more than a tenth of the prompts have."""
        if prompt.id not in self._own_words:
            often = max(1.0, 0.1 * len(self._prompts))
            own = frozenset(word for word in _asked(prompt) if self._in_prompts[word] <= often)
            self._own_words[prompt.id] = own
        return self._own_words[prompt.id]

    def _weighed(self) -> list[dict[Gram, float]]:
        """For each fold, what the responses to the other folds' prompts tell of each word and two words."""
        late, baseline = ([self._told(r) for r in some] for some in (self._evidence.late(), self._evidence.baseline()))
        everywhere = Counter(chain.from_iterable(grams for _, grams in (*late, *baseline)))
        places = {gram: at for at, gram in enumerate(g for g, n in everywhere.items() if n >= self._detector.least)}
        counts, texts = np.zeros((2, FOLDS, len(places))), np.zeros((2, FOLDS))
        for side, told in enumerate((late, baseline)):
            for fold, grams in told:
                texts[side, fold] += 1
                counts[side, fold, [places[gram] for gram in grams if gram in places]] += 1
        counts, texts = counts.sum(1, keepdims=True) - counts, texts.sum(1, keepdims=True) - texts
        return [self._lower_bounds(list(places), counts[:, fold], texts[:, fold]) for fold in range(FOLDS)]

    def _told(self, response: Response) -> tuple[int, set[Gram]]:
        subject = self._subject(response.prompt)
        return _fold(response.prompt.id), set().union(*(_grams(said, subject) for said in _sentences(response.text)))

    def _lower_bounds(self, grams: Sequence[Gram], counts: np.ndarray, texts: np.ndarray) -> dict[Gram, float]:
        said, otherwise = counts
        prior = 0.01 + self._detector.prior_share * (said + otherwise)
        # As for an opening: having it, and having it not, have the same prior beside their shares of the texts.
        sizes = (*texts, 0.02 + self._detector.prior_share * texts.sum())
        delta, z = log_odds(said, otherwise, prior, [np.full(len(grams), size) for size in sizes])
        known = (said + otherwise >= self._detector.least) & (z > 1)
        return {grams[at]: float(delta[at] * (1 - 1 / z[at])) for at in np.flatnonzero(known)}

    def examples(self, responses: Sequence[Response], most: int = 3) -> list[str]:
        """Sentences of the kind, the clearest first, that have no two words on end in common."""
        worth = {
            said: self.worth(said, response)
            for response in responses
            for said in _sentences(response.text)
            if self.is_of_it(said, response)
        }
        chosen: list[str] = []
        taken: set[Gram] = set()
        for said in sorted(worth, key=lambda said: (-worth[said], said)):
            pairs = {gram for gram in _grams(said, frozenset()) if len(gram) == 2}
            if not pairs & taken:
                chosen.append(said)
                taken |= pairs
            if len(chosen) == most:
                break
        return chosen


@dataclass(frozen=True)
class _Loan:
    """A sentence of an answer, where it stands there (0 its start, 1 its end), and what parts it from its neighbour."""

    said: str
    place: float
    blank: str


class _Editors:
    """Puts a sentence of the kind into a response, or another one in its place, and takes those of the kind out."""

    def __init__(self, kind: _Kind, evidence: Evidence) -> None:
        self._kind = kind
        late, others = [r for r in evidence.late() if kind.shows(r)], those_without(kind.shows, evidence)
        self._late, self._others = (
            {domain: [r for r in answers if r.domain == domain] for domain in evidence.domains}
            for answers in (late, others)
        )

    def add(self, response: Response) -> Response | None:
        return response.edited(_with(response.text, loan)) if (loan := self._lent(response)) else None

    def placebo(self, response: Response) -> Response | None:
        loan = self._lent(response)
        others = _drawn(self._others.get(response.domain, ()), response)
        said = [one for other in others for one in _sentences(other.text) if not self._kind.is_of_it(one, response)]
        if loan is None or not said:
            return None
        length = len(word_spans(loan.said))
        near = min(said, key=lambda one: abs(len(word_spans(one)) - length))
        return response.edited(_with(response.text, _Loan(near, loan.place, loan.blank)))

    def remove(self, response: Response) -> Response | None:
        text = response.text
        spans = [span for span in sentence_spans(text) if self._kind.is_of_it(text[slice(*span)], response)]
        changed = response.edited(without(text, spans))
        return changed if changed is not None and not self._kind.shows(changed) else None

    def _lent(self, response: Response) -> _Loan | None:
        """The clearest sentence of a late answer that is of the kind behind the response's prompt too."""
        if self._kind.shows(response):
            return None
        for donor in _drawn(self._late.get(response.domain, ()), response):
            span = max(sentence_spans(donor.text), key=lambda at: self._kind.worth(donor.text[slice(*at)], donor))
            loan = _loan(donor.text, span)
            if self._kind.is_of_it(loan.said, response):
                return loan
        return None


def _drawn(answers: Sequence[Response], response: Response) -> list[Response]:
    lending = [answer for answer in answers if may_lend(answer, response)]
    rng = random.Random(derive_seed("kinds", response.id))
    return rng.sample(lending, min(TRIED, len(lending)))


def _loan(text: str, span: tuple[int, int]) -> _Loan:
    spans = sentence_spans(text)
    at = spans.index(span)
    said = text[slice(*span)]
    if len(spans) == 1:
        return _Loan(said, 0.0, "" if any(map(is_character, words(said)[-1:])) else " ")
    blank = text[span[1] : spans[1][0]] if at == 0 else text[spans[at - 1][1] : span[0]]
    return _Loan(said, 1.0 if at == len(spans) - 1 else span[0] / len(text), blank)


def _with(text: str, loan: _Loan) -> str:
    ends = [end for _, end in sentence_spans(text)]
    if loan.place == 0.0 or not ends:
        return f"{loan.said}{loan.blank}{text}"
    inner = ends[:-1] if loan.place < 1.0 and len(ends) > 1 else ends[-1:]
    at = min(inner, key=lambda end: abs(end / len(text) - loan.place))
    return f"{text[:at]}{loan.blank}{loan.said}{text[at:]}"


def _sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


def _asked(prompt: Prompt) -> list[str]:
    return words("\n".join(message["content"] for message in prompt.messages))


@lru_cache(maxsize=65536)
def _fold(prompt: str) -> int:
    return derive_seed("kinds", prompt) % FOLDS


@lru_cache(maxsize=65536)
def _grams(said: str, subject: frozenset[str]) -> frozenset[Gram]:
    """Words, and two words on end, of a sentence."""
    known = [SUBJECT if word in subject else regex.sub(r"\p{N}+", "0", word) for word in words(said)]
    return frozenset([*((word,) for word in known), *pairwise([START, *known, END])])
