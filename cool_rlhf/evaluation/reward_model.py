"""The parts of evaluation.json that tell how well a reward model judges; docs/evaluation.md describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from cool_rlhf.protocols import Future, PreferencePair, ScoredConversation, Scorer
from reward.baselines import longer_wins, ngram_margins
from reward.conditions import Conditions
from reward.evaluation import (
    ScoredPairs,
    accuracy_table,
    histogram_edges,
    length_effect,
    margins,
    opposed_table,
    score_pairs,
    score_spread,
    subset_table,
)
from reward.rewardbench import section_scores
from reward.statistics import Floats, calibration, difference, hits, share

PART = 1024  # conversations handed to the scorer at once
AHEAD = 2  # parts under way


@dataclass(frozen=True)
class Judge:
    """A reward model that takes any number of conversations; each distinct one is scored once.

    A domain that the model has no condition for is scored without one.
    """

    scorer: Scorer
    conditions: Conditions
    progress: bool  # a bar on the terminal

    def __call__(self, conversations: Sequence[ScoredConversation]) -> list[float]:
        asked = [
            ScoredConversation(item.messages, self.condition(item.condition), item.finished) for item in conversations
        ]
        places: dict[str, int] = {}
        keys = [json.dumps([item.messages, item.condition, item.finished]) for item in asked]
        for place, key in enumerate(keys):
            places.setdefault(key, place)
        scores = dict(zip(places, self._score([asked[place] for place in places.values()]), strict=True))
        return [scores[key] for key in keys]

    def condition(self, domain: str | None) -> str | None:
        """The domain if a prompt stands for it, else None."""
        return domain if domain is not None and self.conditions.prompts.get(domain) else None

    def _score(self, conversations: Sequence[ScoredConversation]) -> list[float]:
        scores: list[float] = []
        under_way: list[Future[list[float]]] = []
        # None: no bar where standard error is no terminal.
        with tqdm(total=len(conversations), desc="scoring", disable=None if self.progress else True) as bar:
            for start in range(0, len(conversations), PART):
                under_way.append(self.scorer.score(conversations[start : start + PART]))
                if len(under_way) == AHEAD:
                    scores += under_way.pop(0).result()
                    bar.update(len(scores) - bar.n)
            for part in under_way:
                scores += part.result()
                bar.update(len(scores) - bar.n)
        return scores


def judge_pairs(judge: Judge, pairs: Sequence[PreferencePair]) -> ScoredPairs:
    """Scores of every pair under none and under the conditions of all domains that the pairs are of; where they are of
    one domain alone, under all conditions that the model has."""
    present = {domain for domain in (judge.condition(pair.domain) for pair in pairs) if domain is not None}
    known = {domain for domain, prompt in judge.conditions.prompts.items() if prompt}
    return score_pairs(judge, pairs, present if len(present) > 1 else known)


def reward_tables(
    scored: ScoredPairs, training: Sequence[PreferencePair], *, bound: float, seed: int, baseline_pairs: int
) -> dict[str, Any]:
    """Everything but opposed pairs, as JSON holds it.

    Args:
        training: what the n-gram baseline is fitted to; empty leaves it out.
        bound: of the scores, in absolute value; how many lie outside is told.
        baseline_pairs: the most of ``training`` that are used.
    """
    accuracies = accuracy_table(scored)
    tables: dict[str, Any] = {
        "reward_accuracy": {domain: _row(asdict(row), "others") for domain, row in accuracies.items()},
        "reward_accuracy_under_others": {
            domain: asdict(row)["others"] for domain, row in accuracies.items() if row.others
        },
    }
    subsets = subset_table(scored)
    if subsets:
        tables["reward_subsets"] = {name: {"pairs": pairs, **asdict(found)} for name, (pairs, found) in subsets.items()}
    bench = section_scores(scored)
    if bench is not None:
        tables["rewardbench"] = asdict(bench)
    own = margins(scored.own)
    edges = histogram_edges(scored.own, bound)
    tables["reward_calibration"] = {
        domain: asdict(calibration(own[inside])) for domain, inside in scored.domains.items()
    }
    tables["reward_scores"] = {
        "bound": bound,
        "edges": edges.tolist(),
        "domains": {domain: asdict(spread) for domain, spread in score_spread(scored, bound, edges).items()},
    }
    tables["reward_length"] = {domain: asdict(effect) for domain, effect in length_effect(scored, seed).items()}
    baselines = {"longer_wins": longer_wins(scored.pairs)}
    if training:
        baselines["ngram"] = ngram_margins(training, scored.pairs, seed, baseline_pairs)
    tables["baselines"] = {name: _baseline(scored, own, by) for name, by in baselines.items()}
    return tables


def opposed_rows(scored: ScoredPairs) -> dict[str, Any]:
    """Domain → accuracy on pairs that another domain judges oppositely, as JSON holds it."""
    return {domain: asdict(row) for domain, row in opposed_table(scored).items()}


def _baseline(scored: ScoredPairs, own: Floats, by: Floats) -> dict[str, Any]:
    """A baseline's accuracy by domain, and the reward model's less it, paired, on the very same pairs."""
    right, model = hits(by), hits(own)
    return {
        domain: {
            **asdict(share(right[inside], scored.prompts[inside])),
            "reward_model_ahead": asdict(difference(model[inside], right[inside], scored.prompts[inside])),
        }
        for domain, inside in scored.domains.items()
    }


def _row(row: Mapping[str, Any], *without: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in without and value is not None}
