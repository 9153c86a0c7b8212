"""Whether a prompt leaves room for a response in the positions that a model has.

No tokenizer is loaded for prompts that are short in any tokenizer, so most runs load none, and nothing heavy is
imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from cool_rlhf.config import Config
from cool_rlhf.models.fields import POSITIONS, config_fields, size_of
from cool_rlhf.protocols import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_BYTES = 64  # at most, of what the chat template writes around one turn


@dataclass(frozen=True)
class Room:
    """``positions`` of the model that answers: tokens of prompt and response together, at most. ``tokenizer`` is a
    folder, file or Hub name; None: the run learns one that is not there yet."""

    positions: int
    tokenizer: str | None

    @classmethod
    def of(cls, config: Config) -> Room:
        """Of the policy of a run of ``config``."""
        model, given = config.model, config.sft.path or config.model.path
        return cls.in_checkpoint(given, config) if given else cls(model.max_positions, model.tokenizer)

    @classmethod
    def in_checkpoint(cls, path: str, config: Config) -> Room:
        """Of the model at ``path``, a folder or a Hub name of which only what is in the cache is looked at."""
        return cls(_positions(path, config.model.max_positions), path)

    def problem(self, messages: Conversation) -> str | None:
        """What is wrong with a prompt that leaves no room; None for others, and for those of which only the tokenizer
        that is not there yet could tell."""
        if not may_fill(messages, self.positions):
            return None
        if self.tokenizer is None:
            # The tokenizer that a run learns never joins two words in one token (cool_rlhf.demo.tokenizer).
            length, counted = sum(len(turn["content"].split()) for turn in messages), "words"
        else:
            length, counted = _tokens(self.tokenizer, messages), "tokens"
        if length < self.positions:
            return None
        return (
            f"has {length} {counted}, which leaves no room for a response in the model's {self.positions} tokens: "
            "shorten it or raise model.max_positions"
        )


def may_fill(messages: Conversation, positions: float) -> bool:
    """Whether a prompt is so long that it might leave no room: a tokenizer makes no more tokens of a text than it has
    bytes."""
    said = sum(len(turn["content"].encode()) + TEMPLATE_BYTES for turn in messages)
    return said + TEMPLATE_BYTES >= positions


def _positions(path: str, asked: int) -> int:
    """As :func:`cool_rlhf.models.loading.longest_sequence` gives them, but without transformers, and for a checkpoint
    that is not there yet those ``asked`` for."""
    return min(asked, size_of(config_fields(path), POSITIONS) or asked)


def _tokens(tokenizer: str, messages: Conversation) -> int:
    from cool_rlhf.data.chat import encode_prompt

    return len(encode_prompt(_loaded(tokenizer), messages))


@cache
def _loaded(tokenizer: str) -> PreTrainedTokenizerBase:
    from cool_rlhf.models.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer)
