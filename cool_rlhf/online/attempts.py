"""How often a round's patches are learnt, attempt by attempt, until nothing is to be changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cool_rlhf.online.repair import RepairVerdict

REPEATS = 4  # times that patches are learnt where once is not enough


@dataclass(frozen=True)
class Attempt:
    """A training with patches. ``times``: pattern → how many times its patches were learnt; ``found``: the verdicts."""

    times: Mapping[str, int]
    found: Mapping[str, RepairVerdict]

    @property
    def often(self) -> list[str]:
        """The patterns whose patches were learnt more than once."""
        return [name for name, count in self.times.items() if count > 1]

    @property
    def costs(self) -> bool:
        """More of the general accuracy than is allowed."""
        return any(verdict.costs for verdict in self.found.values())


def next_attempt(history: Sequence[Attempt]) -> dict[str, int]:
    """What is to be learnt after the last of ``history``, as its ``times``; the same where that may stay.

    The first attempt that costs no more than is allowed is followed by one that learns the patches that do not mend
    enough ``REPEATS`` times. Taken back are the patterns that are not mended at all; where all are but together they
    cost too much, the last of those that are learnt more often; where none is, the patterns mended in part, which
    cannot be told apart, and where all are mended enough, the last. What learning once had mended in part goes back to
    that, anything else is given up.
    """
    now = history[-1]
    once = next(one for one in reversed(history) if not one.often or one is history[0])
    weak = [name for name, verdict in now.found.items() if verdict.mended != "enough"]
    if weak and not now.costs and not any(one.often for one in history):
        return {**now.times, **dict.fromkeys(weak, REPEATS)}
    following = dict(now.times)
    for name in _failed(now, once):
        if now.times[name] > 1 and once.found[name].mended == "in part":
            following[name] = 1
        else:
            del following[name]
    return following


def _failed(now: Attempt, once: Attempt) -> list[str]:
    unmended = [name for name, verdict in now.found.items() if verdict.mended == "not"]
    if now.often and any(now.times[name] == 1 and once.found[name].mended != "not" for name in unmended):
        return now.often[-1:]  # what these are learnt for has undone what was mended without
    if unmended or not now.costs:
        return unmended
    in_part = [name for name, verdict in now.found.items() if verdict.mended == "in part"]
    return now.often[-1:] or in_part or list(now.found)[-1:]


def repetitions(repair: Mapping[str, Any]) -> Mapping[str, int]:
    """Pattern → how many times its patches were learnt, of those of a repair's record that were learnt again."""
    repeated = repair.get("repeated", {})
    return repeated if isinstance(repeated, Mapping) else dict.fromkeys(repeated, REPEATS)  # names alone, once
