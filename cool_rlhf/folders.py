"""Folders of a run: its rounds', and those that appear whole, written beside their place and on the disk before they
take its name."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

BEST_FILE = "best.json"  # in a kept policy's folder: which step it is of, and the value that it was kept for


@dataclass(frozen=True)
class RoundFolder:
    """``rounds/R`` of a run: where its stages leave what others, and people, look for."""

    output_dir: Path
    round: int

    @property
    def path(self) -> Path:
        return self.output_dir / "rounds" / str(self.round)

    @property
    def collected(self) -> Path:
        """Pairs among the SFT model's samples; of the first round."""
        return self.path / "collected.jsonl"

    @property
    def preferences(self) -> Path:
        """What the reward model learns from, counted; of the first round."""
        return self.path / "preferences.json"

    @property
    def reward_model(self) -> Path:
        return self.path / "reward_model"

    @property
    def policy(self) -> Path:
        """The round's best one."""
        return self.path / "policy"

    @property
    def early_policy(self) -> Path:
        return self.path / "policy_early"

    @property
    def critic(self) -> Path:
        return self.path / "critic"

    @property
    def responses(self) -> Path:
        """Of all policies until then to the held-out prompts."""
        return self.path / "responses.jsonl"

    @property
    def patterns(self) -> Path:
        return self.path / "fast_path" / "patterns.json"

    @property
    def patches(self) -> Path:
        return self.path / "fast_path" / "patches.jsonl"

    @property
    def review(self) -> Path:
        """Patches for people to judge."""
        return self.path / "fast_path" / "review.jsonl"

    @property
    def lessons(self) -> Path:
        return self.path / "fast_path" / "lessons.json"

    @property
    def repair(self) -> Path:
        return self.path / "fast_path" / "repair.json"

    @property
    def pairs(self) -> Path:
        """For people to label."""
        return self.path / "slow_path" / "pairs.jsonl"

    @property
    def labels(self) -> Path:
        return self.path / "slow_path" / "labels.jsonl"

    def clear_paths(self) -> None:
        """Take away what the fast and the slow path have left, but for the labels: of an attempt that is made again,
        with other settings or after another policy."""
        for file in (self.patterns, self.patches, self.review, self.lessons, self.repair, self.pairs, self.responses):
            file.unlink(missing_ok=True)


def round_folders(output_dir: Path) -> list[RoundFolder]:
    """Those of a run that are there, the first round first; what else lies there, such as a copy, is none of its."""
    found = (path.name for path in (output_dir / "rounds").glob("*") if path.name.isdecimal())
    return [RoundFolder(output_dir, round) for round in sorted(map(int, found))]


def part_of(whole: Path) -> Path:
    """Where what is to become ``whole`` is written; what an earlier attempt left there goes."""
    part = whole.with_name(f".{whole.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    whole.parent.mkdir(parents=True, exist_ok=True)
    return part


def replace_whole(part: Path, whole: Path) -> None:
    """Give ``part`` the name ``whole``. What had that name stays beside it until then: whenever the process or the
    machine ends, :func:`recover` finds the one or the other."""
    _sync_all(part)
    former = _former(whole)
    if whole.exists():
        shutil.rmtree(former, ignore_errors=True)
        os.replace(whole, former)
    os.replace(part, whole)
    sync(whole.parent)
    shutil.rmtree(former, ignore_errors=True)


def recover(whole: Path) -> None:
    """Give ``whole`` its name back where :func:`replace_whole` ended between taking it away and giving it anew."""
    former = _former(whole)
    if whole.exists():
        shutil.rmtree(former, ignore_errors=True)
    elif former.exists():
        os.replace(former, whole)
        sync(whole.parent)


def move_whole(part: Path, whole: Path) -> None:
    """Have everything below ``part`` on the disk before its name says that it is whole."""
    _sync_all(part)
    os.replace(part, whole)
    sync(whole.parent)


def sync(path: Path) -> None:
    """Have a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        sync(path)


def _former(whole: Path) -> Path:
    return whole.with_name(f".{whole.name}.former")
