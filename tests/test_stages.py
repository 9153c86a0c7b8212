"""What opening a run does before its first stage."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from cool_rlhf import stages
from cool_rlhf.compose import compose
from cool_rlhf.folders import part_of, replace_whole
from cool_rlhf.stages import open_run
from cool_rlhf.tracking.report import write_report


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Opens and closes a run, without Ray."""
    monkeypatch.setattr(stages, "cluster", lambda *arguments: nullcontext())

    def open_and_close(*overrides: str) -> None:
        names = ["+experiment=smoke", f"output_dir={tmp_path}", "logging.wandb_mode=disabled", *overrides]
        with open_run(compose(names)):
            pass

    return open_and_close


def test_a_policy_that_was_being_replaced_is_there_again(
    opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "rounds/0/policy"
    for text in ("old", "new"):
        part = part_of(policy)
        part.mkdir()
        (part / "weights").write_text(text)
        if text == "old":
            replace_whole(part, policy)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: replace(old, new) if old == policy else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace_whole(part, policy)
    monkeypatch.setattr(os, "replace", replace)
    assert not policy.exists()
    opened()
    assert (policy / "weights").read_text() == "old"


def test_the_token_of_the_annotation_page_is_kept_out_of_files(opened, tmp_path: Path) -> None:
    token = "a-token-that-is-long-enough"
    opened(f"annotate.token={token}")
    assert "overlap: 1" in (tmp_path / "config.yaml").read_text()
    write_report(tmp_path)
    assert "annotate" in (tmp_path / "report.html").read_text()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token in path.read_text(errors="ignore")]
