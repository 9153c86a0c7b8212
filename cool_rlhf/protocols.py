"""The records that travel between the parts, and what each part must do.

Index t means token t everywhere: ``logprobs[t]`` belongs to token t given what stands before it, ``values[t]`` is the
critic's estimate before token t is chosen. Masks are True on response tokens. Sequences are ragged: a record holds
one sequence at its own length, and batches are lists of records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Message(TypedDict):
    """One turn. ``name`` is ``plugin`` or ``interpreter`` in the turns of tools: a system turn that lists them, an
    environment turn that holds what they answered. ``weight`` is 0 in a turn of the assistant that SFT does not
    learn."""

    role: str
    content: str
    name: NotRequired[str]
    weight: NotRequired[int]


Conversation = list[Message]


@dataclass(frozen=True)
class Prompt:
    """One query: the conversation so far (last turn not the assistant's), its preference domain, a checkable answer."""

    id: str
    messages: Conversation
    domain: str
    answer: str | None


@dataclass(frozen=True)
class PreferencePair:
    """Two whole conversations that differ in their last assistant turn, judged under one domain.

    ``chosen_finished`` and ``rejected_finished`` are False for a response that hit the token limit: it is then scored
    without the closing ``<|im_end|>``. ``subset`` is the part of a benchmark that a row belongs to.
    """

    chosen: Conversation
    rejected: Conversation
    domain: str
    margin: float | None
    chosen_finished: bool
    rejected_finished: bool
    subset: str | None = None


@dataclass(frozen=True)
class Rollout:
    """One sampled response. Where it is ``finished``, ``response_tokens`` ends with what ended it: the end-of-turn or
    end-of-text token, or the token that completes one of ``sampling.stop``."""

    prompt: Prompt
    prompt_tokens: Tensor  # (P,) int64
    response_tokens: Tensor  # (R,) int64, R >= 1
    logprobs: Tensor  # (R,) float32, the engine's raw log-probabilities of the sampled tokens
    finished: bool
    policy_version: int
    response: str  # as text, without what ended it; other special tokens are spelt out

    @property
    def tokens(self) -> Tensor:
        """Prompt and response in one sequence, (P + R,) int64."""
        import torch

        return torch.cat([self.prompt_tokens, self.response_tokens])

    @property
    def mask(self) -> Tensor:
        """True on response tokens, (P + R,) bool."""
        import torch

        positions = torch.arange(len(self.prompt_tokens) + len(self.response_tokens))
        return positions >= len(self.prompt_tokens)


@dataclass(frozen=True)
class Experience:
    """What one rollout teaches; every tensor has the length L of prompt and response, and is 0 outside ``mask``."""

    tokens: Tensor  # (L,) int64
    mask: Tensor  # (L,) bool, True on response tokens
    old_logprobs: Tensor  # (L,) float32, before the update: the trainer's, or by config the engine's
    reference_logprobs: Tensor  # (L,) float32
    values: Tensor  # (L,) float32
    advantages: Tensor  # (L,) float32
    returns: Tensor  # (L,) float32


@dataclass(frozen=True)
class ScoredConversation:
    """What a scorer is asked: a conversation ending in the assistant's turn, the condition, whether it was finished."""

    messages: Conversation
    condition: str | None  # a domain's name; None scores without a system prompt
    finished: bool


class Future(Protocol[T_co]):
    """A value under way on another process, or already here."""

    def result(self) -> T_co: ...


class Forward(Protocol):
    """A model behind an engine that may shard it."""

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """``function(module, *arguments)`` as the engine's forward pass: sharded weights are gathered around it."""
        ...


class TrainEngine(Forward, Protocol):
    """A module, its optimiser and the ranks that share it. One backward pass adds ``loss`` to a sum over micro-batches
    and ranks: callers divide by the whole batch's count first, so the gradient does not depend on how it was cut."""

    module: PreTrainedModel
    device: torch.device
    rank: int
    world_size: int

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of ``loss``; ``last`` marks this rank's last micro-batch before ``step``. Every rank
        calls it equally often (with a loss of zero where a rank has fewer micro-batches)."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients; returns the gradient's norm before clipping."""
        ...

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights under their checkpoint names, one at a time; every rank must iterate in step."""
        ...

    def save(self, folder: Path) -> None:
        """Parameters, optimiser and random state."""
        ...

    def load(self, folder: Path) -> None: ...


Portion = list[tuple[int, Rollout]]
"""Some of the rollouts that were asked for, each with the place of its prompt."""


class Sampling(Future[list[Rollout]], Protocol):
    """Rollouts under way: to be had all at once, in the order of the prompts, or in portions."""

    def portions(self) -> Iterator[Portion]:
        """Every rollout once, as soon as a portion is finished. Which ones make a portion is the same each time that
        the same is asked; the order of the portions need not be."""
        ...


class Sampler(Protocol):
    """Generates with the newest published weights."""

    def sample(self, prompts: Sequence[Prompt], *, seed: int, version: int) -> Sampling:
        """One rollout for each prompt. Raises StaleWeightsError when the engine's weights are not ``version``."""
        ...


class Scorer(Protocol):
    def score(self, conversations: Sequence[ScoredConversation]) -> Future[list[float]]: ...


class LanguageModel(Protocol):
    """A model that can say how likely it finds the tokens of each sequence."""

    def logprobs(
        self, sequences: Sequence[Tensor], *, begins: Sequence[int] | None = None, temperature: float | None = None
    ) -> Future[list[Tensor]]:
        """For each (L,) sequence its (L,) float32 log-probabilities; index 0 holds 0. ``begins``: of each sequence the
        first token that is asked for, such as a response's first; what stands before it holds 0 and costs no output
        layer. ``temperature``: the one that responses are sampled at, if None."""
        ...


class Policy(LanguageModel, Protocol):
    def logprobs(
        self,
        sequences: Sequence[Tensor],
        *,
        begins: Sequence[int] | None = None,
        temperature: float | None = None,
        keep: bool = False,
    ) -> Future[list[Tensor]]:
        """As of any language model. ``keep``: the next update takes just the sequences that this is asked with since
        the last one, so the forward passes over them may wait for it."""
        ...

    def update(
        self,
        batch: Sequence[Experience],
        pretrain: Sequence[Tensor],
        learning_rate: float,
        kl_coefficient: float,
        entropy_coefficient: float,
    ) -> Future[dict[str, float]]:
        """One optimiser step over all of ``batch`` and ``pretrain``. ``kl_coefficient`` weighs the divergence in the
        loss: 0 where it stands in the reward; ``entropy_coefficient`` the entropy that is taken from it."""
        ...

    def publish(self) -> int:
        """Push the weights into the rollout engine; returns their new version."""
        ...


class Critic(Protocol):
    def values(self, sequences: Sequence[Tensor], *, keep: bool = False) -> Future[list[Tensor]]:
        """For each (L,) sequence its (L,) float32 values, values[t] from position t - 1; index 0 holds 0. ``keep`` as
        for the policy."""
        ...

    def update(self, batch: Sequence[Experience], learning_rate: float) -> Future[dict[str, float]]: ...


class Rule(Protocol):
    """A judgement by program. Positions matter, names do not."""

    def __call__(
        self, messages: Conversation, response: str, domain: str, answer: str | None, finished: bool, /
    ) -> float:
        """How good ``response`` is as the next turn of ``messages``: any finite number.

        Args:
            messages: the prompt, its system turn and earlier turns included; not the condition.
            response: as text, without what ended it; other special tokens that the policy said are spelt out.
            domain: the prompt's.
            answer: the prompt's ``answer``, None where its row has none.
            finished: False for a response that was cut at the token limit.
        """
        ...


class StepObserver(Protocol):
    """Told after each optimiser step of a supervised stage; what it keeps of that is its own."""

    def record(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """``step`` of ``steps`` is done, counted from 1."""
        ...

    def save(self, step: int) -> None:
        """Keep what resuming after ``step`` needs; the model is that of ``step``."""
        ...


class StaleWeightsError(RuntimeError):
    """A generation was asked of weights that the engine does not hold."""


class UserError(Exception):
    """A mistake of the user's: one sentence that says what is wrong, where, and what to do. Exit status 2."""
