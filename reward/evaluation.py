"""Accuracy on held-out preferences, by domain and condition (report, table 19)."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cool_rlhf.protocols import PreferencePair, ScoredConversation

Score = Callable[[Sequence[ScoredConversation]], list[float]]
NORMAL_95 = 1.959964  # the standard normal's 97.5 % quantile


@dataclass(frozen=True)
class Accuracy:
    """A share of pairs and the 95 % interval of what it estimates."""

    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class DomainAccuracy:
    """Share of a domain's pairs in which the chosen conversation scores higher; a tie is a miss."""

    pairs: int
    prompts: int  # distinct ones, which the intervals go by
    own: Accuracy  # under the domain's own condition
    none: Accuracy  # under none
    others: dict[str, Accuracy]  # under each other domain's condition
    other: Accuracy | None  # a pair's mean over those; None where there is no other


def accuracy_by_condition(
    score: Score, pairs: Sequence[PreferencePair], conditions: Iterable[str]
) -> dict[str, DomainAccuracy]:
    """Accuracy in each domain of ``pairs`` under every condition and under none; domains in sorted order.

    Args:
        score: for instance ``RewardModel.score_batch``.
        conditions: the domains whose conditions are tried besides a pair's own.
    """
    tried = sorted(set(conditions))
    domains: dict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        domains[pair.domain].append(pair)
    return {domain: _domain_accuracy(score, group, domain, tried) for domain, group in sorted(domains.items())}


def _domain_accuracy(
    score: Score, pairs: Sequence[PreferencePair], domain: str, conditions: Sequence[str]
) -> DomainAccuracy:
    prompts = len({json.dumps(pair.chosen[:-1]) for pair in pairs})

    def mean(hits: Sequence[float]) -> Accuracy:
        share = sum(hits) / len(hits)
        return Accuracy(share, wilson(share, prompts))

    others = {other: correct(score, pairs, other) for other in conditions if other != domain}
    by_pair = [sum(hits) / len(hits) for hits in zip(*others.values(), strict=True)]
    return DomainAccuracy(
        pairs=len(pairs),
        prompts=prompts,
        own=mean(correct(score, pairs, domain)),
        none=mean(correct(score, pairs, None)),
        others={other: mean(hits) for other, hits in others.items()},
        other=mean(by_pair) if others else None,
    )


def correct(score: Score, pairs: Sequence[PreferencePair], condition: str | None) -> list[bool]:
    """For each pair whether the chosen conversation scores higher than the rejected one under ``condition``."""
    chosen = [ScoredConversation(pair.chosen, condition, pair.chosen_finished) for pair in pairs]
    rejected = [ScoredConversation(pair.rejected, condition, pair.rejected_finished) for pair in pairs]
    scores = score([*chosen, *rejected])
    return [a > b for a, b in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)]


def wilson(share: float, count: int, quantile: float = NORMAL_95) -> tuple[float, float]:
    """Wilson's score interval of a share seen in ``count`` independent observations (Wilson 1927).

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n). Pairs that share a prompt are not independent: the number of
    distinct prompts as ``count`` makes the interval rather too wide than too narrow.
    """
    spread = quantile**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = quantile * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
