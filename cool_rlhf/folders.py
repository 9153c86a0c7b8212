"""Folders of a run: its rounds', and those that appear whole, written beside their place and on the disk before they
take its name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def round_folders(output_dir: Path) -> list[Path]:
    """``rounds/R`` of a run, the first round first; what else lies there, such as a copy, is none of its."""
    found = (path for path in (output_dir / "rounds").glob("*") if path.name.isdecimal())
    return sorted(found, key=lambda path: int(path.name))


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
