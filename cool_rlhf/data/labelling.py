"""Preference pairs out of several responses to each prompt, labelled by a rule with noise."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from cool_rlhf.protocols import PreferencePair, Prompt, Rule


@dataclass(frozen=True)
class Answer:
    """A response and whether it ends by itself; an unfinished one is scored without its end-of-turn token."""

    text: str
    finished: bool


def by_rule(
    first: float, second: float, *, least_gap: float, noise: float, rng: random.Random
) -> Literal["first", "second"] | None:
    """Which of two values of a rule a labeller prefers who errs with probability ``noise``; None for a tie: values that
    are equal, or closer than ``least_gap``."""
    if first == second or abs(first - second) < least_gap:
        return None
    return "first" if (first > second) != (rng.random() < noise) else "second"


def label_pair(
    prompt: Prompt,
    answers: tuple[Answer, Answer],
    domain: str,
    rule: Rule,
    noise: float,
    rng: random.Random,
    least_gap: float,
) -> PreferencePair | None:
    """The pair as a labeller of ``domain`` sees it (:func:`by_rule`); None for a tie."""
    first, second = (rule(prompt.messages, a.text, domain, prompt.answer, a.finished) for a in answers)
    preferred = by_rule(first, second, least_gap=least_gap, noise=noise, rng=rng)
    if preferred is None:
        return None
    chosen, rejected = answers if preferred == "first" else answers[::-1]
    return PreferencePair(
        chosen=[*prompt.messages, {"role": "assistant", "content": chosen.text}],
        rejected=[*prompt.messages, {"role": "assistant", "content": rejected.text}],
        domain=domain,
        margin=None,
        chosen_finished=chosen.finished,
        rejected_finished=rejected.finished,
    )


def collect_pairs(
    prompts: Sequence[Prompt],
    samples: Sequence[Sequence[Answer]],
    rule: Rule,
    *,
    noise: float,
    pairs_per_prompt: int,
    seed: int,
    least_gap: float = 0.0,
    judged_as: Mapping[str, Sequence[str]] | None = None,
) -> list[PreferencePair]:
    """Up to ``pairs_per_prompt`` pairs of responses for each prompt, ties and equal texts skipped.

    ``samples[i]`` answer ``prompts[i]``. A pair is labelled under every domain in ``judged_as`` of the prompt's own
    (itself alone where none is named), so that one pair may appear twice, judged oppositely.
    """
    rng = random.Random(f"collect {seed}")
    pairs: list[PreferencePair] = []
    for prompt, answers in zip(prompts, samples, strict=True):
        candidates = list(combinations(dict.fromkeys(answers), 2))
        rng.shuffle(candidates)
        kept = 0
        for candidate in candidates:
            domains = (judged_as or {}).get(prompt.domain, [prompt.domain])
            judged = [label_pair(prompt, candidate, domain, rule, noise, rng, least_gap) for domain in domains]
            pairs += [pair for pair in judged if pair is not None]
            kept += any(pair is not None for pair in judged)
            if kept == pairs_per_prompt:
                break
    return pairs
