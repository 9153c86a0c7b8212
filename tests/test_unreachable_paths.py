"""Paths that the system tells nothing about: in a folder that the user may not search, or of too long a name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cool_rlhf.command import execute
from cool_rlhf.ending import Ending
from cool_rlhf.models.fields import config_fields
from cool_rlhf.protocols import UserError


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["output_dir=PATH"], "output_dir: PATH/state"),
        (["stage=evaluate", "output_dir=PATH"], "output_dir: PATH/state"),
        (["stage=annotate", "output_dir=PATH"], "output_dir: PATH/state"),
        (["stage=check", "data.sft=[PATH/a.jsonl]"], "data.sft: PATH/a.jsonl"),
        (["stage=check", "data.prompts=['PATH/*.jsonl']"], "data.prompts: PATH/*.jsonl"),
        (["stage=check", "model.path=PATH"], "model.path: PATH/config.json"),
        (["stage=check", "sft.path=PATH"], "sft.path: PATH/config.json"),
        (["stage=check", "reward.path=PATH"], "reward.path: PATH/config.json"),
        (["stage=check", "ppo.critic_init=PATH"], "ppo.critic_init: PATH/config.json"),
        (["--config-dir=PATH"], "--config-dir: PATH"),
    ],
)
def test_the_setting_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str) -> None:
    closed = tmp_path / "closed"
    stat = os.stat

    def refuse(path: object, **how: object) -> os.stat_result:
        if str(path).startswith(str(closed)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **how)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(UserError) as caught:
        execute(["+experiment=smoke", *(argument.replace("PATH", str(closed)) for argument in arguments)], Ending())
    told = told.replace("PATH", str(closed))
    end = "give another path, or make this one accessible"
    assert str(caught.value) == f"{told} cannot be looked at (Permission denied): {end}"


def test_a_name_may_be_too_long() -> None:
    with pytest.raises(UserError, match=r"^output_dir: n+/state cannot be looked at \(File name too long\)"):
        execute(["+experiment=smoke", f"output_dir={'n' * 300}"], Ending())


def test_a_match_of_a_glob_may_be_out_of_reach_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder that may be listed but not searched the names are known."""
    (tmp_path / "a.jsonl").touch()
    stat = os.stat

    def refuse(path: object, **how: object) -> os.stat_result:
        if str(path).endswith("a.jsonl"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(UserError, match=r"^data\.sft: .*/a\.jsonl cannot be looked at \(Permission denied\)"):
        execute(["+experiment=smoke", "stage=check", f"data.sft=['{tmp_path}/*.jsonl']"], Ending())


def test_a_file_that_may_be_seen_but_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").touch()

    usual = open

    def refuse(path: Path | str, *how: str, **more: str) -> object:
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return usual(path, *how, **more)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"/config\.json cannot be read \(Permission denied\): make it readable"):
        config_fields(str(tmp_path))
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"/mine\.yaml cannot be read \(Permission denied\): make it readable"):
        execute(["+experiment=mine", f"--config-dir={tmp_path}"], Ending())
