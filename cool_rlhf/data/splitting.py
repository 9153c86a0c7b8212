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
from cool_rlhf.data.messages import without_system_turn
from cool_rlhf.protocols import Conversation, UserError

T = TypeVar("T")

logger = logging.getLogger(__name__)

TEST_ROWS = ("test_preferences", "test_prompts")  # of ``data``


def tested_prompts(data: DataConfig, reading: Reading) -> Iterator[Conversation]:
    """The prompts of all test rows, whatever their domain: they are what the run is measured by, so that nothing learns
    from them, neither from a chat or a preference nor in PPO. Raises UserError for a bad row."""
    reading = replace(reading, domains=None)  # those of the reward model that is evaluated count, not the run's
    for row in good_rows("preferences", data.test_preferences, reading, "data.test_preferences"):
        yield row["chosen"][:-1]
    for row in good_rows("prompts", data.test_prompts, reading, "data.test_prompts"):
        yield row["messages"]


def tested_keys(data: DataConfig, reading: Reading) -> set[str]:
    """The keys of ``tested_prompts``, without the policy's system turn."""
    return {prompt_key(without_system_turn(messages, reading.system)) for messages in tested_prompts(data, reading)}


def answers_any(chat: Conversation, prompts: Collection[str], system: str | None) -> bool:
    """Whether the assistant answers one of ``prompts`` (keys) in any of its turns, all of which SFT learns."""
    asked = (chat[:place] for place, turn in enumerate(chat) if turn["role"] == "assistant")
    return any(prompt_key(without_system_turn(messages, system)) in prompts for messages in asked)


def check_chats_left(data: DataConfig, reading: Reading) -> None:
    """Raises UserError where every chat of ``data.sft`` answers a tested prompt."""
    tested = tested_keys(data, reading)
    if not tested or not data.sft:
        return
    chats = (row["messages"] for row in good_rows("sft", data.sft, reading, "data.sft"))
    if all(answers_any(chat, tested, reading.system) for chat in chats):
        named = " or ".join(f"data.{name}" for name in TEST_ROWS if getattr(data, name))
        raise UserError(
            f"data.sft leaves nothing to learn from, since every chat answers a prompt of {named}: name other rows in "
            "one of them"
        )


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


def leave_out(rows: Sequence[T], is_held: Callable[[T], bool], key: str) -> Sequence[T]:
    """``rows``, which the setting ``key`` names, but for those that are held out; the log says how many."""
    kept = [row for row in rows if not is_held(row)]
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
