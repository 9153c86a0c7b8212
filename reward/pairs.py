"""Preference pairs as the reward model reads them: each under the condition of its domain, in tokens."""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cool_rlhf.data.chat import encode_reward
from cool_rlhf.data.identity import prompt_key
from cool_rlhf.protocols import PreferencePair
from cool_rlhf.schedule import derive_seed
from reward.conditions import DEFAULT_DOMAIN, Conditions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = "longer than reward.max_length"


@dataclass(frozen=True)
class EncodedPair:
    """Both conversations as the reward model reads them, the condition in front, the reward token last."""

    chosen: Tensor  # (L,) int64
    rejected: Tensor  # (M,) int64
    margin: float  # by how much the chosen one should lead; 0 for none
    domain: str = DEFAULT_DOMAIN

    def __len__(self) -> int:
        """Tokens of both: a pair is never cut apart."""
        return len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs ready to train on, and what became of the others; counts go by domain."""

    pairs: list[EncodedPair]
    prompts: Counter[str]  # distinct ones
    cut: Counter[str]  # pairs of which a conversation lost its beginning
    drops: Counter[tuple[str, str]]  # (domain, reason) → pairs left out


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    conditions: Conditions,
    pairs: Iterable[PreferencePair],
    max_length: int,
    *,
    drop_too_long: bool = False,
    condition_dropout: float = 0.0,
    seed: int = 0,
) -> EncodedPairs:
    """Each pair under the condition of its domain.

    Args:
        max_length: tokens that one conversation may have, with condition and reward token.
        drop_too_long: leave out a pair that has more; otherwise what is too long loses its beginning.
        condition_dropout: share of the pairs that stand without their condition, both sides alike. A model that has
            seen none without is free to give anything where it is scored without one.
        seed: of the draw which those are.

    Raises:
        UnknownConditionError: for a domain that has no condition.
    """
    rng = random.Random(derive_seed("condition dropout", seed))
    encoded: list[EncodedPair] = []
    prompts: dict[str, set[str]] = defaultdict(set)
    cut, drops = Counter[str](), Counter[tuple[str, str]]()
    for pair in pairs:
        prompt = conditions.prompt(pair.domain)
        if condition_dropout and rng.random() < condition_dropout:
            prompt = None
        sides = ((pair.chosen, pair.chosen_finished), (pair.rejected, pair.rejected_finished))
        tokens = [encode_reward(tokenizer, messages, prompt, finished, sys.maxsize) for messages, finished in sides]
        if max(map(len, tokens)) > max_length:
            if drop_too_long:
                drops[pair.domain, TOO_LONG] += 1
                continue
            cut[pair.domain] += 1
            tokens = [encode_reward(tokenizer, messages, prompt, finished, max_length) for messages, finished in sides]
        prompts[pair.domain].add(prompt_key(pair.chosen[:-1]))
        encoded.append(EncodedPair(tokens[0], tokens[1], pair.margin or 0.0, pair.domain))
    return EncodedPairs(encoded, Counter({domain: len(keys) for domain, keys in prompts.items()}), cut, drops)
