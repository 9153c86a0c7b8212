"""How far annotators agree on what several of them have judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """``items`` were judged by two people or more; ``percent`` is the share of pairs of their judgements that are
    equal, in [0, 1], and ``alpha`` Krippendorff's. None where there is nothing to compare: no such item, or for alpha
    one answer only, which chance would give as well."""

    items: int
    percent: float | None
    alpha: float | None


def agreement(votes: Iterable[Mapping[str, int]]) -> Agreement:
    """``votes``: for each item how often each answer was given.

    Nominal alpha (Krippendorff, Content Analysis, 4th ed., section 12.3) is 1 − D_o / D_e. With n_u judgements of item
    u, n = Σ n_u over items that have two or more, n_c of them answering c:
    D_o = (1/n) Σ_u [n_u² − Σ_c n_uc²] / (n_u − 1) and D_e = [n² − Σ_c n_c²] / (n (n − 1)).
    """
    compared = [Counter(counts) for counts in votes if sum(counts.values()) > 1]
    answers: Counter[str] = sum(compared, Counter())
    total = answers.total()
    if not compared:
        return Agreement(0, None, None)
    unequal = [counts.total() ** 2 - sum(count**2 for count in counts.values()) for counts in compared]
    pairs = [counts.total() * (counts.total() - 1) for counts in compared]
    percent = 1 - sum(unequal) / sum(pairs)
    observed = sum(part / (counts.total() - 1) for part, counts in zip(unequal, compared, strict=True)) / total
    expected = (total**2 - sum(count**2 for count in answers.values())) / (total * (total - 1))
    return Agreement(len(compared), percent, 1 - observed / expected if expected else None)
