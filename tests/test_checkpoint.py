"""What a run remembers: whole or not at all, and only for a run that would have made the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cool_rlhf.checkpoint import RunState, copy_checkpoint
from cool_rlhf.config import Config, WorldConfig
from cool_rlhf.protocols import UserError

SETTINGS = {"seed": 1, "reward": {"learning_rate": 0.001, "gamma": 2.0}}


def write(text: str):
    return lambda folder: (folder / "weights").write_text(text)


def test_stages_are_remembered(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    assert not state.is_finished("sft")
    state.begin("sft", SETTINGS)
    assert not RunState(tmp_path).is_finished("sft")
    state.finish("sft")
    assert RunState(tmp_path).is_finished("sft")


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    state.begin("reward_0", SETTINGS)
    changed = {"seed": 2, "reward": {"learning_rate": 0.002, "gamma": 2.0}}
    state.check("reward_0", changed)  # begun, with nothing to show for it
    state.finish("reward_0")
    state = RunState(tmp_path)
    state.check("reward_0", SETTINGS)
    state.check("ppo_0", {"anything": True})
    with pytest.raises(UserError) as caught:
        state.check("reward_0", changed)
    assert str(caught.value) == (
        f"{tmp_path} holds a run whose reward_0 stage was made with other settings: reward.learning_rate was 0.001 and "
        "is 0.002; seed was 1 and is 2; restore them or choose another output_dir"
    )


def test_what_was_begun_is_told_by_its_settings(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    assert not state.is_begun_with("online_0", SETTINGS)
    state.begin("online_0", SETTINGS)
    assert RunState(tmp_path).is_begun_with("online_0", SETTINGS)
    assert not state.is_begun_with("online_0", {**SETTINGS, "seed": 2})


def test_a_setting_that_there_was_not_yet_had_its_default(tmp_path: Path) -> None:
    """A run that an earlier version has begun goes on with a later one."""
    state = RunState(tmp_path)
    state.begin("ppo_0", {"ppo": {"clip": 0.3}})
    state.finish("ppo_0")
    usual = Config().ppo.entropy_schedule
    state.check("ppo_0", {"ppo": {"clip": 0.3, "entropy_schedule": usual}})
    assert state.is_begun_with("ppo_0", {"ppo": {"clip": 0.3, "entropy_schedule": usual}})
    with pytest.raises(UserError, match=r'ppo\.entropy_schedule was "constant" and is "linear"'):
        state.check("ppo_0", {"ppo": {"clip": 0.3, "entropy_schedule": "linear"}})
    assert not state.is_begun_with("ppo_0", {"ppo": {"clip": 0.3, "entropy_schedule": "linear"}})
    sections = {
        "ppo": {"clip": 0.3, "rewards": {"math": {"rules": {}}}},
        "online": {"policy_from": Config().online.policy_from},  # a part of a section
        "annotate": {"judge.url": Config().annotate.judge.url},
        "data": {"test_preferences": []},
    }
    with pytest.raises(UserError, match=r"other settings: ppo\.rewards\.math\.rules was null and is \{\}; restore"):
        state.check("ppo_0", sections)
    del sections["ppo"]["rewards"]
    state.check("ppo_0", sections)
    with pytest.raises(UserError, match=r'settings: annotate\.judge\.url was "http.*1" and is "elsewhere"; restore'):
        state.check("ppo_0", {**sections, "annotate": {"judge.url": "elsewhere"}})


def test_what_is_gone_from_the_settings_has_its_default(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    state.begin("ppo_0", {"data": {"test_preferences": ["a.jsonl"], "world": {"sft": 12}}})
    state.finish("ppo_0")
    with pytest.raises(UserError, match=r'data\.test_preferences was \["a\.jsonl"\] and is \[\]; restore'):
        state.check("ppo_0", {"data": {"world": {"sft": 12, "test": WorldConfig().test}}})
    with pytest.raises(UserError, match=r"data\.world was \{.*\} and is null"):
        state.check("ppo_0", {"data": {"test_preferences": ["a.jsonl"], "world": None}})


def test_settings_compare_as_json_gives_them_back(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    state.begin("sft", {"data": {"sft": ("a", "b")}})
    state.finish("sft")
    RunState(tmp_path).check("sft", {"data": {"sft": ["a", "b"]}})


def test_reopening_forgets_what_came_after(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    for stage in ("sft", "reward_0", "ppo_0", "reward_1"):
        state.begin(stage, SETTINGS)
        state.finish(stage)
    state.save_snapshot("ppo_0", {"step": 1}, write("old"))
    state.reopen_from("reward_0")
    assert state.snapshot("ppo_0") is None
    again = RunState(tmp_path)
    assert [again.is_finished(stage) for stage in ("sft", "reward_0", "ppo_0", "reward_1")] == [True, *[False] * 3]
    again.check("ppo_0", {"seed": "another"})
    with pytest.raises(UserError, match="sft"):
        again.check("sft", {})


def test_discarding_forgets_the_stage_itself_too(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    for stage in ("sft", "ppo_0", "reward_1"):
        state.begin(stage, SETTINGS)
        state.finish(stage)
    state.save_snapshot("ppo_0", {"step": 1}, write("old"))
    state.discard_from("ppo_0")
    again = RunState(tmp_path)
    assert again.snapshot("ppo_0") is None
    assert [again.is_finished(stage) for stage in ("sft", "ppo_0", "reward_1")] == [True, False, False]
    again.check("ppo_0", {"seed": "another"})


def test_a_snapshot_replaces_the_one_before(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    assert state.snapshot("ppo_0") is None
    for step in (9, 10, 10):
        state.save_snapshot("ppo_0", {"step": step}, write(f"of {step}"))
        folder, position = RunState(tmp_path).snapshot("ppo_0") or pytest.fail("there is none")
        assert position == {"step": step}
        assert (folder / "weights").read_text() == f"of {step}"
        assert list(folder.parent.iterdir()) == [folder]


class Killed(BaseException):
    """The process ends here."""


def die(*arguments: object) -> None:
    raise Killed


@pytest.mark.parametrize("moment", ["saving", "syncing", "moving", "dropping"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_leaves_the_old_snapshot_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, step: int
) -> None:
    state = RunState(tmp_path)
    state.save_snapshot("ppo_0", {"step": 1, "turn": "old"}, write("old"))

    def save(folder: Path) -> None:
        write("new")(folder)
        if moment == "saving":
            die()
        if moment == "syncing":
            monkeypatch.setattr(os, "fsync", die)
        if moment == "moving":
            monkeypatch.setattr(os, "replace", die)
        if moment == "dropping":
            monkeypatch.setattr(shutil, "rmtree", die)

    with pytest.raises(Killed):
        state.save_snapshot("ppo_0", {"step": step, "turn": "new"}, save)
    monkeypatch.undo()
    left = "new" if moment == "dropping" else "old"
    folder, position = RunState(tmp_path).snapshot("ppo_0") or pytest.fail("nothing was left")
    assert position["turn"] == left
    assert (folder / "weights").read_text() == left
    RunState(tmp_path).save_snapshot("ppo_0", {"step": step, "turn": "next"}, write("next"))
    folder, position = RunState(tmp_path).snapshot("ppo_0") or pytest.fail("nothing was left")
    assert (position["turn"], (folder / "weights").read_text()) == ("next", "next")
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_kill_leaves_the_stages_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    state = RunState(tmp_path)
    state.begin("sft", SETTINGS)
    monkeypatch.setattr(os, function, die)
    with pytest.raises(Killed):
        state.finish("sft")
    monkeypatch.undo()
    again = RunState(tmp_path)
    assert not again.is_finished("sft")
    again.check("sft", SETTINGS)
    again.finish("sft")
    assert RunState(tmp_path).is_finished("sft")


def test_a_copied_checkpoint_replaces_the_one_before_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text("one")
    copy_checkpoint(source, target)
    (target / "stray").write_text("of the one before")
    (source / "inner" / "file").write_text("two")
    copy_checkpoint(source, target)
    assert [path.name for path in target.rglob("*")] == ["inner", "file"]
    assert (target / "inner" / "file").read_text() == "two"

    monkeypatch.setattr(shutil, "copytree", die)
    with pytest.raises(Killed):
        copy_checkpoint(source, target)
    assert (target / "inner" / "file").read_text() == "two"


@pytest.mark.parametrize(
    "text",
    ['{"sft": ', "[]", '{"sft": 3}', '{"sft": {}}', '{"sft": {"settings": {}}}', '{"sft": {"finished": true}}', None],
)
def test_a_broken_record_of_progress_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "state" / "progress.json"
    if text is None:
        file.mkdir(parents=True)
    else:
        file.parent.mkdir()
        file.write_text(text)
    with pytest.raises(UserError, match=r"state/progress\.json is broken .*: put back a copy of it, or choose another"):
        RunState(tmp_path)
