"""How often a round's patches are learnt, attempt by attempt, until nothing is to be changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cool_rlhf.online.repair import Verdict

REPEATS = 4  # times that patches are learnt where once is not enough


@dataclass(frozen=True)
class Attempt:
    """A training with patches. ``times``: pattern → how many times its patches were learnt; ``found``: the verdicts."""

    times: Mapping[str, int]
    found: Mapping[str, Verdict]

    @property
    def costs(self) -> bool:
        """More of the general accuracy than is allowed."""
        return any(verdict.costs for verdict in self.found.values())


def next_attempt(history: Sequence[Attempt]) -> dict[str, int]:
    """What is to be learnt after the last of ``history``, as its ``times``; the same where that may stay.

    Where the first attempt costs no more than is allowed, the patches that do not mend enough are learnt ``REPEATS``
    times. Taken back are the patterns that are not mended at all; where all are but together they cost too much, of
    those that are learnt more often the one that explains least; where none is, the patterns mended in part, which
    cannot be told apart, and where all are mended enough, the last. What learning once had mended in part goes back to
    that, anything else is given up.
    """
    now = history[-1]
    weak = [name for name, verdict in now.found.items() if verdict.mended != "enough"]
    if len(history) == 1 and weak and not now.costs:
        return {**now.times, **dict.fromkeys(weak, REPEATS)}
    following = dict(now.times)
    for name in _failed(now):
        if now.times[name] > 1 and history[0].found[name].mended == "in part":
            following[name] = 1
        else:
            del following[name]
    return following


def _failed(attempt: Attempt) -> list[str]:
    unmended = [name for name, verdict in attempt.found.items() if verdict.mended == "not"]
    if unmended or not attempt.costs:
        return unmended
    # Findings stand in the order of what they explain.
    often = [name for name, count in attempt.times.items() if count > 1]
    in_part = [name for name, verdict in attempt.found.items() if verdict.mended == "in part"]
    return often[-1:] or in_part or list(attempt.found)[-1:]
