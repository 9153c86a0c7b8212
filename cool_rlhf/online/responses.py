"""Answers of the policies to the same prompts, and what the fast and the slow path ask of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from cool_rlhf.data.identity import judges_repairs
from cool_rlhf.protocols import Message, Prompt, ScoredConversation

SFT, EARLY, LATE = "sft", "early", "late"
POLICIES = (SFT, EARLY, LATE)

Floats = NDArray[np.float64]
Score = Callable[[Sequence[ScoredConversation]], list[float]]  # for instance RewardModel.score_batch


@dataclass(frozen=True)
class Response:
    """One answer to one prompt.

    ``score``: what the reward model pays in the prompt's domain. ``gold``: the domain's rule, None where it has none.
    ``tokens``: its length, the end of turn among them. ``kl``: log π − log π_ref summed over it, None where unknown.
    ``hidden``: (H,) the reward model's last hidden state at the scored token, None where it was not kept.
    """

    id: str
    prompt: Prompt
    text: str
    finished: bool
    tokens: int
    policy: str  # one of POLICIES
    round: int
    score: float
    gold: float | None
    kl: float | None
    hidden: Floats | None = field(compare=False, repr=False)

    @property
    def domain(self) -> str:
        return self.prompt.domain

    @cached_property
    def judges_repairs(self) -> bool:
        """Whether pairs of the prompt judge what mends a reward model instead of teaching it."""
        return judges_repairs(self.prompt.messages)

    def edited(self, text: str, finished: bool | None = None) -> Response | None:
        """This response with another text; None where that is empty or changes nothing.

        ``tokens`` goes by the texts' lengths; ``score``, ``gold``, ``kl`` and ``hidden`` stay those of the original.
        """
        done = self.finished if finished is None else finished
        if not text.strip() or (text == self.text and done == self.finished):
            return None
        tokens = max(1, round(self.tokens * len(text) / max(1, len(self.text))))
        return replace(self, text=text, finished=done, tokens=tokens)

    def conversation(self) -> ScoredConversation:
        """What a scorer is asked about this response, in its own domain."""
        messages = [*self.prompt.messages, Message(role="assistant", content=self.text)]
        return ScoredConversation(messages, self.domain, self.finished)


Gold = Callable[[Response], float | None]
Measure = Callable[[Response], float]


@dataclass(frozen=True)
class Evidence:
    """What the detectors look at: the three policies' answers to the same prompts, and who scores edited ones.

    ``score`` must be the scorer that gave the responses their scores; ``gold`` judges edited responses where a rule is
    known (None: there is none). Prompts that the late policy or both others left unanswered are not compared.
    """

    responses: Sequence[Response]
    score: Score
    gold: Gold | None

    @cached_property
    def _selected(self) -> dict[tuple[tuple[str, ...], str | None], list[Response]]:
        return {}  # what `of` has been asked for: every pattern asks for the same

    @cached_property
    def domains(self) -> list[str]:
        return sorted({response.domain for response in self.responses})

    @cached_property
    def scopes(self) -> list[str | None]:
        """All domains together (None), then each, unless there is only one."""
        return [None, *self.domains] if len(self.domains) > 1 else [None]

    def of(self, *policies: str, domain: str | None = None) -> list[Response]:
        """The responses of some policies, of one domain or (None) of all."""
        if (policies, domain) not in self._selected:
            chosen = [r for r in self.responses if r.policy in policies and domain in (None, r.domain)]
            self._selected[policies, domain] = chosen
        return list(self._selected[policies, domain])

    def late(self, domain: str | None = None) -> list[Response]:
        return self.of(LATE, domain=domain)

    def baseline(self, domain: str | None = None) -> list[Response]:
        """What the late policy is compared with: SFT's and the early policy's answers."""
        return self.of(SFT, EARLY, domain=domain)

    def reference(self, domain: str | None = None) -> list[Response]:
        """SFT's answers; the early policy's where SFT has none in this scope."""
        return self.of(SFT, domain=domain) or self.of(EARLY, domain=domain)

    def paired(self, measure: Measure, domain: str | None = None) -> tuple[Floats, Floats]:
        """(P,) and (P,): each prompt's mean of ``measure`` over the baseline's answers and over the late policy's."""
        return _paired(self.baseline(domain), self.late(domain), measure)

    def share(self, shows: Callable[[Response], bool], policy: str, domain: str | None = None) -> float | None:
        """The share of a policy's responses that show something; None where it has no responses."""
        answers = self.of(policy, domain=domain)
        return fmean(shows(response) for response in answers) if answers else None


def _paired(before: Sequence[Response], after: Sequence[Response], measure: Measure) -> tuple[Floats, Floats]:
    values: tuple[dict[str, list[float]], dict[str, list[float]]] = (defaultdict(list), defaultdict(list))
    for side, answers in zip(values, (before, after), strict=True):
        for response in answers:
            side[response.prompt.id].append(measure(response))
    prompts = [prompt for prompt in values[0] if prompt in values[1]]
    old, new = (np.array([fmean(side[prompt]) for prompt in prompts], dtype=np.float64) for side in values)
    return old, new
