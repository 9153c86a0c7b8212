"""What a reward model's scores of held-out preferences say, by domain and condition (report, table 19)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cool_rlhf.data.identity import pair_key, prompt_key
from cool_rlhf.data.rows import OVERALL
from cool_rlhf.protocols import PreferencePair, ScoredConversation, UserError
from reward.statistics import Floats, Integers, Share, bootstrap_interval, hits, share, spearman

Score = Callable[[Sequence[ScoredConversation]], Sequence[float]]
HISTOGRAM_BINS = 40


@dataclass(frozen=True)
class ScoredPairs:
    """Held-out pairs with their scores, (N, 2) float64 each: the chosen response's, the rejected one's.

    ``scores``: under each condition that was tried, by domain, and under None, which every pair has. A pair whose
    domain is not among them is judged without a condition.
    """

    pairs: Sequence[PreferencePair]
    prompts: Integers  # (N,), the same number for the same prompt, whatever the domain
    scores: Mapping[str | None, Floats]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def domains(self) -> dict[str, NDArray[np.bool_]]:
        """Which pairs are of each domain, (N,) bool; in sorted order, after all of them under ``overall``."""
        names = np.array([pair.domain for pair in self.pairs])
        return {OVERALL: np.ones(len(self), dtype=np.bool_), **{name: names == name for name in sorted(set(names))}}

    @property
    def own(self) -> Floats:
        """Under each pair's own condition, (N, 2)."""
        return np.stack([self.scores[self.condition_of(pair.domain)][row] for row, pair in enumerate(self.pairs)])

    @property
    def lengths(self) -> Floats:
        """Characters of both responses, (N, 2)."""
        return np.array(
            [[len(side[-1]["content"]) for side in (pair.chosen, pair.rejected)] for pair in self.pairs], np.float64
        )

    def condition_of(self, domain: str) -> str | None:
        return domain if domain in self.scores else None

    def right(self, condition: str | None) -> Floats:
        """1, ½ or 0 for each pair under ``condition``, (N,)."""
        return hits(margins(self.scores[condition]))

    def part(self, which: NDArray[Any]) -> ScoredPairs:
        """These pairs alone: positions, or a mask."""
        kept = np.arange(len(self))[which]
        scores = {condition: values[kept] for condition, values in self.scores.items()}
        return ScoredPairs([self.pairs[row] for row in kept], self.prompts[kept], scores)


@dataclass(frozen=True)
class DomainAccuracy:
    """How often a domain's chosen response scores higher, ties counting half."""

    pairs: int
    prompts: int  # distinct ones, which the intervals go by
    own: Share  # under the domain's own condition
    none: Share  # under none
    others: dict[str, Share]  # under each other condition that was tried
    other: Share | None  # a pair's mean over those; None where there is no other


@dataclass(frozen=True)
class OpposedAccuracy:
    """The same on pairs that another domain judges the other way round."""

    pairs: int
    prompts: int
    own: Share
    none: Share
    other: Share  # under the conditions of the domains that judge it the other way: at best 0


@dataclass(frozen=True)
class ScoreSpread:
    """Scores of a domain's responses under its own condition, (2,) each: of the chosen, of the rejected."""

    mean: tuple[float, float]
    deviation: tuple[float, float]
    outside: tuple[float, float]  # share beyond the bound, on either side
    counts: tuple[list[int], list[int]]  # by the histogram's bins


@dataclass(frozen=True)
class LengthEffect:
    """How far scores go with length in characters."""

    correlation: float | None  # Spearman's, over both responses of every pair; None where either is constant
    interval: tuple[float, float] | None  # bootstrap by prompt
    prefers_longer: float | None  # share of the pairs of unequal length whose longer response scores higher
    longer_is_chosen: float | None  # and in which the longer one is the chosen


def margins(scores: Floats) -> Floats:
    """Chosen less rejected, (N, 2) to (N,)."""
    difference: Floats = scores[:, 0] - scores[:, 1]
    return difference


def score_pairs(score: Score, pairs: Sequence[PreferencePair], conditions: Collection[str]) -> ScoredPairs:
    """Score every pair under each of ``conditions`` and under none. Raises UserError for a score that is no number."""
    records = list(pairs)
    scores = {condition: _both(score, records, condition) for condition in (None, *sorted(set(conditions)))}
    return ScoredPairs(records, prompt_numbers(records), scores)


def prompt_numbers(pairs: Sequence[PreferencePair]) -> Integers:
    """(N,): equal for pairs on the same conversation."""
    numbers: dict[str, int] = {}
    keys = [prompt_key(pair.chosen[:-1]) for pair in pairs]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def accuracy_table(scored: ScoredPairs) -> dict[str, DomainAccuracy]:
    """Accuracy overall and in each domain, in sorted order. Overall has no ``others``: each pair has its own."""
    tried = [condition for condition in scored.scores if condition is not None]
    right = {condition: scored.right(condition) for condition in scored.scores}
    own, other, tied = np.empty(len(scored)), np.full(len(scored), np.nan), np.zeros(len(scored))
    for row, pair in enumerate(scored.pairs):
        mine = scored.condition_of(pair.domain)
        own[row] = right[mine][row]
        not_mine = [right[condition][row] for condition in tried if condition != mine]
        if not_mine:
            other[row], tied[row] = np.mean(not_mine), np.mean(np.equal(not_mine, 0.5))
    table = {}
    for name, inside in scored.domains.items():
        prompts = scored.prompts[inside]
        others = [c for c in tried if c != scored.condition_of(name)] if name != OVERALL else []
        judged = inside & ~np.isnan(other)
        table[name] = DomainAccuracy(
            pairs=int(inside.sum()),
            prompts=len(np.unique(prompts)),
            own=share(own[inside], prompts),
            none=share(right[None][inside], prompts),
            others={condition: share(right[condition][inside], prompts) for condition in others},
            other=share(other[judged], scored.prompts[judged], ties=tied[judged]) if judged.any() else None,
        )
    return table


def opposing_domains(pairs: Sequence[PreferencePair]) -> dict[int, list[str]]:
    """Position of each pair that stands again with the labels exchanged under other domains → those domains, sorted."""
    labels: dict[tuple[str, bool], set[str]] = defaultdict(set)
    rows = []
    for pair in pairs:
        key, swapped = pair_key(pair.chosen, pair.rejected, pair.chosen_finished, pair.rejected_finished)
        labels[key, swapped].add(pair.domain)
        rows.append((pair.domain, key, swapped))
    against = {row: labels[key, not swapped] - {domain} for row, (domain, key, swapped) in enumerate(rows)}
    return {row: sorted(domains) for row, domains in against.items() if domains}


def opposed_table(scored: ScoredPairs) -> dict[str, OpposedAccuracy]:
    """Accuracy on the pairs that two domains judge oppositely, overall and by domain; empty where there are none."""
    opposing = opposing_domains(scored.pairs)
    if not opposing:
        return {}
    part = scored.part(np.array(list(opposing)))
    right = {condition: part.right(condition) for condition in part.scores}
    own = np.array([right[part.condition_of(pair.domain)][row] for row, pair in enumerate(part.pairs)])
    others = [
        [right[part.condition_of(domain)][row] for domain in domains] for row, domains in enumerate(opposing.values())
    ]
    other = np.array([np.mean(values) for values in others])
    tied = np.array([np.mean(np.equal(values, 0.5)) for values in others])
    return {
        name: OpposedAccuracy(
            int(inside.sum()),
            len(np.unique(part.prompts[inside])),
            own=share(own[inside], part.prompts[inside]),
            none=share(right[None][inside], part.prompts[inside]),
            other=share(other[inside], part.prompts[inside], ties=tied[inside]),
        )
        for name, inside in part.domains.items()
    }


def subset_table(scored: ScoredPairs) -> dict[str, tuple[int, Share]]:
    """Pairs and accuracy under their own condition of each ``subset`` that the rows name, in sorted order."""
    names = np.array([pair.subset or "" for pair in scored.pairs])
    right = hits(margins(scored.own))
    return {
        name: (int((names == name).sum()), share(right[names == name], scored.prompts[names == name]))
        for name in sorted(set(names) - {""})
    }


def histogram_edges(scores: Floats, bound: float) -> Floats:
    """Edges of equally wide bins from −``bound`` to ``bound``, further where scores lie outside."""
    low, high = min(-bound, float(np.floor(scores.min()))), max(bound, float(np.ceil(scores.max())))
    return np.linspace(low, high, HISTOGRAM_BINS + 1)


def score_spread(scored: ScoredPairs, bound: float, edges: Floats) -> dict[str, ScoreSpread]:
    """Overall and by domain, under each pair's own condition."""
    own = scored.own
    table = {}
    for name, inside in scored.domains.items():
        sides = own[inside].T
        counts = [np.histogram(side, edges)[0].tolist() for side in sides]
        table[name] = ScoreSpread(
            _two(side.mean() for side in sides),
            _two(side.std() for side in sides),
            _two((np.abs(side) > bound).mean() for side in sides),
            (counts[0], counts[1]),
        )
    return table


def length_effect(scored: ScoredPairs, seed: int) -> dict[str, LengthEffect]:
    """Overall and by domain, under each pair's own condition."""
    return {name: _length_effect(scored.part(inside), seed) for name, inside in scored.domains.items()}


def _length_effect(scored: ScoredPairs, seed: int) -> LengthEffect:
    scores, lengths = scored.own.T.ravel(), scored.lengths.T.ravel()
    correlation = spearman(scores, lengths)
    interval = None
    if not np.isnan(correlation):
        clusters = np.tile(scored.prompts, 2)
        interval = bootstrap_interval(lambda at: spearman(scores[at], lengths[at]), clusters, seed)
    longer = margins(scored.lengths)
    unequal = longer != 0
    chosen = longer[unequal] > 0
    prefers = hits(np.where(chosen, 1, -1) * margins(scored.own)[unequal])
    return LengthEffect(
        None if np.isnan(correlation) else correlation,
        interval,
        float(prefers.mean()) if len(prefers) else None,
        float(chosen.mean()) if len(chosen) else None,
    )


def _both(score: Score, pairs: Sequence[PreferencePair], condition: str | None) -> Floats:
    asked = [
        ScoredConversation(messages, condition, finished)
        for pair in pairs
        for messages, finished in ((pair.chosen, pair.chosen_finished), (pair.rejected, pair.rejected_finished))
    ]
    scores = np.array(score(asked), dtype=np.float64).reshape(len(pairs), 2)
    if not np.isfinite(scores).all():
        raise UserError(
            f"the reward model gives {(~np.isfinite(scores)).sum()} of {scores.size} responses a score that is no "
            "number: its weights are damaged, or its dtype is too narrow (model.dtype)"
        )
    return scores


def _two(values: Iterator[Any]) -> tuple[float, float]:
    first, second = values
    return float(first), float(second)
