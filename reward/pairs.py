"""Preference pairs as the reward model reads them: each under the condition of its domain, in tokens."""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cool_rlhf.data.chat import dialogue_room, encode_reward
from cool_rlhf.data.identity import prompt_key
from cool_rlhf.data.packing import common_prefix
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
    prompts: dict[str, set[str]]  # keys of the distinct ones (prompt_key)
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
        drop_too_long: leave out a pair that has more; otherwise it loses its beginning, both sides alike
            (:func:`cut_alike`).
        condition_dropout: share of the pairs that stand without their condition, both sides alike, the same pairs in
            every epoch. A model that has seen none without is free to give anything where it is scored without one.
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
        chosen, rejected = (
            encode_reward(tokenizer, messages, prompt, finished, sys.maxsize) for messages, finished in sides
        )
        if max(len(chosen), len(rejected)) > max_length:
            if drop_too_long:
                drops[pair.domain, TOO_LONG] += 1
                continue
            cut[pair.domain] += 1
            head = max_length - dialogue_room(tokenizer, prompt, max_length) - 1
            asked = len(encode_reward(tokenizer, pair.chosen[:-1], prompt, True, sys.maxsize)) - 1
            chosen, rejected = cut_alike(chosen, rejected, head, asked, max_length)
        prompts[pair.domain].add(prompt_key(pair.chosen[:-1]))
        encoded.append(EncodedPair(chosen, rejected, pair.margin or 0.0, pair.domain))
    return EncodedPairs(encoded, dict(prompts), cut, drops)


def cut_alike(chosen: Tensor, rejected: Tensor, head: int, asked: int, max_length: int) -> tuple[Tensor, Tensor]:
    """Both sides, (L,) and (M,) int64, in ``max_length`` tokens, without what follows their first ``head``. Their
    prompt ends behind the first ``asked``.

    What the longer one has too many is taken off both where they are alike, which is their prompt: how much is left of
    it then says nothing about the responses. A response that is too long by itself loses its own beginning besides, as
    it does where it is scored; the other one stands whole, with the opening of its turn.
    """
    alike = min(common_prefix(chosen, rejected), asked) - head
    common = min(max(len(chosen), len(rejected)) - max_length, alike)

    def cut(side: Tensor) -> Tensor:
        return torch.cat([side[:head], side[head + max(common, len(side) - max_length) :]])

    return cut(chosen), cut(rejected)
