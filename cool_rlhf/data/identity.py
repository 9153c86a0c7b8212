"""Which prompts and which pairs count as the same, on every machine and in every run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from cool_rlhf.protocols import Message

JUDGING_SHARE = 0.25


def prompt_key(messages: Sequence[Message]) -> str:
    """16 hex digits that prompts share which differ in nothing but case and blanks, whatever their domain."""
    return _digest([[turn["role"], " ".join(turn["content"].casefold().split())] for turn in messages])


def pair_key(
    chosen: Sequence[Message], rejected: Sequence[Message], chosen_finished: bool, rejected_finished: bool
) -> tuple[str, bool]:
    """16 hex digits of the prompt and both responses, whichever was chosen; and whether, of the two in a fixed order,
    the second was. Responses count to the letter: how they are written may be what was judged."""
    first, second = [chosen[-1]["content"], chosen_finished], [rejected[-1]["content"], rejected_finished]
    swapped = first > second
    responses = [second, first] if swapped else [first, second]
    return _digest([prompt_key(chosen[:-1]), responses]), swapped


def judged_pair_key(
    chosen: Sequence[Message], rejected: Sequence[Message], chosen_finished: bool, rejected_finished: bool, domain: str
) -> str:
    """The same for the same prompt, domain and two responses, in either order."""
    key, _ = pair_key(chosen, rejected, chosen_finished, rejected_finished)
    return f"{key}-{domain}"


def is_held_out(key: str, share: float) -> bool:
    """Whether the prompt of ``key`` is one of about ``share`` of all. It does not depend on what other prompts there
    are, so a prompt stays on its side as data grow."""
    return int(key, 16) < share * 16 ** len(key)


def judges_repairs(prompt: Sequence[Message]) -> bool:
    """Whether pairs of ``prompt`` judge what mends a reward model instead of teaching it; so about a quarter of all.

    It depends on the prompt alone, so no round, domain or pattern, and no label, teaches what another is judged by;
    and not on what :func:`is_held_out` goes by, since the prompts of rounds are held-out ones already.
    """
    return is_held_out(_digest(["judges repairs", prompt_key(prompt)]), JUDGING_SHARE)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
