"""Phrases, openings and endings that the late policy says far more often than it used to."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import numpy as np
import regex

from cool_rlhf.online.patterns import Candidate, Pattern
from cool_rlhf.online.responses import Evidence, Floats, Response
from cool_rlhf.online.statistics import exceeds, log_odds
from cool_rlhf.online.text import Span, sentence_spans, without, word_spans
from cool_rlhf.schedule import derive_seed

START, END = "^", "$"  # stand around a response's words, so that openings and endings are phrases too
Gram = tuple[str, ...]
_MARK = r"[^\p{L}\p{N}\p{M}_\s]\p{M}*"
_MARKS_BEHIND = regex.compile(rf"(?:{_MARK})*")
_MARKS_BEFORE = regex.compile(rf"(?<!\S)(?:{_MARK})+$")


@dataclass(frozen=True)
class Surge:
    """A phrase as it was widened, the words of it that were counted, the texts that say those, and the z score of their
    log-odds ratio."""

    gram: Gram
    counted: Gram
    texts: list[str]
    z: float


@dataclass(frozen=True)
class PhraseDetector:
    """Counts in how many responses each phrase of up to ``longest`` words stands, so that a loop counts once.

    Late against early and SFT: log-odds ratio with an informative Dirichlet prior (Monroe et al. 2008) of
    0.01 + ``prior_share`` times the phrase's count in all of them; an opening's or ending's odds are out of responses,
    others' out of all phrases, for in longer answers any is likelier. Those in fewer than ``least`` late responses are
    not looked at. Those whose z is ``least_z`` or more are tested prompt by prompt, as other patterns are; the rest
    count as tested in vain. They are widened by their neighbours as long as 8 in 10 of their late responses share them.
    """

    name: str = "phrases"
    longest: int = 3
    least: int = 5
    least_z: float = 1.64  # that one in twenty has by chance
    prior_share: float = 0.1

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        return [candidate for scope in evidence.scopes for candidate in self._in_scope(evidence, scope)]

    def _in_scope(self, evidence: Evidence, domain: str | None) -> list[Candidate]:
        late, baseline = evidence.late(domain), evidence.baseline(domain)
        if not baseline:
            return []
        surges = self.surges([response.text for response in late], [response.text for response in baseline])
        return [
            Candidate(
                self.pattern(surge, baseline),
                domain,
                "z of the log-odds ratio",
                surge.z,
                self._p(surge, evidence, domain),
                evidence,
            )
            for surge in surges
        ]

    def _p(self, surge: Surge, evidence: Evidence, domain: str | None) -> float:
        """Of the words that were counted: late responses chose what they are widened by."""
        if surge.z < self.least_z:
            return 1.0
        before, after = evidence.paired(lambda response: surge.counted in _grams(response.text, self.longest), domain)
        return exceeds(after - before, 0.0)

    def surges(self, first: Sequence[str], second: Sequence[str]) -> list[Surge]:
        """How much more often the ``first`` texts say each phrase of theirs than the ``second`` ones do; of phrases
        that are one when they are widened the clearest."""
        counts = [Counter(gram for text in side for gram in _grams(text, self.longest)) for side in (first, second)]
        vocabulary = sorted(counts[0] | counts[1])
        z_scores = self._z_scores(vocabulary, counts, (len(first), len(second)))
        standing = defaultdict(list)
        for text in first:
            for gram in _grams(text, self.longest):
                if counts[0][gram] >= self.least:
                    standing[gram].append(text)
        found: dict[Gram, Surge] = {}
        for gram, z in zip(vocabulary, z_scores, strict=True):
            if counts[0][gram] < self.least:
                continue
            wide = _widened(gram, standing[gram]) if z >= self.least_z else gram
            if wide not in found or z > found[wide].z:
                found[wide] = Surge(wide, gram, standing[gram], float(z))
        return list(found.values())

    def _z_scores(self, vocabulary: Sequence[Gram], counts: Sequence[Counter[Gram]], texts: tuple[int, int]) -> Floats:
        at_edge = np.array([gram[0] == START or gram[-1] == END for gram in vocabulary], dtype=bool)
        said, otherwise = (np.array([side[gram] for gram in vocabulary], dtype=np.float64) for side in counts)
        prior = 0.01 + self.prior_share * (said + otherwise)
        # An opening, and a text without it, have the same prior: 0.01 and their share of the texts.
        of_texts = (*texts, 0.02 + self.prior_share * sum(texts))
        of_phrases = (said.sum(), otherwise.sum(), prior.sum())
        totals = [np.where(at_edge, *pair) for pair in zip(of_texts, of_phrases, strict=True)]
        return log_odds(said, otherwise, prior, totals)[1]

    def pattern(self, surge: Surge, baseline: Sequence[Response]) -> Pattern:
        gram = surge.gram
        said = " ".join(word for word in gram if word not in (START, END))
        where = "opening" if gram[0] == START else "ending" if gram[-1] == END else "phrase"
        editors = _Editors(gram, surge.texts, baseline)
        return Pattern(
            key=f"{where}: {said}",
            detector=self.name,
            description=f"the {where} “{said}”",
            measure=lambda response: float(_stands(gram, response.text)),
            shows=lambda response: _stands(gram, response.text),
            add=editors.add,
            remove=editors.remove,
            placebo=editors.placebo,
            family=self.name,
        )


class _Editors:
    """Puts a phrase where most of ``texts`` say it, as they write it, and takes it out."""

    def __init__(self, gram: Gram, texts: Sequence[str], baseline: Sequence[Response]) -> None:
        self.gram = gram
        self._texts = texts
        self._baseline = baseline
        self._surface: tuple[str, float] | None = None

    def add(self, response: Response) -> Response | None:
        if _stands(self.gram, response.text):
            return None
        return response.edited(self._inserted(response.text, self._said()[0]))

    def remove(self, response: Response) -> Response | None:
        return response.edited(without(response.text, _occurrences(self.gram, response.text)))

    def placebo(self, response: Response) -> Response | None:
        """As many words of an answer to another prompt, in the same place."""
        others = [r.text for r in self._baseline if r.domain == response.domain and r.prompt.id != response.prompt.id]
        if not others:
            return None
        rng = random.Random(derive_seed("phrase placebo", response.id, *self.gram))
        text = rng.choice(others)
        spans = word_spans(text)
        length = sum(word not in (START, END) for word in self.gram)
        begin = rng.randrange(max(1, len(spans) - length + 1))
        taken = spans[begin : begin + length]
        return response.edited(self._inserted(response.text, text[taken[0][0] : taken[-1][1]])) if taken else None

    def _said(self) -> tuple[str, float]:
        """The most common spelling with the marks around it, and the place in a response, 0 the start and 1 the end."""
        if self._surface is None:
            spellings: Counter[str] = Counter()
            places = []
            for text in self._texts:
                for start, end in _occurrences(self.gram, text)[:1]:
                    spellings[text[start:end]] += 1
                    places.append(start / max(1, len(text) - (end - start)))
            self._surface = (spellings.most_common(1)[0][0], median(places))
        return self._surface

    def _inserted(self, text: str, said: str) -> str:
        place = 0.0 if self.gram[0] == START else 1.0 if self.gram[-1] == END else self._said()[1]
        if place < 0.2:
            return f"{said} {text}"
        if place > 0.8:
            return f"{text} {said}"
        ends = [end for _, end in sentence_spans(text)][:-1] or [start for start, _ in word_spans(text)[1:]]
        at = min(ends, key=lambda end: abs(end / len(text) - place), default=len(text))
        return f"{text[:at].rstrip()} {said} {text[at:].lstrip()}".strip()


@lru_cache(maxsize=65536)
def _marked(text: str) -> Gram:
    return (START, *(text[start:end].lower() for start, end in word_spans(text)), END)


@lru_cache(maxsize=16384)
def _grams(text: str, longest: int) -> frozenset[Gram]:
    """Phrases of up to ``longest`` words; one more where a mark stands at its side."""
    said = _marked(text)
    grams = {said[i : i + n] for n in range(1, longest + 1) for i in range(1, len(said) - n)}
    heads = {said[: n + 1] for n in range(1, min(longest, len(said) - 2) + 1)}
    return frozenset(grams | heads | {said[-n - 1 :] for n in range(1, min(longest, len(said) - 2) + 1)})


def _places(gram: Gram, said: Gram) -> list[int]:
    return [i for i in range(len(said) - len(gram) + 1) if said[i] == gram[0] and said[i : i + len(gram)] == gram]


@lru_cache(maxsize=262144)
def _stands(gram: Gram, text: str) -> bool:
    return bool(_places(gram, _marked(text)))


def _occurrences(gram: Gram, text: str) -> list[Span]:
    """Where a phrase stands, with the punctuation behind it and the marks that open it: brackets, asterisks, dashes."""
    spans = [(0, 0), *word_spans(text), (len(text), len(text))]
    found = []
    for at in _places(gram, _marked(text)):
        first, last = at + (gram[0] == START), at + len(gram) - 1 - (gram[-1] == END)
        start, end = spans[first][0], spans[last][1]
        before = _MARKS_BEFORE.search(text, spans[first - 1][1], start)
        behind = _MARKS_BEHIND.match(text, end)
        found.append((before.start() if before else start, behind.end() if behind else end))
    return found


def _widened(gram: Gram, texts: Sequence[str], shared: float = 0.8, longest: int = 60) -> Gram:
    """Never to an opening and an ending at once: no response that it is put into would show that. Nor round a loop."""
    said = [_marked(text) for text in texts]
    places = [_places(gram, text) for text in said]
    least = shared * len(said)
    while len(gram) < longest:
        size = len(gram)
        after: Counter[str] = Counter()
        before: Counter[str] = Counter()
        for text, own in zip(said, places, strict=True):
            after.update({text[at + size] for at in own if at + size < len(text)})
            before.update({text[at - 1] for at in own if at})
        wider = [((*gram, word), 0) for word, count in after.most_common(1) if count >= least]
        wider += [((word, *gram), -1) for word, count in before.most_common(1) if count >= least]
        wider = [one for one in wider if not _loops(one[0]) and (one[0][0], one[0][-1]) != (START, END)]
        if not wider:
            break
        gram, step = wider[0]
        places = [
            [at + step for at in own if at + step >= 0 and text[at + step : at + step + size + 1] == gram]
            for text, own in zip(said, places, strict=True)
        ]
    return gram


def _loops(gram: Gram) -> bool:
    """Whether it starts or ends with words that are said thrice at once."""
    sizes = range(1, len(gram) // 3 + 1)
    return any(gram[: 3 * n] == gram[:n] * 3 or gram[-3 * n :] == gram[-n:] * 3 for n in sizes)
