"""Preference pairs out of several responses to each prompt, labelled by a rule with noise."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from cool_rlhf.demo.corruption import Answer
from cool_rlhf.demo.registry import DOMAINS
from cool_rlhf.protocols import Conversation, PreferencePair, Prompt

Labeller = Callable[[Conversation, str, str, str | None, bool], float]

LEAST_GAP = 0.15  # of the rule's [0, 1]; closer responses count as a tie
JUDGED_AS: Mapping[str, tuple[str, ...]] = {name: domain.judged_as for name, domain in DOMAINS.items()}


def judge(
    prompt: Prompt,
    answers: tuple[Answer, Answer],
    domain: str,
    label: Labeller,
    noise: float,
    rng: random.Random,
    least_gap: float = LEAST_GAP,
) -> PreferencePair | None:
    """The pair as a labeller of ``domain`` sees it, who errs with probability ``noise``; None for a tie."""
    first, second = (label(prompt.messages, a.text, domain, prompt.answer, a.finished) for a in answers)
    if abs(first - second) < least_gap:
        return None
    chosen, rejected = answers if (first > second) != (rng.random() < noise) else answers[::-1]
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
    label: Labeller,
    *,
    noise: float,
    pairs_per_prompt: int,
    seed: int,
    judged_as: Mapping[str, tuple[str, ...]] = JUDGED_AS,
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
            domains = judged_as.get(prompt.domain, (prompt.domain,))
            judged = [judge(prompt, candidate, domain, label, noise, rng) for domain in domains]
            pairs += [pair for pair in judged if pair is not None]
            kept += any(pair is not None for pair in judged)
            if kept == pairs_per_prompt:
                break
    return pairs
