"""Labellers that are no people, behind one interface. Each is named for what it is in every label it gives."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cool_rlhf.data.labelling import by_rule
from cool_rlhf.online.annotation.items import Item, Kind, ShownResponse, Winner
from cool_rlhf.online.annotation.store import AlreadyLabelledError, Store
from cool_rlhf.protocols import Rule
from cool_rlhf.rules.loading import NamedRule


@dataclass(frozen=True)
class LabelVerdict:
    """``seconds`` it took."""

    winner: Winner
    comment: str
    seconds: float


class Labeller(Protocol):
    """``name`` says what the labeller is; it stands in every label and file."""

    name: str
    kind: Kind

    def label(self, items: Sequence[Item]) -> Iterator[tuple[Item, LabelVerdict]]:
        """A verdict on each of ``items``, as they come."""
        ...


def label_with(labeller: Labeller, store: Store, round: int | None = None) -> int:
    """Keep the labeller's verdict on every item (of one round) that it has not judged yet; returns how many. What was
    kept before an interruption, or by another process meanwhile, stays."""
    annotator = store.annotator(labeller.name, labeller.kind)
    count = 0
    for item, verdict in labeller.label(store.unlabelled(annotator, round)):
        try:
            store.record(item.id, annotator, verdict.winner, verdict.comment, verdict.seconds)
        except AlreadyLabelledError:  # by the same labeller in another process, meanwhile and otherwise
            continue
        count += 1
    return count


class RuleLabeller:
    """A rule with noise in the place of people.

    ``score`` is called as collect.labeller is; equal scores are a tie, and of the other verdicts a share of ``noise``
    is turned round. Which ones depends on ``seed`` and the item alone. Raises UserError where the rule cannot judge an
    item, as one that needs the answer of a prompt that has none.
    """

    kind: Kind = "rule"

    def __init__(self, score: Rule, name: str, *, noise: float, seed: int) -> None:
        self.name = f"rule {name}, {noise:.0%} noise (no person)"
        self._score = NamedRule(score, name, "annotate.rule")
        self._noise = noise
        self._seed = seed

    def label(self, items: Sequence[Item]) -> Iterator[tuple[Item, LabelVerdict]]:
        for item in items:
            yield item, self._verdict(item)

    def _verdict(self, item: Item) -> LabelVerdict:
        first, second = self._value(item, item.first), self._value(item, item.second)
        comment = f"{first:.3f} against {second:.3f}"
        rng = random.Random(f"{self._seed} {item.id}")
        preferred = by_rule(first, second, least_gap=0.0, noise=self._noise, rng=rng)
        return LabelVerdict(preferred or "tie", comment, 0.0)

    def _value(self, item: Item, response: ShownResponse) -> float:
        return self._score(item.prompt, response.text, item.domain, item.answer, response.finished)
