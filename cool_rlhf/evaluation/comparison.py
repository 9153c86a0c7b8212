"""Two policies on the same prompts: means by domain, and the difference paired by prompt with its standard error.

A prompt is one observation: several responses to it are averaged first. So the standard error of a difference is
sd(d) / √n over the n prompts' differences d, and of a mean sd / √n over the prompts' means.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from reward.statistics import expected_best

MEASURES = ("score", "gold", "response_length", "finished")
OVERALL = "overall"
WITH_GOLD = "overall_with_gold"  # the prompts that have gold, where others have none


@dataclass(frozen=True)
class JudgedResponse:
    """One response to one prompt, and what is measured of it."""

    prompt_id: str
    domain: str
    score: float  # the reward model's, under the prompt's own domain
    gold: float | None  # by the domain's exact rule; None where there is none
    response_length: int  # tokens, the end of turn among them
    finished: bool  # ended before the token limit


@dataclass(frozen=True)
class Estimate:
    """A mean over ``prompts`` and its standard error, which one prompt alone does not give."""

    mean: float
    standard_error: float | None
    prompts: int


Table = dict[str, dict[str, Estimate]]  # "overall", "overall_with_gold" or domain → measure → estimate


def means(responses: Sequence[JudgedResponse]) -> Table:
    """Every measure's mean over prompts, overall and by domain; a measure that no prompt has is left out."""
    by_prompt = {measure: _by_prompt(responses, measure) for measure in MEASURES}
    return _table(_domains(responses), by_prompt)


def differences(before: Sequence[JudgedResponse], after: Sequence[JudgedResponse]) -> Table:
    """``after`` less ``before``, paired by prompt. Raises ValueError where the two have different prompts."""
    domains = _domains(before)
    if domains != _domains(after):
        raise ValueError("the two sides were sampled on different prompts, which cannot be paired")
    changes: dict[str, dict[str, float]] = {}
    for measure in MEASURES:
        old, new = _by_prompt(before, measure), _by_prompt(after, measure)
        changes[measure] = {prompt: new[prompt] - old[prompt] for prompt in old.keys() & new.keys()}
    return _table(domains, changes)


def best_of(responses: Sequence[JudgedResponse], value: Callable[[JudgedResponse], float]) -> list[JudgedResponse]:
    """For each prompt the response of highest ``value``; all of them where several are equal, since any might be
    chosen: of a prompt's responses :func:`means` takes the average."""
    highest: dict[str, float] = {}
    for response in responses:
        highest[response.prompt_id] = max(value(response), highest.get(response.prompt_id, -math.inf))
    return [response for response in responses if value(response) == highest[response.prompt_id]]


def expected_best_of(
    responses: Sequence[JudgedResponse], value: Callable[[JudgedResponse], float], count: int
) -> Table:
    """Score and gold of the best of ``count`` by ``value`` among each prompt's responses, in expectation over which of
    them were sampled; a mean over prompts. Every prompt needs ``count`` responses at least."""
    groups: dict[str, list[JudgedResponse]] = defaultdict(list)
    for response in responses:
        groups[response.prompt_id].append(response)
    found: dict[str, dict[str, float]] = {}
    for measure in ("score", "gold"):
        found[measure] = {
            prompt: expected_best([value(one) for one in group], [getattr(one, measure) for one in group], count)
            for prompt, group in groups.items()
            if all(getattr(one, measure) is not None for one in group)
        }
    return _table(_domains(responses), found)


def estimate(values: Sequence[float]) -> Estimate:
    """Of one value for each prompt."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(fmean(values), error, len(values))


def _domains(responses: Sequence[JudgedResponse]) -> dict[str, str]:
    return {response.prompt_id: response.domain for response in responses}


def _by_prompt(responses: Sequence[JudgedResponse], measure: str) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for response in responses:
        value = getattr(response, measure)
        if value is not None:
            values[response.prompt_id].append(float(value))
    return {prompt: fmean(own) for prompt, own in values.items()}


def _table(domains: Mapping[str, str], by_prompt: Mapping[str, Mapping[str, float]]) -> Table:
    known = [prompt for prompt in domains if prompt in by_prompt["gold"]]
    chosen = {OVERALL: list(domains), **({WITH_GOLD: known} if 0 < len(known) < len(domains) else {})}
    for name in sorted(set(domains.values())):
        chosen[name] = [prompt for prompt, domain in domains.items() if domain == name]
    table: Table = {}
    for name, prompts in chosen.items():
        row = {
            measure: [values[prompt] for prompt in prompts if prompt in values] for measure, values in by_prompt.items()
        }
        table[name] = {measure: estimate(values) for measure, values in row.items() if values}
    return table
