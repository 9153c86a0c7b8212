import json
import logging
import math
import subprocess
import sys
import threading
import warnings

import pytest

from cool_rlhf.config import Config
from cool_rlhf.tracking import NonFiniteMetricError, PlannedStage, Tracker, read_metrics, setup_logging


@pytest.fixture
def config():
    config = Config(experiment="test")
    config.logging.wandb_mode = "disabled"
    config.logging.progress = False
    return config


def sample(domain="brief"):
    question = [{"role": "user", "content": "Why?"}]
    said = "Because \ud800."
    return {"domain": domain, "messages": question, "response": said, "score": 0.5, "gold": None, "finished": True}


def test_a_run_leaves_rows_samples_and_a_report(config, tmp_path):
    with Tracker(config, tmp_path, [PlannedStage("sft", 0, 2)]) as tracker, tracker.stage("sft", 0, 2) as stage:
        stage.phase("train")
        stage.record(1, {"loss": 2.0})
        stage.record(2, {"loss": 1.0}, samples=[sample()])
    assert "Supervised fine-tuning" in (tmp_path / "report.html").read_text()
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2.0, 1.0]
    (row,) = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert row == {"stage": "sft", "round": 0, "step": 2, **sample()}


def test_resuming_takes_samples_back_too(config, tmp_path):
    with Tracker(config, tmp_path) as tracker, tracker.stage("ppo", 0, 4) as stage:
        for step in (1, 2, 3, 4):
            stage.record(step, {"kl": 0.1}, samples=[sample()])
    with Tracker(config, tmp_path) as tracker:
        tracker.resume("ppo", 0, 2)
        with tracker.stage("ppo", 0, 3) as stage:
            stage.record(3, {"kl": 0.2}, samples=[sample()])
        with pytest.raises(RuntimeError, match="before the first stage"):
            tracker.resume("ppo", 0, 1)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert [json.loads(line)["step"] for line in (tmp_path / name).read_text().splitlines()] == [1, 2, 3]


def test_a_resumed_run_knows_at_once_how_long_its_steps_take(config, tmp_path, capsys):
    rows = [{"stage": "ppo", "round": 0, "step": s, "seconds": 100.0 * s} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.logging.progress = True
    with Tracker(config, tmp_path) as tracker:
        tracker.resume("ppo", 0, 2)
        tracker.set_plan([PlannedStage("ppo", 0, 9, startup_seconds=60.0)])
        tracker.prepare("ppo", 0, "starting policy")
    shown = "starting policy · 100.0 s/step · stage 16:00 left · run 16:00 left"
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ZeroDivisionError])
def test_whatever_ends_the_run_everything_is_closed(config, tmp_path, error):
    config.logging.progress = True
    before = set(threading.enumerate())

    def run():
        with Tracker(config, tmp_path) as tracker, tracker.stage("ppo", 0, 4) as stage:
            stage.record(1, {"kl": 0.1})
            raise error

    with pytest.raises(error):
        run()
    assert set(threading.enumerate()) == before
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert (tmp_path / "report.html").exists() == (error is not OSError)


def test_divergence_stops_the_run(config, tmp_path):
    with pytest.raises(NonFiniteMetricError), Tracker(config, tmp_path) as tracker, tracker.stage("sft", 0, 4) as stage:
        stage.record(1, {"loss": math.nan})


def test_one_stage_at_a_time(config, tmp_path):
    with Tracker(config, tmp_path) as tracker:
        stage = tracker.stage("sft", 0, 4)
        with pytest.raises(RuntimeError, match="reward begins while sft"):
            tracker.stage("reward", 0, 4)
        stage.finish()
        stage.finish()
        tracker.stage("reward", 0, 4).finish()


def test_a_run_that_starts_no_stage_writes_no_report(config, tmp_path):
    with Tracker(config, tmp_path):
        pass
    assert not (tmp_path / "report.html").exists()


def test_importing_it_is_light():
    heavy = ["torch", "ray", "deepspeed", "vllm", "transformers", "datasets", "wandb", "jinja2", "yaml", "plotly"]
    code = f"import sys, cool_rlhf.tracking; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def restored_logging():
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    logging.captureWarnings(False)  # a library that an earlier test imported may have it on; a second time does nothing
    yield
    root.setLevel(level)
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
        handler.close()
    logging.captureWarnings(False)


@pytest.mark.usefixtures("restored_logging")
def test_the_log_takes_everything_and_the_terminal_our_warnings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # the odd letter cannot travel in a report of pytest-xdist's
    setup_logging(tmp_path / "first")
    path = setup_logging(tmp_path / "second")
    logging.getLogger("cool_rlhf.pipeline").info("round %d begins", 1)
    logging.getLogger("reward.training").warning("odd \ud800")
    logging.getLogger("other").warning("somebody else's")
    warnings.warn("old call", DeprecationWarning, stacklevel=1)
    text = path.read_text()
    assert path == tmp_path / "second" / "logs" / "run.log"
    for words in ("INFO cool_rlhf.pipeline: round 1 begins", "WARNING other: somebody else's", "old call"):
        assert words in text
    assert (tmp_path / "first" / "logs" / "run.log").read_text() == ""
    assert capsys.readouterr().err.strip().endswith("reward.training: odd \\ud800")
