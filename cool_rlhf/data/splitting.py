"""Which rows are learnt from and which are held out: no prompt and no text stands on both sides."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from cool_rlhf.config import DataConfig
from cool_rlhf.data.identity import prompt_key
from cool_rlhf.data.loading import Reading, good_rows
from cool_rlhf.protocols import Conversation

T = TypeVar("T")

logger = logging.getLogger(__name__)

TEST_ROWS = ("test_preferences", "test_prompts")  # of ``data``


def tested_prompts(data: DataConfig, reading: Reading) -> Iterator[Conversation]:
    """The prompts of all test rows, whatever their domain: they are what the run is measured by, so that nothing learns
    from them, neither as a preference nor in PPO. Raises UserError for a bad row."""
    reading = replace(reading, domains=None)  # those of the reward model that is evaluated count, not the run's
    for row in good_rows("preferences", data.test_preferences, reading, "data.test_preferences"):
        yield row["chosen"][:-1]
    for row in good_rows("prompts", data.test_prompts, reading, "data.test_prompts"):
        yield row["messages"]


def split_by_prompt(
    rows: Sequence[T], fraction: float, seed: int, messages: Callable[[T], Conversation]
) -> tuple[list[T], list[T]]:
    """Split ``rows`` into (kept, held out), about ``fraction`` of the prompts held out, at least one if it is above 0.

    ``messages`` gives a row's prompt. Rows with the same prompt stay together, whatever their domain, so that no
    prompt stands on both sides.
    """
    keys = [prompt_key(messages(row)) for row in rows]
    distinct = sorted(set(keys))
    random.Random(seed).shuffle(distinct)
    count = min(len(distinct), max(1, round(fraction * len(distinct)))) if fraction > 0 else 0
    held = set(distinct[:count])
    kept = [row for row, key in zip(rows, keys, strict=True) if key not in held]
    return kept, [row for row, key in zip(rows, keys, strict=True) if key in held]


def leave_out(rows: Sequence[T], held: Collection[str], identity: Callable[[T], str], key: str) -> Sequence[T]:
    """``rows``, which the setting ``key`` names, but for those whose ``identity`` is ``held`` out; the log says how
    many."""
    kept = [row for row in rows if identity(row) not in held]
    if len(kept) == len(rows):
        return rows
    logger.info("%s: %d of %d rows are left out, since they are held out", key, len(rows) - len(kept), len(rows))
    return kept


def hold_out_texts(texts: Sequence[str], share: float, most: int) -> tuple[Sequence[str], Sequence[str]]:
    """Split ``texts`` into (kept, held out): ``share`` of them, at most ``most``, at even distances from the first to
    the last source and in that order. No text stands on both sides; where they are too few to spare one, none is held
    out."""
    held = dict.fromkeys(spread(texts, min(int(share * len(texts)), most)))
    return [text for text in texts if text not in held] if held else texts, list(held)


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of ``items``, or all where there are no more, at even distances and in their order."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]
