"""RewardBench's section scores (Lambert et al. 2024) from rows that name its subsets.

A section's score is the mean over its rows, with two particularities of the benchmark: the rows of ``math-prm`` weigh
as much together as all rows of code, and the total is the plain mean of the four sections. Its rows name no domain, so
they are scored without a condition unless the user gives them one. Departure: ties count half here, there they are
misses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from reward.evaluation import ScoredPairs, margins
from reward.statistics import Share, hits, share

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
# 447 rows that weigh as the 6 × 164 rows of code do. Weights go by row, so they also hold for a part of the benchmark.
ROW_WEIGHTS: Mapping[str, float] = {"math-prm": 984 / 447}


@dataclass(frozen=True)
class Section:
    pairs: int
    score: Share
    missing: list[str]  # subsets of the section that no row has


@dataclass(frozen=True)
class RewardBench:
    """``score`` is None unless every section has rows."""

    sections: dict[str, Section]
    score: float | None


def section_scores(scored: ScoredPairs) -> RewardBench | None:
    """None where no row's subset is one of RewardBench's."""
    names = np.array([pair.subset or "" for pair in scored.pairs])
    right = hits(margins(scored.own))
    sections = {}
    for section, subsets in SECTIONS.items():
        inside = np.isin(names, subsets)
        if inside.any():
            weights = np.array([ROW_WEIGHTS.get(name, 1.0) for name in names[inside]])
            missing = [subset for subset in subsets if subset not in names]
            found = share(right[inside], scored.prompts[inside], weights)
            sections[section] = Section(int(inside.sum()), found, missing)
    if not sections:
        return None
    complete = len(sections) == len(SECTIONS)
    mean = float(np.mean([section.score.accuracy for section in sections.values()]))
    return RewardBench(sections, mean if complete else None)
