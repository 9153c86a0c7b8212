"""Answers that fit any question or another one, and scores that do not ask which question or condition it was."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import log

import numpy as np
from scipy.sparse import csr_array

from cool_rlhf.data.identity import judges_repairs
from cool_rlhf.online.detectors.donors import exchanged, may_lend
from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import LATE, Evidence, Response
from cool_rlhf.online.text import overlap, words
from cool_rlhf.protocols import Prompt, ScoredConversation
from cool_rlhf.schedule import derive_seed


@dataclass(frozen=True)
class BoilerplateDetector:
    """One answer for all prompts: the largest share of words (Jaccard) that a response has in common with the same
    policy's answer to another of ``compared`` prompts of the domain.

    Shown from ``least`` on. Adding puts the late answer that is most like the others in place of the whole response:
    a reward model that reads the question does not pay for that.
    """

    name: str = "boilerplate"
    least: float = 0.8
    compared: int = 60

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        drawn: dict[tuple[str, str], list[Response]] = defaultdict(list)
        for response in evidence.responses:
            drawn[response.policy, response.domain].append(response)
        for key, answers in drawn.items():
            rng = random.Random(derive_seed("boilerplate", *key))
            drawn[key] = rng.sample(answers, min(self.compared, len(answers)))
        said = {key: [(r.prompt.id, _vocabulary(r)) for r in answers] for key, answers in drawn.items()}

        def likeness(response: Response) -> float:
            own = _vocabulary(response)
            others = said.get((response.policy, response.domain), [])
            return max((overlap(own, other) for prompt, other in others if prompt != response.prompt.id), default=0.0)

        typical = {domain: _by_likeness(answers) for (policy, domain), answers in drawn.items() if policy == LATE}

        def add(response: Response) -> Response | None:
            donors = typical.get(response.domain, [])
            donor = next((donor for donor in donors if may_lend(donor, response)), None)
            return response.edited(donor.text, finished=donor.finished) if donor else None

        pattern = Pattern(
            key="boilerplate",
            detector=self.name,
            description="one answer for all prompts",
            measure=likeness,
            shows=lambda response: likeness(response) >= self.least,
            add=add,
            remove=None,
            whole=True,
        )
        return drift(pattern, evidence)


def _vocabulary(response: Response) -> frozenset[str]:
    return frozenset(words(response.text))


def _by_likeness(answers: Sequence[Response]) -> list[Response]:
    """Those first that have most in common with all of them."""
    said = [_vocabulary(answer) for answer in answers]
    likeness = [sum(overlap(own, other) for other in said) for own in said]
    order = sorted(range(len(answers)), key=lambda index: (-likeness[index], answers[index].id))
    return [answers[index] for index in order]


@dataclass(frozen=True)
class SwapDetector:
    """How much a response's score falls when it stands behind another prompt of its domain, and when it is scored
    under another domain's condition; each for up to ``sample`` prompts of a domain, the same for every policy.

    A response shows the pattern where that costs it less than the lower quarter of SFT's responses lose. For prompts,
    adding puts the late answer to that other prompt in place of the response. A swapped condition has no edit, so
    there gold decides.
    """

    name: str = "swaps"
    sample: int = 48

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        other: dict[str, Response] = {}  # prompt → a late response to another prompt of its domain
        for domain in evidence.domains:
            late = list({response.prompt.id: response for response in evidence.late(domain)}.values())
            random.Random(derive_seed("swaps", domain)).shuffle(late)
            for judging in (False, True):  # neither lends the other its answers, see may_lend
                own = [r for r in late[: self.sample] if judges_repairs(r.prompt.messages) == judging]
                other |= {r.prompt.id: own[i - 1] for i, r in enumerate(own) if len(own) > 1}
        drawn = [response for response in evidence.responses if response.prompt.id in other]
        asked = [_behind(response, other[response.prompt.id]) for response in drawn]
        found = self._judge("prompt", "answers whose score does not ask for the prompt", drawn, asked, other, evidence)
        if len(evidence.domains) > 1:
            following = dict(zip(evidence.domains, evidence.domains[1:] + evidence.domains[:1], strict=True))
            under = [replace(r.conversation(), condition=following[r.domain]) for r in drawn]
            description = "answers whose score does not ask for the condition"
            found += self._judge("condition", description, drawn, under, {}, evidence)
        return found

    def _judge(
        self,
        key: str,
        description: str,
        drawn: Sequence[Response],
        asked: Sequence[ScoredConversation],
        other: dict[str, Response],
        evidence: Evidence,
    ) -> list[Candidate]:
        if not drawn:
            return []
        kept = {r.id: s - r.score for r, s in zip(drawn, evidence.score(asked), strict=True)}
        usual = sorted(kept[r.id] for r in evidence.reference() if r.id in kept)
        bound = usual[3 * len(usual) // 4] if usual else float("inf")

        def add(response: Response) -> Response | None:
            donor = other.get(response.prompt.id)
            return response.edited(donor.text, finished=donor.finished) if donor else None

        pattern = Pattern(
            key=key,
            detector=self.name,
            description=description,
            measure=lambda response: kept[response.id],
            shows=lambda response: kept.get(response.id, float("-inf")) > bound,
            add=add if other else None,
            remove=None,
            whole=True,
        )
        return drift(pattern, Evidence(drawn, evidence.score, evidence.gold))


def _behind(response: Response, other: Response) -> ScoredConversation:
    """The conversation in which ``response`` answers the prompt of ``other``."""
    return replace(response, prompt=other.prompt).conversation()


@dataclass(frozen=True)
class RelevanceDetector:
    """Answers to another question: the share of the domain's other prompts that a response is more like than its own,
    see :class:`_Subjects`; of those that it is as much like, half. So an answer that has a word in common with none of
    them, a number say, has the same from every policy.

    Shown from ``least`` on. Adding puts an answer of SFT or the early policy to another prompt in place of the
    response. Neither shows it behind its own prompt: a reward model that does not ask for the prompt pays as much for
    the one as for the other.
    """

    name: str = "relevance"
    least: float = 0.2

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        by_domain = {domain: _Subjects(evidence.baseline(domain)) for domain in evidence.domains}

        def measure(response: Response) -> float:
            subjects = by_domain.get(response.domain)
            return subjects.nearer(response) if subjects else 0.0

        def shows(response: Response) -> bool:
            return measure(response) >= self.least

        pattern = Pattern(
            key="another prompt",
            detector=self.name,
            description="answers to another prompt than theirs",
            measure=measure,
            shows=shows,
            add=exchanged([response for response in evidence.baseline() if not shows(response)], shows),
            remove=None,
        )
        return drift(pattern, evidence)


class _Subjects:
    """What the prompts of a domain are about: the words of each, and those of SFT's and early answers to it.

    A word counts by its rarity, log(prompts / prompts that it stands at). How much a response is like a prompt is the
    cosine with its words and the mean cosine with the answers to it, those of the response's own policy left out: late
    responses have none there. A prompt that is not among those of the domain is compared by its words alone.
    """

    def __init__(self, answers: Sequence[Response]) -> None:
        prompts = {response.prompt.id: response.prompt for response in answers}
        self._places = {prompt: place for place, prompt in enumerate(prompts)}
        asked = [set(words(_asked(prompt))) for prompt in prompts.values()]
        said: dict[str, list[set[str]]] = {response.policy: [set() for _ in prompts] for response in answers}
        for response in answers:
            said[response.policy][self._places[response.prompt.id]].update(words(response.text))
        at = Counter(word for texts in zip(asked, *said.values(), strict=True) for word in set().union(*texts))
        self._columns = {word: column for column, word in enumerate(at)}
        self._rarity = np.array([log(len(prompts) / count) for count in at.values()])
        self._asked = self._cosines(asked)
        self._said = {policy: self._cosines(texts) for policy, texts in said.items()}
        self._remembered = cache(self._nearer)  # a search asks for the same responses again and again

    def nearer(self, response: Response) -> float:
        """The share of the domain's other prompts that a response is more like than its own."""
        return self._remembered(response.text, response.policy, response.prompt.id, _asked(response.prompt))

    def _nearer(self, text: str, policy: str, prompt: str, asked: str) -> float:
        rarity = np.zeros(len(self._rarity))
        known = self._known(words(text))
        rarity[known] = self._rarity[known]
        likeness, place = self._asked @ rarity, self._places.get(prompt)
        if place is None:
            own = (self._cosines([set(words(asked))]) @ rarity)[0]
        else:
            others = [cosines @ rarity for by, cosines in self._said.items() if by != policy]
            likeness = likeness + np.mean(others, axis=0) if others else likeness
            own, likeness = likeness[place], np.delete(likeness, place)
        return float(np.mean((likeness > own) + 0.5 * (likeness == own))) if len(likeness) else 0.0

    def _known(self, said: Iterable[str]) -> list[int]:
        return [self._columns[word] for word in set(said) if word in self._columns]

    def _cosines(self, texts: Sequence[Iterable[str]]) -> csr_array:
        """(texts, words): its product with the rarity of a response's words is the cosine with each text, times what
        is the same for all texts."""
        known = [self._known(text) for text in texts]
        scaled = [self._rarity[columns] / max(float(np.linalg.norm(self._rarity[columns])), 1e-9) for columns in known]
        ends = np.cumsum([0, *map(len, known)])
        entries = np.concatenate([*scaled, np.zeros(0)]), np.concatenate([*known, np.zeros(0)]).astype(np.int64), ends
        return csr_array(entries, shape=(len(texts), len(self._rarity)))


def _asked(prompt: Prompt) -> str:
    return "\n".join(message["content"] for message in prompt.messages)
