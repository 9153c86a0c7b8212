"""Accuracy on held-out preferences, by domain and condition (report, table 19)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cool_rlhf.protocols import PreferencePair, ScoredConversation

Score = Callable[[Sequence[ScoredConversation]], list[float]]


@dataclass(frozen=True)
class DomainAccuracy:
    """Share of a domain's pairs in which the chosen conversation scores higher; a tie is a miss."""

    pairs: int
    own: float  # under the domain's own condition
    none: float  # under none
    others: dict[str, float]  # under each other domain's condition

    @property
    def other(self) -> float | None:
        """Mean over the other conditions; None where there is only one."""
        return sum(self.others.values()) / len(self.others) if self.others else None


def accuracy_by_condition(
    score: Score, pairs: Sequence[PreferencePair], conditions: Sequence[str]
) -> dict[str, DomainAccuracy]:
    """Accuracy in each domain of ``pairs`` under every condition and under none; domains in sorted order.

    Args:
        score: for instance ``RewardModel.score_batch``.
        conditions: the domains whose conditions are tried besides a pair's own.
    """
    domains: dict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        domains[pair.domain].append(pair)
    return {
        domain: DomainAccuracy(
            pairs=len(group),
            own=accuracy(score, group, domain),
            none=accuracy(score, group, None),
            others={other: accuracy(score, group, other) for other in sorted(conditions) if other != domain},
        )
        for domain, group in sorted(domains.items())
    }


def accuracy(score: Score, pairs: Sequence[PreferencePair], condition: str | None) -> float:
    """Share of ``pairs`` in which the chosen conversation scores higher under ``condition``."""
    chosen = [ScoredConversation(pair.chosen, condition, pair.chosen_finished) for pair in pairs]
    rejected = [ScoredConversation(pair.rejected, condition, pair.rejected_finished) for pair in pairs]
    scores = score([*chosen, *rejected])
    return sum(a > b for a, b in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)) / len(pairs)
