"""What a round's policy starts from, by what the fast path found and mended in those before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cool_rlhf.folders import RoundFolder

SURE = 0.01  # that a policy's score, or its gold, has risen at all


def started_from(output_dir: Path, round: int, policy_from: str, cheating: float) -> int | None:
    """The earlier round whose policy that of ``round`` starts from; None: the SFT model.

    A policy that lives off a cheat hardly gets rid of it, though the reward model no longer pays: there is nothing else
    left to sample. Instead (``policy_from`` clean) the next one starts from where it started.

    Args:
        policy_from: clean, last or sft.
        cheating: the share of its rise in score that cheats make at least of a policy that lives off them.
    """
    if round == 0 or policy_from == "sft":
        return None
    if policy_from == "clean" and cheats(RoundFolder(output_dir, round - 1), cheating) is not None:
        return started_from(output_dir, round - 1, policy_from, cheating)
    return round - 1


def described_start(output_dir: Path, round: int, policy_from: str, cheating: float) -> str:
    """The same in a sentence, and why where a policy is left behind."""
    before = started_from(output_dir, round, policy_from, cheating)
    place = "the SFT model" if before is None else f"the policy of round {before}"
    if round == 0 or policy_from == "sft" or before == round - 1:
        return f"The policy of round {round} starts from {place}."
    why = cheats(RoundFolder(output_dir, round - 1), cheating)
    return f"The policy of round {round} starts over from {place}, and that of round {round - 1} is left behind: {why}."


def cheats(folder: RoundFolder, cheating: float) -> str | None:
    """Why a round's policy is one that lives off a cheat, by what its fast path has left: one finding explains at least
    ``cheating`` of its rise in score, or the reward model that its findings were mended in pays so much less for it,
    and its gold has not risen. None where neither is so."""
    repair = _record(folder.repair)
    rise = repair.get("rise")
    is_none = rise is not None and rise["p"] >= SURE  # shares of a rise that is chance say nothing
    findings = [] if is_none else _record(folder.patterns).get("findings", [])
    if any(finding["explained"] >= cheating for finding in findings):
        return f"one finding explains at least {cheating:.0%} of its rise in score"
    if not repair.get("kept") or not rise or rise["p"] >= SURE or rise.get("gold_p", 1.0) < SURE:
        return None
    if rise["after"] > (1 - cheating) * rise["before"]:
        return None
    left = max(0.0, rise["after"] / rise["before"])
    return f"the mended reward model pays for only {left:.0%} of its rise in score"


def _record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
