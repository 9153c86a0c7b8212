"""Preferences for training: what is left out and why, what is held out, and how often each pair is seen."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cool_rlhf.config import DataConfig
from cool_rlhf.data.identity import is_held_out, prompt_key
from cool_rlhf.data.loading import Reading, preference_records, preference_rows
from cool_rlhf.data.messages import without_system_turn
from cool_rlhf.data.splitting import tested_keys
from cool_rlhf.protocols import PreferencePair, UserError
from cool_rlhf.schedule import derive_seed

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

REPEATED = "stands there already"
OPPOSED = "labelled both ways in its domain"
PROMPT_HELD_OUT = "prompt stands in the validation pairs"
PROMPT_TESTED = "prompt stands in the test rows"
NOT_DRAWN = "not drawn (data.weights)"

Drops = Counter[tuple[str, str]]  # (domain, reason) → pairs that were left out


@dataclass(frozen=True)
class PreferenceSplit:
    """Pairs to learn from and pairs to judge while learning; no prompt stands in both."""

    training: Sequence[PreferencePair]
    validation: Sequence[PreferencePair]
    held: Mapping[str, str]  # key of a prompt that was named for validation or test → why it is not learnt from
    rows: Counter[str]  # domain → rows that were read
    drops: Drops

    def joined(self, other: PreferenceSplit) -> PreferenceSplit:
        """Both, this one's pairs first."""
        training, validation = [*self.training, *other.training], [*self.validation, *other.validation]
        held, rows, drops = {**self.held, **other.held}, self.rows + other.rows, self.drops + other.drops
        return PreferenceSplit(training, validation, held, rows, drops)


@dataclass(frozen=True)
class _Columns:
    """What is looked at of each row, so that the conversations stay on the disk."""

    domain: list[str]
    source: list[str]
    prompt: list[str]
    pair: list[str]
    swapped: list[bool]
    reason: list[str]  # why the row was left out; empty for the others

    @classmethod
    def of(cls, rows: datasets.Dataset) -> _Columns:
        return cls(**rows.select_columns(list(cls.__dataclass_fields__)).to_dict())

    def drops(self) -> Drops:
        return Counter(item for item in zip(self.domain, self.reason, strict=True) if item[1])


def load_split(data: DataConfig, share: float, reading: Reading, seed: int, *, warns: bool = True) -> PreferenceSplit:
    """The pairs of ``data.preferences``, in their order, each as often as its source's weight says.

    Left out are pairs that stand there twice, pairs that one domain labels both ways (two domains may: that is what
    conditions are for), and those whose prompt stands in ``data.validation_preferences`` or in the test rows. Where the
    former is empty, about ``share`` of the prompts are held out. A source of weight 0 is not looked at. Test rows are
    not validated on either. With ``warns`` the log is told of pairs labelled both ways.

    Raises UserError where no pair is left to train or to validate on.
    """
    used = [source for source in data.preferences if data.weights.get(source, 1.0) > 0]
    rows, columns = _sifted(used, reading, "data.preferences")
    held_rows, held_columns = _sifted(data.validation_preferences, reading, "data.validation_preferences")
    if warns:
        _warn_of_opposed(rows, columns, "data.preferences")
        _warn_of_opposed(held_rows, held_columns, "data.validation_preferences")
    held = dict.fromkeys(tested_keys(data, reading), PROMPT_TESTED)
    for index, key in enumerate(held_columns.prompt):
        held_columns.reason[index] = held_columns.reason[index] or held.get(key, "")
    validation = [index for index, reason in enumerate(held_columns.reason) if not reason]
    held |= {held_columns.prompt[index]: PROMPT_HELD_OUT for index in validation}
    training = []
    shared: list[int] = []
    for index, key in enumerate(columns.prompt):
        if columns.reason[index]:
            continue
        if key in held:
            columns.reason[index] = held[key]
        elif is_held_out(key, share):
            shared.append(index)
        else:
            training.append(index)
    drawn = weighted(training, columns.source, data.weights, seed)
    for index in set(training).difference(drawn):
        columns.reason[index] = NOT_DRAWN
    drops = columns.drops() + held_columns.drops()
    if data.validation_preferences and not validation:
        raise UserError(f"data.validation_preferences leaves no pair to validate on: {_told(held_columns.drops())}")
    judged = preference_records(held_rows, validation) if validation else preference_records(rows, shared)
    if data.preferences and not drawn:
        why = [_told(drops)] if drops else []
        if shared:
            why.append(f"{len(shared)} held out (lower reward.validation_share, or name data.validation_preferences)")
        told = "; ".join(why) if used else "data.weights gives every source 0"
        raise UserError(f"data.preferences leaves no pair to train on: {told}")
    read = Counter(columns.domain + held_columns.domain)
    return PreferenceSplit(preference_records(rows, drawn), judged, held, read, drops)


def _told(drops: Drops) -> str:
    return "; ".join(f"{count} {reason}" for (_, reason), count in drops.items())


def split_pairs(
    pairs: Sequence[PreferencePair], share: float, held: Mapping[str, str] | None = None, system: str | None = None
) -> PreferenceSplit:
    """Pairs that a program made, as they come: nothing is left out but what shares its prompt with ``held``, for the
    reason given there. Responses were sampled with the ``system`` turn, which makes no other prompt of one."""
    held = held or {}
    if not share and not held:
        return PreferenceSplit(pairs, [], {}, Counter(pair.domain for pair in pairs), Counter())
    training: list[PreferencePair] = []
    validation: list[PreferencePair] = []
    rows, drops = Counter[str](), Drops()
    for pair in pairs:
        rows[pair.domain] += 1
        key = prompt_key(without_system_turn(pair.chosen[:-1], system))
        if key in held:
            drops[pair.domain, held[key]] += 1
        else:
            (validation if is_held_out(key, share) else training).append(pair)
    return PreferenceSplit(training, validation, held, rows, drops)


def weighted(indices: Sequence[int], sources: Sequence[str], weights: Mapping[str, float], seed: int) -> list[int]:
    """``indices`` in their order, each as often as the weight of its source says: 2.0 puts every pair in twice. Of a
    fraction, as many pairs as it makes up are drawn at random: 0.5 takes half of them, 1.5 takes half of them twice."""
    if all(weight == 1 for weight in weights.values()):
        return list(indices)
    of_source = defaultdict(list)
    for index in indices:
        of_source[sources[index]].append(index)
    drawn: set[int] = set()
    for source, members in of_source.items():
        fraction = math.modf(weights.get(source, 1.0))[0]
        rng = random.Random(derive_seed("weights", seed, source))
        drawn.update(rng.sample(members, round(fraction * len(members))))
    return [index for index in indices for _ in range(int(weights.get(sources[index], 1.0)) + (index in drawn))]


def _sifted(sources: Sequence[str], reading: Reading, key: str) -> tuple[datasets.Dataset, _Columns]:
    """The rows of ``sources``, and their columns with the reasons for which rows are left out."""
    rows = preference_rows(sources, reading, key)
    columns = _Columns.of(rows)
    first: dict[tuple[str, str], int] = {}  # where a pair stands for the first time in its domain
    opposed: set[tuple[str, str]] = set()
    pairs = list(zip(columns.domain, columns.pair, strict=True))
    for index, pair in enumerate(pairs):
        if columns.reason[index]:
            continue
        earlier = first.setdefault(pair, index)
        if columns.swapped[earlier] != columns.swapped[index]:
            opposed.add(pair)
        elif earlier != index:
            columns.reason[index] = REPEATED
    for index, pair in enumerate(pairs):
        if pair in opposed and columns.reason[index] in ("", REPEATED):
            columns.reason[index] = OPPOSED
    return rows, columns


def _warn_of_opposed(rows: datasets.Dataset, columns: _Columns, key: str) -> None:
    opposed: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, reason in enumerate(columns.reason):
        if reason == OPPOSED:
            opposed[columns.domain[index], columns.pair[index]].append(index)
    if opposed:
        first, *others = next(iter(opposed.values()))
        other = next(index for index in others if columns.swapped[index] != columns.swapped[first])
        logger.warning(
            "%s: pairs labelled both ways within their domain are left out, %d of them, the first in %s and %s",
            *(key, len(opposed), rows[first]["place"], rows[other]["place"]),
        )
