"""Runs that are stopped, killed or run out of disk: nothing is left running, and the same command goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

SECONDS = 10  # the contract's, from the disturbance to the last process's end


def logged(folder: Path, text: str) -> Callable[[], bool]:
    """Whether the log has come to say ``text`` since now; it keeps what earlier commands said."""
    log = folder / "logs" / "run.log"

    def count() -> int:
        return log.read_text(encoding="utf-8").count(text) if log.exists() else 0

    before = count()
    return lambda: count() > before


def recorded(folder: Path, stage: str) -> Callable[[], bool]:
    metrics = folder / "metrics.jsonl"
    return lambda: metrics.exists() and f'"stage": "{stage}"' in metrics.read_text(encoding="utf-8")


def saved(folder: Path, stage: str) -> Callable[[], bool]:
    return lambda: any((folder / "state" / stage).glob("snapshot_*"))


def finished(folder: Path) -> set[str]:
    progress = json.loads((folder / "state" / "progress.json").read_text(encoding="utf-8"))
    return {stage for stage, made in progress.items() if made["finished"]}


def kill_an_actor(driver: psutil.Process) -> None:
    actors = [child for child in driver.children(recursive=True) if child.cmdline()[0].startswith("ray::SFTWorker")]
    assert actors
    for actor in actors:
        actor.kill()


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must not depend on when and how fast a run was."""
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in timed and not k.startswith("time/")} for row in rows]


def assert_clean_end(ended: Any, folder: Path) -> None:
    assert ended.status == 1
    assert ended.left == []
    assert ended.seconds < SECONDS
    assert ended.errors == (
        f"interrupted; the log is {folder / 'logs' / 'run.log'}; the same command goes on from what is finished\n"
    )


def test_stopped_in_every_stage_it_reaches_the_undisturbed_runs_numbers(
    request: pytest.FixtureRequest, tmp_path: Path, command: Any, ctrl_c: Any, rows: Any
) -> None:
    """Asked for as stage=sft and stage=reward first, which adds up to the pipeline."""
    folder = tmp_path / "run"
    base = ("+experiment=smoke", f"output_dir={folder}")

    killed = command(*base, "stage=sft").disturb(saved(folder, "sft"), kill_an_actor)
    assert killed.status == 1
    assert killed.left == []
    assert killed.seconds < SECONDS
    assert f"the log is {folder / 'logs' / 'run.log'}" in killed.errors.splitlines()[-1]
    goes_on = logged(folder, "sft goes on after step")

    assert_clean_end(command(*base, "stage=reward").disturb(saved(folder, "reward_0"), ctrl_c), folder)
    assert goes_on()
    assert finished(folder) >= {"sft"}
    assert not list((folder / "state").glob("sft/*")), "a finished stage keeps no snapshots"
    goes_on = logged(folder, "reward_0 goes on after step")

    whole = command(*base)
    assert_clean_end(whole.disturb(recorded(folder, "ppo"), ctrl_c), folder)
    assert goes_on()
    assert finished(folder) >= {"sft", "reward_0"}

    assert_clean_end(whole.disturb(logged(folder, "reward model of round 1"), ctrl_c), folder)
    done = whole.finish()
    assert done.returncode == 0, done.stderr
    smoke_run = request.getfixturevalue("smoke_run")  # only now: another process of the tests may be making it
    assert numbers(rows(folder)) == numbers(rows(smoke_run))
    for name in ("chat_model", "reward_model"):
        weights = [run / name / "model.safetensors" for run in (folder, smoke_run)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), name


def test_while_it_starts_its_folder_is_its_own_and_it_may_be_stopped(tmp_path: Path, command: Any, ctrl_c: Any) -> None:
    run = command("+experiment=smoke", f"output_dir={tmp_path}")
    second: list[Any] = []
    waited: list[float] = []

    def try_another_and_stop(driver: psutil.Process) -> None:
        begun = time.monotonic()
        driver.suspend()  # or it would have started by the time that the other is refused
        try:
            second.append(run.finish())
        finally:
            waited.append(time.monotonic() - begun)
            ctrl_c(driver)
            driver.resume()

    ended = run.disturb((tmp_path / "state/lock").exists, try_another_and_stop)
    assert second[0].returncode == 2
    assert second[0].stderr.count("\n") == 1
    assert "in use by a live run" in second[0].stderr
    assert ended.status == 1
    assert ended.left == []
    assert ended.seconds - waited[0] < SECONDS
    assert ended.errors == "interrupted; the same command goes on from what is finished\n"


def test_a_full_disk_is_named(tmp_path: Path, command: Any) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/progress.part").symlink_to("/dev/full")
    done = command("+experiment=smoke", f"output_dir={tmp_path}").finish()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the disk is full" in done.stderr
    assert f"the log is {tmp_path / 'logs' / 'run.log'}" in done.stderr
