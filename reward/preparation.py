"""From the preferences that were read to the pairs that reward training sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cool_rlhf.config import RewardConfig
from cool_rlhf.data.preferences import PreferenceSplit
from cool_rlhf.protocols import UserError
from reward.conditions import Conditions
from reward.pairs import TOO_LONG, EncodedPair, encode_pairs
from reward.summary import DomainSummary, summarise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    training: list[EncodedPair]
    validation: list[EncodedPair]  # under their conditions all of them: they measure what the model is used for
    summary: list[DomainSummary]


def prepare(
    tokenizer: PreTrainedTokenizerBase,
    conditions: Conditions,
    split: PreferenceSplit,
    settings: RewardConfig,
    seed: int,
) -> Prepared:
    """Encode both parts of ``split``; ``seed`` draws the pairs that condition dropout takes.

    Raises UserError where no pair is short enough to train on.
    """
    drop = settings.too_long == "drop"
    training = encode_pairs(
        tokenizer,
        conditions,
        split.training,
        settings.max_length,
        drop_too_long=drop,
        condition_dropout=settings.condition_dropout,
        seed=seed,
    )
    validation = encode_pairs(tokenizer, conditions, split.validation, settings.max_length, drop_too_long=drop)
    if not training.pairs:
        raise UserError(f"every pair is {TOO_LONG} ({settings.max_length}): raise it, or set reward.too_long=cut")
    return Prepared(training.pairs, validation.pairs, summarise(split.rows, training, validation, split.drops))
