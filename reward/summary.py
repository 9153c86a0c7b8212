"""What reward training is about to read, in one table: pairs, tokens, lengths, and what was left out and why."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy
from rich.console import Console
from rich.table import Table

from reward.pairs import EncodedPair, EncodedPairs

QUANTILES = (0.05, 0.5, 0.95, 1.0)
WIDTH = 120
ALL = "all"


@dataclass(frozen=True)
class DomainSummary:
    """One domain's pairs; the last is of all of them.

    ``lengths`` are the ``QUANTILES`` of the tokens that one conversation has, with its condition and reward token.
    """

    domain: str
    rows: int  # that were read
    pairs: int  # to train on; one that a weight repeats counts each time
    validation: int
    prompts: int  # distinct ones to train on
    tokens: int  # to train on, in one epoch
    lengths: list[int]
    chosen_longer: float | None  # share of the pairs whose chosen response is the longer one; None without pairs
    cut: int  # pairs that lost their beginning
    left_out: dict[str, int]  # by reason


def summarise(
    rows: Mapping[str, int], training: EncodedPairs, validation: EncodedPairs, drops: Mapping[tuple[str, str], int]
) -> list[DomainSummary]:
    """One entry for each domain, and one of all if there are several.

    Args:
        rows: domain → rows that were read.
        drops: (domain, reason) → pairs that were left out before they were encoded.
    """
    left_out = Counter(drops) + training.drops + validation.drops
    domains = sorted({*rows, *training.prompts, *validation.prompts})

    def of(name: str, members: Sequence[str]) -> DomainSummary:
        pairs = [pair for pair in training.pairs if pair.domain in members]
        reasons = Counter[str]()
        for (domain, reason), count in left_out.items():
            if domain in members:
                reasons[reason] += count
        return DomainSummary(
            domain=name,
            rows=sum(rows.get(domain, 0) for domain in members),
            pairs=len(pairs),
            validation=sum(pair.domain in members for pair in validation.pairs),
            prompts=len({key for domain in members for key in training.prompts.get(domain, ())}),
            tokens=sum(map(len, pairs)),
            lengths=_lengths(pairs),
            chosen_longer=_chosen_longer(pairs),
            cut=sum(training.cut[domain] + validation.cut[domain] for domain in members),
            left_out=dict(reasons),
        )

    entries = [of(domain, [domain]) for domain in domains]
    return [*entries, of(ALL, domains)] if len(domains) > 1 else entries


def describe(entries: Sequence[DomainSummary]) -> str:
    """The tables, as plain text."""
    table = Table(
        title="Preferences; lengths in tokens of one conversation", box=None, title_justify="left", pad_edge=False
    )
    table.add_column("domain")
    lengths = [f"{quantile:.0%}" for quantile in QUANTILES]
    for name in ["rows", "pairs", "validation", "prompts", "tokens", *lengths, "chosen longer", "cut"]:
        table.add_column(name, justify="right")
    for entry in entries:
        counts = [entry.rows, entry.pairs, entry.validation, entry.prompts, entry.tokens]
        sizes = [f"{length:,}" for length in entry.lengths] or ["–"] * len(QUANTILES)
        longer = "–" if entry.chosen_longer is None else f"{entry.chosen_longer:.0%}"
        table.add_row(entry.domain, *(f"{count:,}" for count in counts), *sizes, longer, f"{entry.cut:,}")
    left_out = Table(title="Left out", box=None, title_justify="left", pad_edge=False)
    left_out.add_column("domain")
    left_out.add_column("rows", justify="right")
    left_out.add_column("reason")
    for entry in entries:
        for reason, count in sorted(entry.left_out.items(), key=itemgetter(1), reverse=True):
            left_out.add_row(entry.domain, f"{count:,}", reason)
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, markup=False, emoji=False)
    for part in (table, left_out) if left_out.row_count else (table,):
        console.print(part)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in written.splitlines())


def _lengths(pairs: Sequence[EncodedPair]) -> list[int]:
    if not pairs:
        return []
    each = [len(side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    return [int(length) for length in numpy.quantile(each, QUANTILES, method="inverted_cdf")]


def _chosen_longer(pairs: Sequence[EncodedPair]) -> float | None:
    """Ties count half, so an even set gives one half."""
    if not pairs:
        return None
    signs = [numpy.sign(len(pair.chosen) - len(pair.rejected)) for pair in pairs]
    return float(numpy.mean(signs)) / 2 + 0.5
