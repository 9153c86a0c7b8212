"""Scores of whole conversations: the head's value at one reward token, put once at the very end."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from cool_rlhf.data.chat import encode_reward
from cool_rlhf.data.messages import ROLES, RowError, checked_text
from cool_rlhf.data.packing import micro_batches, pack
from cool_rlhf.models.forward import token_states
from cool_rlhf.models.loading import load_scalar_model, load_tokenizer, scalar_head
from cool_rlhf.protocols import Conversation, ScoredConversation, UserError
from reward.conditions import FILE_NAME, Conditions

CONDITION_JOIN = "separate_system_turn"
MICRO_BATCH_TOKENS = 16384
CHUNK_TOKENS = 2**20  # tokens held at once; what was read of them is dropped before more is read
CHUNK_CONVERSATIONS = 4096
# Matrix kernels are made, and kept, for each new number of tokens. Over many passes that would cost hundreds of MiB, so
# those are filled up to a multiple of so many tokens by a sequence of no account.
EVEN_TOKENS = 1024
FEW_PASSES = 8

Conditioning = Iterable[str | None] | str | None


class ConditionalScorer(ABC):
    """What every way to score offers, whether the model runs here, in vLLM or behind HTTP.

    A conversation is a list of ``{"role", "content"}`` that ends in the assistant's turn. A condition is a domain's
    name, None for no system prompt; an unknown one raises :class:`reward.conditions.UnknownConditionError`.

    Conversations may come from an iterator: they are read, tokenised and scored in chunks, so memory does not grow with
    their number. A conversation longer than ``max_length`` tokens loses its beginning, never its condition or the
    reward token. With more than one chunk on a terminal a progress bar is shown; ``progress`` says otherwise.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, conditions: Conditions, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.conditions = conditions
        self.max_length = max_length

    @abstractmethod
    def score_tokens(self, sequences: Sequence[Tensor]) -> list[float]:
        """The head's value at the last token of each (L,) sequence."""

    def score(self, conversation: Conversation, condition: str | None = None) -> float:
        return self.scores([conversation], condition)[0]

    def scores(
        self, conversations: Iterable[Conversation], conditions: Conditioning = None, *, progress: bool | None = None
    ) -> list[float]:
        """A score for each conversation, in order; one condition for all, or one each.

        Raises: ValueError where there are not as many conditions as conversations.
        """
        items = _conditioned(conversations, conditions)
        return self._score(items, _count(conversations), progress)

    def score_table(
        self,
        conversations: Iterable[Conversation],
        conditions: Sequence[str | None] | None = None,
        *,
        progress: bool | None = None,
    ) -> list[dict[str | None, float]]:
        """Every conversation under several conditions: one row each, condition → score.

        Args:
            conditions: those of the checkpoint and None (no system prompt) if not given.
        """
        asked = [None, *self.conditions.prompts] if conditions is None else list(dict.fromkeys(conditions))
        items = (ScoredConversation(messages, name, True) for messages in conversations for name in asked)
        count = _count(conversations)
        scores = iter(self._score(items, None if count is None else count * len(asked), progress))
        return [dict(zip(asked, row, strict=True)) for row in iter(lambda: list(islice(scores, len(asked))), [])]

    def compare(self, a: Conversation, b: Conversation, condition: str | None = None) -> bool:
        """Whether ``a`` is better than ``b``."""
        first, second = self.scores([a, b], condition)
        return first > second

    def rank(self, conversations: Iterable[Conversation], condition: str | None = None) -> list[int]:
        """The rank of each conversation, 0 the best; among equals the earlier stands first."""
        scores = self.scores(conversations, condition)
        ranks = [0] * len(scores)
        for rank, index in enumerate(sorted(range(len(scores)), key=lambda index: -scores[index])):
            ranks[index] = rank
        return ranks

    def score_batch(self, conversations: Iterable[ScoredConversation], *, progress: bool | None = None) -> list[float]:
        """As :meth:`scores`, for responses that may be unfinished: those are scored without the closing of their turn,
        for closed they would look complete."""
        return self._score(conversations, _count(conversations), progress)

    def _score(self, items: Iterable[ScoredConversation], count: int | None, progress: bool | None) -> list[float]:
        chunks = _chunks(self.encode(item, index) for index, item in enumerate(items))
        begun = list(islice(chunks, 2))
        shown = len(begun) > 1 and sys.stderr.isatty() if progress is None else progress
        scores: list[float] = []
        with tqdm(total=count, unit=" scores", disable=not shown) as bar:
            for chunk in chain(begun, chunks):
                scores += self.score_tokens(chunk)
                bar.update(len(chunk))
        return scores

    def encode(self, item: ScoredConversation, index: int = 0) -> Tensor:
        """(L,) token ids of a conversation under its condition, the reward token once and last.

        Raises: UserError naming the conversation by ``index`` where it is none.
        """
        _check(item.messages, index)
        prompt = self.conditions.prompt(item.condition)
        return encode_reward(self.tokenizer, item.messages, prompt, item.finished, self.max_length)


class RewardModel(ConditionalScorer):
    """A conditional reward model in this process, ready to score."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        conditions: Conditions,
        *,
        max_length: int,
        micro_batch_tokens: int = MICRO_BATCH_TOKENS,
    ) -> None:
        super().__init__(tokenizer, conditions, max_length)
        self.model = model.eval()
        self._micro_batch_tokens = micro_batch_tokens

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        micro_batch_tokens: int = MICRO_BATCH_TOKENS,
    ) -> RewardModel:
        """Load a checkpoint folder or Hub name.

        Args:
            device: the first GPU if there is one, else the CPU.
            dtype: bfloat16 on a GPU, float32 on the CPU. The head is float32 in any case.
            micro_batch_tokens: of a forward pass; a longer conversation has one of its own.
        """
        place = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        precision = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
        model = load_scalar_model(path, precision, head="keep", seed=0)
        torch.nn.Module.to(model, place)
        check_condition_join(path, vars(model.config))
        return cls(
            model,
            load_tokenizer(path),
            load_conditions(path),
            max_length=model.config.max_position_embeddings,
            micro_batch_tokens=micro_batch_tokens,
        )

    @torch.no_grad()
    def scores_and_states(self, conversations: Sequence[ScoredConversation]) -> tuple[list[float], Tensor]:
        """As :meth:`score_batch`, with (N, hidden) float32, on the CPU: the last hidden state at each conversation's
        reward token, which the head makes the score of."""
        sequences = [self.encode(item, index) for index, item in enumerate(conversations)]
        scores = torch.zeros(len(sequences))
        states = torch.zeros(len(sequences), self.model.config.hidden_size)
        for places, of_places, last in self._passes(sequences):
            scores[places], states[places] = of_places, last.cpu()
        return scores.tolist(), states

    @torch.no_grad()
    def score_tokens(self, sequences: Sequence[Tensor]) -> list[float]:
        scores = torch.zeros(len(sequences))
        for places, of_places, _ in self._passes(sequences):
            scores[places] = of_places
        return scores.tolist()

    def _passes(self, sequences: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Of each pass which n of the sequences it is of, their scores, (n,) float32 on the CPU, and their last hidden
        states at the end, (n, hidden) float32.

        Packed by token budget, nothing padded. Equal sequences are computed once: two places in a pack may round
        differently, and one would seem better than the other.
        """
        places: dict[bytes, list[int]] = {}
        for index, sequence in enumerate(sequences):
            places.setdefault(sequence.numpy().tobytes(), []).append(index)
        copies = list(places.values())
        distinct = [sequences[indices[0]] for indices in copies]
        head = scalar_head(self.model)
        groups = micro_batches([len(sequence) for sequence in distinct], self._micro_batch_tokens)
        for group in groups:
            held = [distinct[index] for index in group]
            if len(groups) > FEW_PASSES:
                held.append(held[0].new_zeros(-sum(map(len, held)) % EVEN_TOKENS))
            packed = pack(held).to(self.model.device)
            last = token_states(self.model, packed)[packed.ends[: len(group)]]
            at = [row for row, place in enumerate(group) for _ in copies[place]]
            scores = head(last).squeeze(-1).float().cpu()
            yield [index for place in group for index in copies[place]], scores[at], last[at]


def load_conditions(path: str | Path) -> Conditions:
    """The conditions that stand beside a checkpoint's weights; none for a model that was trained without."""
    file = cached_file(str(path), FILE_NAME, _raise_exceptions_for_missing_entries=False)
    return Conditions.load(Path(file)) if file else Conditions({})


def load_score_bound(path: str | Path) -> float | None:
    """What the scores of a reward checkpoint were trained to stay below, in absolute value; None where it does not
    say."""
    fields, _ = PreTrainedConfig.get_config_dict(str(path))
    bound = fields.get("score_bound")
    return None if bound is None else float(bound)


def check_condition_join(path: str | Path, fields: Mapping[str, Any]) -> None:
    """UserError where the config of a checkpoint says that its conditions join conversations in an unknown way."""
    join = fields.get("condition_join", CONDITION_JOIN)
    if join != CONDITION_JOIN:
        raise UserError(f"{path} joins conditions by {join!r}; only {CONDITION_JOIN!r} is known here")


def _count(conversations: Iterable[Any]) -> int | None:
    return len(conversations) if isinstance(conversations, Sized) else None


def _conditioned(conversations: Iterable[Conversation], conditions: Conditioning) -> Iterator[ScoredConversation]:
    if conditions is None or isinstance(conditions, str):
        yield from (ScoredConversation(messages, conditions, True) for messages in conversations)
        return
    if isinstance(conversations, Sized) and isinstance(conditions, Sized) and len(conversations) != len(conditions):
        raise ValueError(f"{len(conditions)} conditions for {len(conversations)} conversations")
    none = object()
    for index, (messages, name) in enumerate(zip_longest(conversations, conditions, fillvalue=none)):
        if messages is none or name is none:
            more, fewer = ("conditions", "conversations") if messages is none else ("conversations", "conditions")
            raise ValueError(f"there are more {more} than {fewer}, of which there are {index}")
        yield ScoredConversation(cast(Conversation, messages), cast("str | None", name), True)


def _chunks(sequences: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Sequences in order, at most ``CHUNK_CONVERSATIONS`` and about ``CHUNK_TOKENS`` at once."""
    chunk: list[Tensor] = []
    tokens = 0
    for sequence in sequences:
        chunk.append(sequence)
        tokens += len(sequence)
        if tokens >= CHUNK_TOKENS or len(chunk) >= CHUNK_CONVERSATIONS:
            yield chunk
            chunk, tokens = [], 0
    if chunk:
        yield chunk


def _check(messages: Conversation, index: int) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"conversation {index} is no list of messages: give [{{'role': …, 'content': …}}, …]")
    for number, turn in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(turn, Mapping) or not isinstance(turn.get(key), str):
                raise UserError(f"conversation {index}, message {number} has no text under {key!r}: give it one")
        try:
            checked_text(turn["content"], "content", may_be_empty=True)
        except RowError as error:
            raise UserError(f"conversation {index}, message {number}: {error}") from error
        if turn["role"] not in ROLES:
            raise UserError(
                f"conversation {index}, message {number} has the role {turn['role']!r}: use one of {', '.join(ROLES)}"
            )
