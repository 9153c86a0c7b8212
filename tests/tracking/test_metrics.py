import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cool_rlhf.tracking.metrics import MetricsLog, NonFiniteMetricError, read_metrics


class Clock:
    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


def steps(path):
    return [(row["stage"], row["round"], row["step"]) for row in read_metrics(path)]


def test_a_row_has_its_keys_and_the_fields_flat(tmp_path):
    clock = Clock()
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path, clock=clock) as log:
        clock.now += 1.5
        row = log.append("ppo", 0, 1, {"reward/score": 0.1 + 0.2, "warmup": True, "tokens": np.int64(7)})
    assert row == {"stage": "ppo", "round": 0, "step": 1, "seconds": 1.5, "reward/score": 0.1 + 0.2, "warmup": True,
                   "tokens": 7}  # fmt: skip
    assert read_metrics(path) == [row]
    assert path.read_text().count("\n") == 1


def test_a_row_can_be_read_as_soon_as_it_is_appended(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append("sft", 0, 1, {"loss": 1.0})
    assert steps(tmp_path / "metrics.jsonl") == [("sft", 0, 1)]
    log.close()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_values_come_back_exactly(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append("sft", 0, 1, {"loss": value})
    assert read_metrics(path)[0]["loss"] == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_number_json_has_no_word_for_is_refused_and_nothing_written(tmp_path, value):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append("ppo", 0, 1, {"kl": 0.0})
        with pytest.raises(NonFiniteMetricError, match="ppo, round 0, step 2: loss/value is"):
            log.append("ppo", 0, 2, {"kl": 0.1, "loss/value": value})
    assert steps(tmp_path / "metrics.jsonl") == [("ppo", 0, 1)]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"loss": "high"}, TypeError),
        ({"loss": None}, TypeError),
        ({"loss": {"a": 1}}, TypeError),
        ({"step": 3}, ValueError),
    ],
)
def test_only_flat_numbers_under_names_of_their_own(tmp_path, fields, error):
    with MetricsLog(tmp_path / "metrics.jsonl") as log, pytest.raises(error):
        log.append("sft", 0, 1, fields)


def test_real_numbers_of_other_types_are_taken(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append("sft", 0, 1, {"a": np.float32(0.5), "b": Fraction(1, 4)})
    row = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert (row["a"], row["b"]) == (0.5, 0.25)


def test_a_step_is_recorded_once(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append("ppo", 0, 2, {})
        log.append("ppo", 1, 1, {})
        with pytest.raises(ValueError, match="step 2 recorded after step 2"):
            log.append("ppo", 0, 2, {})


def write(path, rows):
    with MetricsLog(path) as log:
        for stage, round, step in rows:
            log.append(stage, round, step, {"loss": float(step)})


ROWS = [("sft", 0, 1), ("sft", 0, 2), ("reward", 0, 1), ("ppo", 0, 1), ("ppo", 0, 2), ("ppo", 0, 3), ("reward", 1, 1)]


@pytest.mark.parametrize(
    ("resumed", "finished", "kept"),
    [
        (("ppo", 0, 2), 2, 5),
        (("ppo", 0, 0), 2, 3),
        (("ppo", 0, 9), 2, 6),
        (("sft", 0, 1), 0, 1),
        (("sft", 0, 0), 0, 0),
        (("ppo", 1, 0), 4, 7),
        (("online", 0, 0), 3, 6),  # it has no rows: what came after it has
    ],
)
def test_resuming_drops_what_came_after_the_resumed_step(tmp_path, resumed, finished, kept):
    before = [("sft", 0), ("reward", 0), ("ppo", 0), ("reward", 1)][:finished]
    path = tmp_path / "metrics.jsonl"
    write(path, ROWS)
    whole = path.read_bytes().splitlines(keepends=True)
    with MetricsLog(path) as log:
        assert log.truncate_after(*resumed, before) == len(ROWS) - kept
        log.append(resumed[0], resumed[1], resumed[2] + 1, {"loss": 0.0})
    assert steps(path) == [*ROWS[:kept], (resumed[0], resumed[1], resumed[2] + 1)]
    assert path.read_bytes().splitlines(keepends=True)[:kept] == whole[:kept]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_seconds_go_on_from_the_last_row_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    clock = Clock()
    with MetricsLog(path, clock=clock) as log:
        for step in (1, 2, 3):
            clock.now += 10
            log.append("ppo", 0, step, {})
    clock.now += 5000
    with MetricsLog(path, clock=clock) as log:
        log.truncate_after("ppo", 0, 2)
        clock.now += 1
        log.append("ppo", 0, 3, {})
    assert [row["seconds"] for row in read_metrics(path)] == [10, 20, 21]


@pytest.mark.parametrize("rest", [b'{"stage": "ppo", "ro', b"\x00\x00\x00", b'{"stage": "ppo", "round": 0, "step": 9}'])
def test_a_last_line_cut_by_a_crash_is_left_out_and_then_overwritten(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    write(path, ROWS[:2])
    path.write_bytes(path.read_bytes() + rest)
    assert steps(path) == ROWS[:2]
    with MetricsLog(path) as log:
        log.append("reward", 0, 1, {"loss": 1.0})
    assert steps(path) == ROWS[:3]
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_damage_elsewhere_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "sft"}\nnonsense\n{"stage": "sft"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not JSON"):
        read_metrics(path)


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
