import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import wandb

from cool_rlhf.config import Config
from cool_rlhf.protocols import UserError
from cool_rlhf.provenance import made_from
from cool_rlhf.tracking.metrics import read_metrics
from cool_rlhf.tracking.tracker import Tracker
from cool_rlhf.tracking.wandb_run import BETWEEN, LONGEST_PROJECT, NOT_IN_PROJECT, check_wandb, resolve_mode


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def config(mode="offline"):
    config = Config(experiment="test")
    config.logging.wandb_mode = mode
    config.logging.progress = False
    return config


def record_steps(tracker, stage, round, first, last):
    with tracker.stage(stage, round, last) as handle:
        for step in range(first, last + 1):
            fields = {"loss": 1 / 3 * step, "reward/score/a b": -1e-300, "tokens": step * 10**9, "warmup": step < 3}
            handle.record(step, fields)


def test_offline_history_is_metrics_jsonl(tmp_path, capfd, offline_history):
    with Tracker(config(), tmp_path) as tracker:
        record_steps(tracker, "sft", 0, 1, 500)
        record_steps(tracker, "ppo", 0, 1, 5)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) == 505
    assert offline_history(tmp_path) == rows
    assert capfd.readouterr() == ("", "")
    assert wandb_processes() == []


def test_a_resumed_run_keeps_its_id_and_has_each_row_once(tmp_path, offline_history):
    with Tracker(config(), tmp_path) as tracker:
        record_steps(tracker, "sft", 0, 1, 3)
        record_steps(tracker, "ppo", 0, 1, 6)
    run_id = (tmp_path / "state" / "wandb_run_id").read_text()
    with Tracker(config(), tmp_path) as tracker:
        tracker.resume("ppo", 0, 4, [("sft", 0)])
        record_steps(tracker, "ppo", 0, 5, 8)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 1, 2, 3, 4, 5, 6, 7, 8]
    assert offline_history(tmp_path) == rows
    assert (tmp_path / "state" / "wandb_run_id").read_text() == run_id
    assert all(run_id.strip() in folder.name for folder in tmp_path.glob("wandb/offline-run-*"))


@pytest.fixture
def started(monkeypatch):
    """The runs that W&B starts."""
    runs, init = [], wandb.init

    def start(**settings):
        runs.append(init(**settings))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", start)
    return runs


def test_the_run_is_named_as_it_is_asked_to_be_and_goes_on_under_its_id(tmp_path, started):
    with Tracker(config(), tmp_path) as tracker:
        record_steps(tracker, "sft", 0, 1, 2)
    run_id = (tmp_path / "state" / "wandb_run_id").read_text().strip()
    named = config()
    named.logging.wandb_name, named.logging.wandb_group = "first try", "tries"
    named.logging.wandb_tags, named.logging.wandb_entity = ["short", "seed 1"], "a-team"
    with Tracker(named, tmp_path) as tracker:
        tracker.resume("sft", 0, 2, [])
        record_steps(tracker, "sft", 0, 3, 3)
    assert [(run.id, run.name, run.group, run.tags, run.settings.entity) for run in started] == [
        (run_id, f"test-{run_id}", "", (), None),
        (run_id, "first try", "tries", ("short", "seed 1"), "a-team"),
    ]
    assert made_from(named) == made_from(config()), "no stage is made anew for a name"


def test_what_is_not_said_the_environment_says(tmp_path, started, monkeypatch):
    for name, value in {"RUN_GROUP": "tries", "TAGS": "short,seed 1", "ENTITY": "a-team"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with Tracker(config(), tmp_path) as tracker:
        record_steps(tracker, "sft", 0, 1, 1)
    (run,) = started
    assert (run.group, run.tags, run.settings.entity) == ("tries", ("short", "seed 1"), "a-team")


LONG = "a" * 65


@pytest.mark.parametrize(
    ("settings", "variables", "told"),
    [
        ({"wandb_tags": ["short", ""]}, {}, r"logging\.wandb_tags holds '': give each tag 1 to 64"),
        ({"wandb_tags": ["short", LONG]}, {}, rf"logging\.wandb_tags holds '{LONG}': give each"),
        ({}, {"WANDB_TAGS": f"short,{LONG}"}, f"The environment's WANDB_TAGS holds '{LONG}': give each"),
        ({"wandb_tags": ["short"]}, {"WANDB_TAGS": LONG}, None),
        ({"wandb_project": "a/b"}, {}, r"logging\.wandb_project is 'a/b': give it at most 128 characters, none"),
        ({"wandb_project": "a" * 129}, {}, r"logging\.wandb_project is 'a{129}'"),
        ({"wandb_project": "a/b", "wandb_mode": "disabled"}, {}, None),
        ({"wandb_mode": "auto"}, {"WANDB_MODE": "bogus"}, "The environment's WANDB_MODE is 'bogus'"),
    ],
)
def test_what_wandb_does_not_take_is_told_before_the_run(monkeypatch, settings, variables, told):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    logging = replace(config().logging, **settings)
    if told is None:
        check_wandb(logging)
    else:
        with pytest.raises(UserError, match=f"^{told}"):
            check_wandb(logging)


def test_the_rules_are_those_of_wandb():
    for name in ("a" * LONGEST_PROJECT, *(f"a{mark}" for mark in NOT_IN_PROJECT), "a" * (LONGEST_PROJECT + 1)):
        try:
            check_wandb(replace(config().logging, wandb_project=name))
        except UserError:
            with pytest.raises(wandb.errors.UsageError):
                wandb.Settings(project=name)
        else:
            wandb.Settings(project=name)


def test_what_was_found_and_mended_is_a_table_a_round(tmp_path, offline_history):
    def leave(round, file, **content):
        (tmp_path / f"rounds/{round}/fast_path").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"rounds/{round}/fast_path/{file}.json").write_text(json.dumps(content))

    finding = {"description": "the phrase certainly", "domain": None, "shares": {"sft": 0.0, "late": 0.75}, "p": 0.001,
               "payment": {"effect": 0.5}, "patches": {"training": 75, "held_out": 25}, "examples": []}  # fmt: skip
    verdict = {"reason": "", "held_out_before": 0.25, "held_out": 1.0, "before": 0.9, "after": 0.9, "mended": "enough"}
    with Tracker(config(), tmp_path) as tracker:
        record_steps(tracker, "ppo", 0, 1, 2)
        leave(0, "patterns", findings=[{**finding, "pattern": "a/1"}])
        leave(1, "patterns", findings=[])
        for stage in ("online", "reward", "sft"):
            record_steps(tracker, stage, 0, 1, 1)
        leave(0, "repair", kept=["a/1"], verdicts={"a/1": verdict},
              pairs={"patches": 75, "earlier_patches": 0, "labels": 0})  # fmt: skip
    media = "wandb/offline-run-*/files/media"
    tables = {path.stat().st_mtime_ns: path for path in tmp_path.glob(f"{media}/table/**/*.json")}
    assert [path.parent.name for path in tables.values()] == ["between_rounds"] * 2, "one that is the same is sent once"
    before, after = (json.loads(tables[made].read_text()) for made in sorted(tables))
    assert before["columns"] == list(BETWEEN)
    found = ["a/1", "the phrase certainly", "all", 0.0, None, 0.75, 0.5]
    assert before["data"] == [[*found, None, None, "not mended yet"]]
    assert after["data"] == [[*found, 0.25, 1.0, "mended"]]
    (report,) = tmp_path.glob(f"{media}/html/*.html")
    assert report.read_bytes() == (tmp_path / "report.html").read_bytes()
    assert offline_history(tmp_path) == read_metrics(tmp_path / "metrics.jsonl"), "no step is taken"


def test_the_token_of_the_annotation_page_is_not_sent(tmp_path):
    settings = config()
    settings.annotate.token = "a-token-that-is-long-enough"
    with Tracker(settings, tmp_path) as tracker:
        record_steps(tracker, "sft", 0, 1, 1)
    sent = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
    assert b"lease_minutes" in sent
    assert settings.annotate.token.encode() not in sent


def test_disabled_leaves_no_trace(tmp_path):
    with Tracker(config("disabled"), tmp_path) as tracker:
        record_steps(tracker, "sft", 0, 1, 2)
    assert not (tmp_path / "wandb").exists()


RUN = """
import sys, time
from pathlib import Path
from cool_rlhf.config import Config
from cool_rlhf.ending import Ending
from cool_rlhf.tracking import Tracker
config, output = Config(experiment="test"), Path(sys.argv[1])
config.logging.wandb_mode = "offline"
with Ending() as ending:
    ending.running(output)
    with ending.limited(), Tracker(config, output) as tracker, tracker.stage("ppo", 0, 100) as stage:
        for step in range(1, 100):
            stage.record(step, {"loss": 0.1 * step})
            if step == 5:
                print("ready", flush=True)
                time.sleep(60)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_wandb_ends_with_the_run_and_has_what_was_recorded(tmp_path, sent, offline_history):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    children = psutil.Process(run.pid).children(recursive=True)
    assert any("wandb-core" in child.name() for child in children)
    os.killpg(run.pid, sent)
    began = time.monotonic()
    _, errors = run.communicate(timeout=20)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert time.monotonic() - began < 10
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    if sent == signal.SIGINT:
        assert offline_history(tmp_path) == rows
        assert (tmp_path / "report.html").exists()
        assert "wandb:" not in errors  # what it says of itself


def wandb_processes():
    return [child for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]


def test_auto_is_offline_without_a_login_and_online_with_one(monkeypatch, tmp_path):
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert resolve_mode("auto") == "online"
    assert resolve_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"


@pytest.mark.parametrize(("server", "mode"), [(None, "online"), ("https://wandb.example.org", "offline")])
def test_a_login_in_netrc_counts_for_its_own_server(monkeypatch, tmp_path, server, mode):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert resolve_mode("auto") == mode


def test_unknown_modes_are_the_users_mistake(monkeypatch):
    with pytest.raises(UserError, match=r"logging\.wandb_mode is 'on'"):
        resolve_mode("on")
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    with pytest.raises(UserError, match="WANDB_MODE is 'dryrun'"):
        resolve_mode("auto")
