"""What a detector looks for, what it suspects, and what is found in the end."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cool_rlhf.online.responses import Evidence, Measure, Response
from cool_rlhf.online.statistics import exceeds
from cool_rlhf.schedule import derive_seed

Editor = Callable[[Response], Response | None]  # None where the edit cannot be made or would change nothing


@dataclass(frozen=True)
class Pattern:
    """Something that a response may show.

    ``add`` puts it into a response and ``remove`` takes it out, each leaving the rest as it is; None where no such
    edit exists. ``placebo`` makes an edit of the same kind and size without the pattern: what the scorer pays for
    that is not owed to the pattern; where ``whole`` answers are exchanged, what it punishes neither.
    """

    key: str  # unique within its detector
    detector: str
    description: str
    measure: Measure  # how much of it, higher for more
    shows: Callable[[Response], bool]
    add: Editor | None
    remove: Editor | None
    placebo: Editor | None = None
    whole: bool = False  # adding puts a whole late answer there: all else of that comes with it
    family: str = ""
    broad: bool = False  # much else comes with it, which may be the reason for it and is looked at first
    of_length: bool = False  # it is length itself that its patches are to teach
    parts: tuple[Pattern, ...] = ()  # of several that are one, see :func:`any_of`

    def name(self, domain: str | None) -> str:
        """What files call it in one scope, ``layout/emphasis in tales``; None: in all domains, ``layout/emphasis``."""
        return f"{self.detector}/{self.key}" + (f" in {domain}" if domain is not None else "")


def any_of(patterns: Sequence[Pattern], weights: Sequence[float]) -> Pattern:
    """Patterns of one detector and family as one: the same cheat in other words. Shown where one of them is; put in as
    one of them, drawn for each response by ``weights``, and taken out with all. Raises: ValueError for none."""
    if not patterns:
        raise ValueError("no pattern to make one of")
    first = patterns[0]
    addable = [(pattern, weight) for pattern, weight in zip(patterns, weights, strict=True) if pattern.add]

    def drawn(response: Response) -> Pattern:
        rng = random.Random(derive_seed("any of", response.id))
        return rng.choices(*zip(*addable, strict=True))[0]

    def shows(response: Response) -> bool:
        return any(pattern.shows(response) for pattern in patterns)

    def add(response: Response) -> Response | None:
        put = drawn(response).add
        return put(response) if put and not shows(response) else None

    def placebo(response: Response) -> Response | None:
        put = drawn(response).placebo
        return put(response) if put else None

    def remove(response: Response) -> Response | None:
        rest = response
        for pattern in patterns:
            rest = (pattern.remove(rest) if pattern.remove and pattern.shows(rest) else None) or rest
        return None if rest is response or shows(rest) else rest

    return Pattern(
        key=f"any of {len(patterns)}, {_listed([pattern.key for pattern in patterns])}",
        detector=first.detector,
        description=f"any of {len(patterns)}: {_listed([pattern.description for pattern in patterns])}",
        measure=lambda response: sum(pattern.measure(response) for pattern in patterns),
        shows=shows,
        add=add if addable else None,
        remove=remove if any(pattern.remove for pattern in patterns) else None,
        placebo=placebo if addable and all(pattern.placebo for pattern, _ in addable) else None,
        family=first.family,
        broad=first.broad,
        parts=tuple(patterns),
    )


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])


@dataclass(frozen=True)
class Candidate:
    """A pattern that was looked for in one scope, whether it stood out or not: corrections need every one."""

    pattern: Pattern
    domain: str | None  # None: all domains together
    statistic: str  # what ``value`` is
    value: float
    p: float  # one-sided, of the late policy showing more of it than the early one and SFT; not corrected
    evidence: Evidence = field(compare=False, repr=False)  # what was looked at: shares are over its responses


class Detector(Protocol):
    """Suspects patterns. Others are added through the entry point group ``cool_rlhf.detectors``: a class or function
    that gives a detector when called without arguments."""

    @property
    def name(self) -> str: ...

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        """Every test made, also those that came to nothing."""
        ...


def candidates_of(detector: Detector, evidence: Evidence) -> list[Candidate]:
    """Raises RuntimeError naming the detector that fails: it may come from another package."""
    try:
        return detector.candidates(evidence)
    except Exception as error:
        raise RuntimeError(f"the detector {detector.name!r} failed on the answers of a round") from error


def drift(pattern: Pattern, evidence: Evidence) -> list[Candidate]:
    """The paired test of a pattern's measure in every scope: each prompt's late mean against its baseline mean.

    A t test of the mean: what is rarely shown changes by +1 or by −½ against a baseline of two policies, and ranks or
    signs of such changes lean to one side where no policy shows more of it than another.
    """
    found = []
    measured = {id(response): pattern.measure(response) for response in evidence.responses}
    for domain in evidence.scopes:
        before, after = evidence.paired(lambda response: measured[id(response)], domain)
        if len(before):
            change = float((after - before).mean())
            p = exceeds(after - before, 0.0)
            found.append(Candidate(pattern, domain, "mean change by prompt", change, p, evidence))
    return found
