import io
import threading

import pytest

from cool_rlhf.tracking.estimate import PlannedStage, TimeLeft
from cool_rlhf.tracking.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drive(stream, line_seconds=15.0):
    clock = iter(float(i) for i in range(1000))
    time_left = TimeLeft([PlannedStage("ppo", 0, 10), PlannedStage("reward", 1, 5)], lambda: next(clock))
    progress = Progress(time_left, stream, line_seconds=line_seconds)
    time_left.start("ppo", 0, 10, 2)
    progress.start("ppo", 0, 10, 2)
    progress.phase("generate")
    time_left.step_done(3, warmup=False)
    progress.advance(3, {"reward/score": 1.2345, "kl": 0.02, "loss/value": 0.5, "loss/pretrain": 2.0})
    return time_left, progress


def test_a_terminal_gets_one_bar_with_what_runs_and_how_long_it_will_take():
    stream = Terminal()
    _, progress = drive(stream)
    progress.close()
    last = stream.getvalue().split("\r")[-1]
    assert "ppo · round 0 · generate |" in last
    assert "3/10" in last
    assert "score 1.23 · KL 0.02 · value loss 0.5" in last
    assert "s/step · stage 0:" in last
    assert "run over 0:" in last


def test_what_is_started_shows_before_the_first_step():
    stream = Terminal()
    time_left = TimeLeft([PlannedStage("ppo", 0, 10, startup_seconds=75.0)], lambda: 0.0)
    progress = Progress(time_left, stream)
    time_left.prepare("ppo", 0)
    progress.prepare("ppo", 0, "starting policy, critic")
    assert "ppo · round 0 · starting policy, critic |            | stage over 1:15 left" in stream.getvalue()
    time_left.start("ppo", 0, 10, 4)
    progress.start("ppo", 0, 10, 4)
    last = stream.getvalue().split("\r")[-1]
    progress.close()
    assert "starting" not in last
    assert "ppo · round 0 |####" in last
    assert "| 4/10 · stage" in last
    assert "\n" not in stream.getvalue().rstrip("\n")  # one bar, not two


def test_elsewhere_plain_lines_come_seldom():
    stream = io.StringIO()
    time_left, progress = drive(stream)
    for step in range(4, 11):
        time_left.step_done(step, warmup=False)
        progress.advance(step, {"kl": 0.1})
    progress.finish()
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("ppo · round 0 · 2/10 · stage unknown left")
    assert lines[1] == "ppo · round 0 · 10/10 · KL 0.1 · 1.0 s/step · took 0:00 · run unknown left"
    assert not {"\r", "\x1b"} & set(stream.getvalue())


def test_a_line_whenever_the_interval_has_passed():
    stream = io.StringIO()
    _, progress = drive(stream, line_seconds=0.0)
    progress.close()
    assert len(stream.getvalue().splitlines()) >= 3


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_closing_ends_the_thread_and_may_be_repeated(make):
    before = set(threading.enumerate())
    _, progress = drive(make())
    assert set(threading.enumerate()) > before
    progress.close()
    progress.close()
    assert set(threading.enumerate()) == before
