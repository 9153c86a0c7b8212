"""The answers of a run's policies to the same held-out prompts, as the fast and the slow path look at them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite
from operator import mul
from pathlib import Path
from statistics import fmean
from typing import Any

from cool_rlhf.files import read_json_lines, write_atomically
from cool_rlhf.online.responses import LATE, SFT, Evidence, Gold, Response, Score
from cool_rlhf.online.statistics import exceeds
from cool_rlhf.ppo.rewards import Recipe, recipe_for
from cool_rlhf.protocols import PreferencePair, Prompt, Rollout, ScoredConversation, UserError
from cool_rlhf.roles.reference import RemoteLanguageModel
from cool_rlhf.roles.scorer import RemoteScorer


def drawn(rollouts: Sequence[Rollout], policy: str, round: int, seed: int) -> list[Response]:
    """What the engines sampled; scores, gold and KL are still to be filled in. ``seed``: that of the whole batch."""
    return [
        Response(
            id=f"{policy}-{round}-{seed}-{place}",
            prompt=rollout.prompt,
            text=rollout.response,
            finished=rollout.finished,
            tokens=len(rollout.response_tokens),
            policy=policy,
            round=round,
            score=0.0,
            gold=None,
            kl=None,
            hidden=None,
        )
        for place, rollout in enumerate(rollouts)
    ]


def with_divergence(
    responses: Sequence[Response], rollouts: Sequence[Rollout], reference: RemoteLanguageModel
) -> list[Response]:
    """With log π − log π_ref summed over each response, in nats, both at temperature 1; π is the engine's."""
    begins = [len(rollout.prompt_tokens) for rollout in rollouts]
    found = reference.logprobs([rollout.tokens for rollout in rollouts], begins=begins, temperature=1.0).result()
    return [
        replace(response, kl=float(rollout.logprobs.sum() - theirs[rollout.mask].sum()))
        for response, rollout, theirs in zip(responses, rollouts, found, strict=True)
    ]


@dataclass(frozen=True)
class Payer:
    """What the reward model pays the policy: scores under the conditions of a domain's recipe, weighted. The condition
    of a conversation names the domain here."""

    scorer: RemoteScorer
    recipes: Mapping[str, Recipe]

    def score(self, conversations: Sequence[ScoredConversation]) -> list[float]:
        scores = iter(_numbers(self.scorer.score(self._asked(conversations)).result()))
        weights = [self._weights(conversation.condition).values() for conversation in conversations]
        return [sum(map(mul, own, islice(scores, len(own)))) for own in weights]

    def judged(self, responses: Sequence[Response], gold: Gold) -> list[Response]:
        """With what the reward model pays, its hidden state under the first condition, and the gold reward where a rule
        is known."""
        pending = self.scorer.scores_and_states(self._asked([response.conversation() for response in responses]))
        golds = [gold(response) for response in responses]  # while the scorer works
        found = iter(pending.result())
        judged = []
        for response, own in zip(responses, golds, strict=True):
            weights = self._weights(response.domain).values()
            scores, states = zip(*islice(found, len(weights)), strict=True)
            score = sum(map(mul, weights, _numbers(scores)))
            judged.append(replace(response, score=score, gold=own, hidden=states[0].double().numpy()))
        return judged

    def _asked(self, conversations: Sequence[ScoredConversation]) -> list[ScoredConversation]:
        return [
            replace(conversation, condition=name)
            for conversation in conversations
            for name in self._weights(conversation.condition)
        ]

    def _weights(self, domain: str | None) -> Mapping[str, float] | Mapping[None, float]:
        """By condition. Where rules alone pay, the reward model is still looked into, for nothing."""
        if domain is None:
            return {None: 1.0}
        return recipe_for(self.recipes, domain).conditions or {None: 0.0}


def _numbers(scores: Sequence[float]) -> Sequence[float]:
    if not all(map(isfinite, scores)):
        raise UserError(
            "the reward model gives a response of the last round a score that is no number: its weights are damaged, "
            "or its dtype is too narrow (model.dtype)"
        )
    return scores


def evidence_of(responses: Sequence[Response], round: int, score: Score, gold: Gold) -> Evidence:
    """What the detectors compare in ``round``: SFT, and its early and late policy."""
    own = [response for response in responses if response.policy == SFT or response.round == round]
    known = any(response.gold is not None for response in own)
    return Evidence(own, score, gold if known else None)


def beside_start(
    responses: Sequence[Response], recipes: Mapping[str, Recipe], round: int, start: int | None
) -> list[tuple[PreferencePair, float]]:
    """Each answer of ``round``'s policy (chosen) beside one of what it started from, the policy of round ``start`` or
    (None) the SFT model, to the same prompt and under each condition that its domain is paid by; with weights, so that
    the weighted sum of differences in score is what a reward model pays the policy more, in the mean."""
    beside = _beside_start(responses, round, start)
    return [
        (_pair(late, other, condition), weight / len(beside))
        for late, other in beside
        for condition, weight in recipe_for(recipes, late.domain).conditions.items()
    ]


def gold_rises(responses: Sequence[Response], round: int, start: int | None) -> float:
    """One-sided p-value of ``round``'s policy being better by gold than what it started from, prompt by prompt; 1 where
    no gold is known."""
    gains: dict[str, list[float]] = defaultdict(list)
    for late, other in _beside_start(responses, round, start):
        if late.gold is not None and other.gold is not None:
            gains[late.prompt.id].append(late.gold - other.gold)
    return exceeds([fmean(differences) for differences in gains.values()], 0.0)


def _beside_start(responses: Sequence[Response], round: int, start: int | None) -> list[tuple[Response, Response]]:
    before: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        if response.policy == (SFT if start is None else LATE) and response.round == (start or 0):
            before[response.prompt.id].append(response)
    beside = []
    for response in responses:
        if response.policy == LATE and response.round == round and before[response.prompt.id]:
            other = before[response.prompt.id].pop(0)
            before[response.prompt.id].append(other)  # where it has answered less often it stands again
            beside.append((response, other))
    return beside


def _pair(chosen: Response, rejected: Response, condition: str) -> PreferencePair:
    sides = chosen.conversation(), rejected.conversation()
    return PreferencePair(sides[0].messages, sides[1].messages, condition, None, sides[0].finished, sides[1].finished)


def write_responses(path: Path, responses: Sequence[Response]) -> None:
    """One row a response; hidden states are left out."""
    rows = [_row(response) for response in responses]
    write_atomically(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())


def read_responses(path: Path) -> list[Response]:
    """Those that ``write_responses`` wrote."""
    fields: list[dict[str, Any]] = [
        {**row, "prompt": Prompt(**row["prompt"]), "hidden": None} for row in read_json_lines(path)
    ]
    return [Response(**row) for row in fields]


def means(responses: Sequence[Response], round: int) -> dict[str, float]:
    """``score/POLICY``, ``gold/POLICY`` and ``response_length/POLICY`` of SFT and of the round's policies, and the late
    policy's ``kl``."""
    found: dict[str, float] = {}
    shown = [response for response in responses if response.policy == SFT or response.round == round]
    for policy in dict.fromkeys(response.policy for response in shown):
        own = [response for response in shown if response.policy == policy]
        golds = [r.gold for r in own if r.gold is not None]
        found[f"score/{policy}"] = sum(r.score for r in own) / len(own)
        found[f"response_length/{policy}"] = sum(r.tokens for r in own) / len(own)
        if golds:
            found[f"gold/{policy}"] = sum(golds) / len(golds)
        divergences = [r.kl for r in own if r.kl is not None]
        if policy == LATE and divergences:
            found["kl"] = sum(divergences) / len(divergences)
    return found


def _row(response: Response) -> dict[str, Any]:
    prompt = response.prompt
    return {
        "id": response.id,
        "prompt": {field: getattr(prompt, field) for field in ("id", "messages", "domain", "answer")},
        **{
            field: getattr(response, field)
            for field in ("text", "finished", "tokens", "policy", "round", "score", "gold", "kl")
        },
    }
