"""The slow path's choice: which pairs of responses are worth a person's time.

A row of ``pairs.jsonl`` has ``id``, ``prompt`` (messages), ``responses`` (two objects with ``text``, ``finished``,
``source`` and ``id``), ``domain`` (whose condition it is judged under), ``answer`` where there is one, and
``chosen_for`` (the parts of its usefulness).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import exp
from typing import Any

from cool_rlhf.data.identity import judged_pair_key
from cool_rlhf.online.responses import SFT, Response, Score
from cool_rlhf.protocols import ScoredConversation
from cool_rlhf.schedule import derive_seed


@dataclass(frozen=True)
class SelectionSettings:
    """``near_tie``, ``high_reward``, ``disagreement``: weights of the parts, each part in [0, 1]. ``at_random``: share
    of pairs drawn blindly, so that the labels also say something of all pairs. ``by_prompt``: most pairs of
    one prompt, where that leaves as many as are asked for."""

    near_tie: float = 0.5
    high_reward: float = 0.25
    disagreement: float = 0.25
    at_random: float = 0.1
    by_prompt: int = 2


@dataclass(frozen=True)
class Usefulness:
    """``near_tie``: 2 min(P, 1 − P), P = σ(r_a − r_b). ``high_reward``: the mean rank of both scores in their domain,
    1 the highest. ``disagreement``: the largest P under any condition less the smallest. ``total``: weighted sum, 0 for
    pairs drawn at random."""

    near_tie: float
    high_reward: float
    disagreement: float
    total: float


@dataclass(frozen=True)
class PairToLabel:
    first: Response
    second: Response
    chosen_for: Usefulness
    condition: str  # that it is judged under

    @property
    def id(self) -> str:
        """The same for the same two responses under the same condition, whichever stands first."""
        first, second = (response.conversation() for response in (self.first, self.second))
        return judged_pair_key(first.messages, second.messages, first.finished, second.finished, self.condition)

    def row(self) -> dict[str, Any]:
        prompt = self.first.prompt
        row = {
            "id": self.id,
            "prompt": prompt.messages,
            "responses": [_row(self.first), _row(self.second)],
            "domain": self.condition,
            "answer": prompt.answer,
            "chosen_for": asdict(self.chosen_for),
        }
        return {name: value for name, value in row.items() if value is not None}


def _row(response: Response) -> dict[str, Any]:
    source = response.policy if response.policy == SFT else f"round {response.round}, {response.policy}"
    return {"text": response.text, "finished": response.finished, "source": source, "id": response.id}


def select_pairs(
    responses: Sequence[Response],
    score: Score,
    conditions: Sequence[str],
    count: int,
    settings: SelectionSettings,
    seed: int,
    known: Collection[str] = (),
    judged_under: Mapping[str, str] | None = None,
) -> list[PairToLabel]:
    """``count`` pairs of different answers to one prompt, by any two of the policies of all rounds (fewer where there
    are no more).

    Args:
        conditions: the domains whose conditions a pair's own is compared with.
        known: ids of pairs that were chosen before, and are not again.
        judged_under: domain → condition that its pairs are judged under, where that is not the domain's own.

    A pair's usefulness is the weighted sum of near tie, high reward and disagreement. Domains take turns, each giving
    its most useful pair left (``settings.at_random`` of the turns: any pair left), until all are used up. No prompt
    gives more than ``settings.by_prompt`` pairs, or, where that makes fewer than ``count``, than the least that makes
    as many. ``seed`` draws the pairs at random, breaks ties, and orders each pair's two sides.
    """
    by_prompt: dict[tuple[str, str], list[Response]] = defaultdict(list)
    for response in responses:
        by_prompt[response.domain, response.prompt.id].append(response)
    table = _table(responses, score, conditions)
    ranks = _ranks(responses)
    under = judged_under or {}
    rng = random.Random(derive_seed("pairs to label", seed))
    queues: dict[str, list[PairToLabel]] = defaultdict(list)
    for (domain, _), answers in sorted(by_prompt.items()):
        distinct = {(answer.text, answer.finished): answer for answer in reversed(answers)}
        for pair in combinations(reversed(distinct.values()), 2):
            first, second = pair if rng.random() < 0.5 else pair[::-1]
            useful = _usefulness(first, second, table, ranks, settings)
            chosen = PairToLabel(first, second, useful, under.get(domain, domain))
            if chosen.id not in known:
                queues[domain].append(chosen)
    for queue in queues.values():
        rng.shuffle(queue)
        queue.sort(key=lambda pair: -pair.chosen_for.total)
    return _in_turns(queues, count, _most_of_a_prompt(queues, count, settings.by_prompt), settings.at_random, rng)


def _most_of_a_prompt(queues: Mapping[str, Sequence[PairToLabel]], count: int, least: int) -> int:
    """``least`` or more, so that there are ``count`` pairs if there are so many at all."""
    there = Counter(pair.first.prompt.id for queue in queues.values() for pair in queue)
    most = least
    while sum(min(most, pairs) for pairs in there.values()) < min(count, there.total()):
        most += 1
    return most


def _in_turns(
    queues: Mapping[str, list[PairToLabel]], count: int, by_prompt: int, at_random: float, rng: random.Random
) -> list[PairToLabel]:
    taken: Counter[str] = Counter()
    chosen: list[PairToLabel] = []
    while len(chosen) < count and any(queues.values()):
        for domain in sorted(queues):
            queue = queues[domain]
            queue[:] = [pair for pair in queue if taken[pair.first.prompt.id] < by_prompt]
            if not queue or len(chosen) == count:
                continue
            blind = rng.random() < at_random
            pair = queue.pop(rng.randrange(len(queue)) if blind else 0)
            if blind:
                parts = {**asdict(pair.chosen_for), "total": 0.0}
                pair = replace(pair, chosen_for=Usefulness(**parts))
            taken[pair.first.prompt.id] += 1
            chosen.append(pair)
    return chosen


def _usefulness(
    first: Response,
    second: Response,
    table: Mapping[str, Sequence[float]],
    ranks: Mapping[str, float],
    settings: SelectionSettings,
) -> Usefulness:
    near = 2 * min(p := _preference(first.score - second.score), 1 - p)
    under = [_preference(a - b) for a, b in zip(table[first.id], table[second.id], strict=True)]
    high = (ranks[first.id] + ranks[second.id]) / 2
    parted = max(under) - min(under)
    total = settings.near_tie * near + settings.high_reward * high + settings.disagreement * parted
    return Usefulness(near, high, parted, total)


def _preference(difference: float) -> float:
    return 1 / (1 + exp(-max(-50.0, min(50.0, difference))))


def _table(responses: Sequence[Response], score: Score, conditions: Sequence[str]) -> dict[str, list[float]]:
    """Each response's score under its own condition, first, and under every other one."""
    others = {response.id: [name for name in conditions if name != response.domain] for response in responses}
    asked = [
        ScoredConversation(response.conversation().messages, condition, response.finished)
        for response in responses
        for condition in others[response.id]
    ]
    scores = iter(score(asked) if asked else [])
    return {response.id: [response.score, *(next(scores) for _ in others[response.id])] for response in responses}


def _ranks(responses: Sequence[Response]) -> dict[str, float]:
    """Each response's place among its domain's scores, 0 the lowest and 1 the highest."""
    domains: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        domains[response.domain].append(response)
    ranks: dict[str, float] = {}
    for answers in domains.values():
        answers.sort(key=lambda response: response.score)
        ranks |= {response.id: place / max(1, len(answers) - 1) for place, response in enumerate(answers)}
    return ranks
