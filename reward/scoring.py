"""Scores of whole conversations: the head's value at one reward token, put once at the very end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from cool_rlhf.data.chat import encode_reward
from cool_rlhf.data.packing import micro_batches, pack
from cool_rlhf.models.forward import token_values
from cool_rlhf.models.loading import load_scalar_model, load_tokenizer
from cool_rlhf.protocols import Conversation, ScoredConversation, UserError
from reward.conditions import FILE_NAME, Conditions

CONDITION_JOIN = "separate_system_turn"
MICRO_BATCH_TOKENS = 16384


@torch.no_grad()
def score_conversations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conditions: Conditions,
    conversations: Sequence[ScoredConversation],
    *,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
    max_length: int,
) -> list[float]:
    """The score of each conversation under its condition, in order; packed by token budget, nothing padded.

    An unfinished response is scored without the closing of its turn: closed, it would look complete.
    """
    sequences = [
        encode_reward(tokenizer, item.messages, conditions.prompt(item.condition), item.finished, max_length)
        for item in conversations
    ]
    scores = [0.0] * len(sequences)
    for group in micro_batches([len(sequence) for sequence in sequences], micro_batch_tokens):
        packed = pack([sequences[index] for index in group]).to(model.device)
        for index, score in zip(group, token_values(model, packed)[packed.ends].tolist(), strict=True):
            scores[index] = score
    return scores


class RewardModel:
    """A conditional reward model ready to score.

    A conversation is a list of ``{"role", "content"}`` that ends in the assistant's turn. A condition is a domain's
    name, None for no system prompt; an unknown one raises :class:`reward.conditions.UnknownConditionError`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        conditions: Conditions,
        *,
        max_length: int,
        micro_batch_tokens: int = MICRO_BATCH_TOKENS,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.conditions = conditions
        self._max_length = max_length
        self._micro_batch_tokens = micro_batch_tokens

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RewardModel:
        """Load a checkpoint folder or Hub name.

        Args:
            device: the first GPU if there is one, else the CPU.
            dtype: bfloat16 on a GPU, float32 on the CPU. The head is float32 in any case.
        """
        place = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        precision = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
        model = load_scalar_model(path, precision, head="keep", seed=0)
        torch.nn.Module.to(model, place)
        join = getattr(model.config, "condition_join", CONDITION_JOIN)
        if join != CONDITION_JOIN:
            raise UserError(f"{path} joins conditions by {join!r}; only {CONDITION_JOIN!r} is known here")
        return cls(
            model,
            load_tokenizer(path),
            load_conditions(path),
            max_length=model.config.max_position_embeddings,
        )

    def score(self, conversation: Conversation, condition: str | None = None) -> float:
        return self.scores([conversation], condition)[0]

    def scores(
        self, conversations: Sequence[Conversation], conditions: Sequence[str | None] | str | None = None
    ) -> list[float]:
        """A score for each conversation, in order; one condition for all, or one each."""
        if conditions is None or isinstance(conditions, str):
            conditions = [conditions] * len(conversations)
        if len(conditions) != len(conversations):
            raise ValueError(f"{len(conditions)} conditions for {len(conversations)} conversations")
        pairs = zip(conversations, conditions, strict=True)
        return self.score_batch([ScoredConversation(messages, condition, True) for messages, condition in pairs])

    def score_batch(self, conversations: Sequence[ScoredConversation]) -> list[float]:
        """As :meth:`scores`, for responses that may be unfinished."""
        return score_conversations(
            self.model,
            self.tokenizer,
            self.conditions,
            conversations,
            micro_batch_tokens=self._micro_batch_tokens,
            max_length=self._max_length,
        )

    def compare(self, a: Conversation, b: Conversation, condition: str | None = None) -> bool:
        """Whether ``a`` is better than ``b``."""
        first, second = self.scores([a, b], condition)
        return first > second

    def rank(self, conversations: Sequence[Conversation], condition: str | None = None) -> list[int]:
        """The rank of each conversation, 0 the best; among equals the earlier stands first."""
        scores = self.scores(conversations, condition)
        ranks = [0] * len(scores)
        for rank, index in enumerate(sorted(range(len(scores)), key=lambda index: -scores[index])):
            ranks[index] = rank
        return ranks


def load_conditions(path: str | Path) -> Conditions:
    """The conditions that stand beside a checkpoint's weights; none for a model that was trained without."""
    file = cached_file(str(path), FILE_NAME, _raise_exceptions_for_missing_entries=False)
    return Conditions.load(Path(file)) if file else Conditions({})
