"""What a round's policy starts from, by what the fast path found in those before it."""

from __future__ import annotations

import json
from pathlib import Path


def started_from(output_dir: Path, round: int, policy_from: str, cheating: float) -> int | None:
    """The earlier round whose policy that of ``round`` starts from; None: the SFT model.

    A policy that lives off a cheat hardly gets rid of it, though the reward model no longer pays: there is nothing else
    left to sample. Instead (``policy_from`` clean) the next one starts from where it started.

    Args:
        policy_from: clean, last or sft.
        cheating: the share of its rise in score that one finding explains at least of a policy that lives off it.
    """
    if round == 0 or policy_from == "sft":
        return None
    patterns = output_dir / f"rounds/{round - 1}/fast_path/patterns.json"
    if policy_from == "clean" and lives_off_a_cheat(patterns, cheating):
        return started_from(output_dir, round - 1, policy_from, cheating)
    return round - 1


def described_start(output_dir: Path, round: int, policy_from: str, cheating: float) -> str:
    """The same in a sentence, and why where a policy is left behind."""
    before = started_from(output_dir, round, policy_from, cheating)
    place = "the SFT model" if before is None else f"the policy of round {before}"
    if round == 0 or policy_from == "sft" or before == round - 1:
        return f"The policy of round {round} starts from {place}."
    return (
        f"The policy of round {round} starts over from {place}: one finding explains at least {cheating:.0%} of the "
        f"rise in score of round {round - 1}'s, which is left behind."
    )


def lives_off_a_cheat(patterns: Path, cheating: float) -> bool:
    """Whether one finding of the patterns.json at ``patterns`` explains at least ``cheating`` of the policy's rise in
    score; False where there is no such file."""
    findings = json.loads(patterns.read_text(encoding="utf-8"))["findings"] if patterns.exists() else []
    return any(finding["explained"] >= cheating for finding in findings)
