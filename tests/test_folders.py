"""A folder that is replaced: the old one or the new one is there, whenever the process ends."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cool_rlhf.folders import part_of, recover, replace_whole


class Killed(BaseException):
    """The process ends here."""


def write(whole: Path, text: str) -> Path:
    part = part_of(whole)
    part.mkdir()
    (part / "file").write_text(text)
    return part


@pytest.mark.parametrize(("call", "left"), [*((call, "old") for call in range(1, 6)), (6, "new"), (7, "new")])
def test_a_kill_leaves_the_old_folder_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, left: str
) -> None:
    whole = tmp_path / "deep" / "whole"
    replace_whole(write(whole, "old"), whole)
    calls = []

    def dying(function):
        def called(*arguments, **options):
            calls.append(function.__name__)
            if len(calls) == call:
                raise Killed
            return function(*arguments, **options)

        return called

    part = write(whole, "new")
    for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, dying(getattr(module, name)))
    with pytest.raises(Killed):
        replace_whole(part, whole)
    monkeypatch.undo()
    recover(whole)
    assert (whole / "file").read_text() == left
    replace_whole(write(whole, "next"), whole)
    assert (whole / "file").read_text() == "next"
    assert list(whole.parent.iterdir()) == [whole]


def test_what_was_taken_away_for_good_is_not_made_up(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    replace_whole(write(whole, "one"), whole)
    replace_whole(write(whole, "two"), whole)
    shutil.rmtree(whole)
    recover(whole)
    assert not whole.exists()
