import pytest

from cool_rlhf.tracking.estimate import Left, PlannedStage, TimeLeft, clock_text, left_text


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(time_left, clock, name, round, steps, seconds, done=0, warmup=0):
    time_left.start(name, round, steps, done)
    for step in range(done + 1, done + 1 + len(seconds)):
        clock.now += seconds[step - done - 1]
        time_left.step_done(step, warmup=step <= warmup)


# A step of reward training is half again as much work as one of SFT; of PPO nobody can say.
PLAN = [PlannedStage("sft", 0, 10, work=2.0), PlannedStage("reward", 0, 4, work=3.0), PlannedStage("ppo", 0, 6, 2)]


def test_nothing_is_known_before_anything_ran():
    time_left = TimeLeft([PlannedStage("sft", 0, 10)], Clock())
    time_left.start("sft", 0, 10, 0)
    assert time_left.stage_left() is None
    assert time_left.run_left() is None


def test_an_unmeasured_stage_makes_the_estimate_a_least():
    clock = Clock()
    time_left = TimeLeft(PLAN, clock)
    run(time_left, clock, "sft", 0, 10, [2.0] * 4)
    assert time_left.stage_left() == Left(12.0, True)
    assert time_left.run_left() == Left(12.0 + 4 * 3.0, False, False)


def test_work_tells_what_has_not_been_measured():
    clock = Clock()
    time_left = TimeLeft(PLAN[:2], clock)
    run(time_left, clock, "sft", 0, 10, [2.0] * 4)
    assert time_left.run_left() == Left(24.0, True, False)
    time_left.finish()
    assert time_left.run_left() == Left(12.0, True, False)
    run(time_left, clock, "reward", 0, 4, [5.0])
    assert time_left.run_left() == Left(15.0, True)


def test_starting_and_ending_count_and_are_learnt():
    clock = Clock()
    ppo = [PlannedStage("ppo", round, 4, startup_seconds=20.0, ending_seconds=5.0) for round in (0, 1)]
    time_left = TimeLeft([PlannedStage("sft", 0, 2), *ppo], clock)
    run(time_left, clock, "sft", 0, 2, [1.0, 1.0])
    time_left.finish()
    time_left.prepare("ppo", 0)
    clock.now += 12
    assert time_left.stage_left() == Left(13.0, False, False)
    clock.now += 18
    assert time_left.run_left() == Left(5.0 + 25.0, False, False)
    run(time_left, clock, "ppo", 0, 4, [1.0] * 4)
    assert time_left.stage_left() == Left(5.0, True)
    clock.now += 3
    assert time_left.stage_left() == Left(2.0, True)
    time_left.finish()
    assert time_left.run_left() == Left(30.0 + 4 + 3, True)


def test_a_start_that_takes_longer_than_expected_leaves_at_least_the_rest():
    clock = Clock()
    time_left = TimeLeft([PlannedStage("sft", 0, 2, startup_seconds=20.0, ending_seconds=1.0)], clock)
    time_left.learn([{"stage": "sft", "round": 0, "step": s, "seconds": 2.0 * s} for s in (1, 2)])
    time_left.prepare("sft", 0)
    clock.now += 19
    assert time_left.run_left() == Left(6.0, True)
    clock.now += 30
    assert time_left.run_left() == Left(5.0, False)


def test_the_step_under_way_is_counted_down_but_never_below_nothing():
    clock = Clock()
    time_left = TimeLeft([], clock)
    run(time_left, clock, "sft", 0, 10, [2.0] * 4)
    clock.now += 1.5
    assert time_left.stage_left() == Left(10.5, True)
    clock.now += 100
    assert time_left.stage_left() == Left(10.0, True)


def test_the_first_step_does_not_count_once_a_faster_one_is_known():
    clock = Clock()
    time_left = TimeLeft([], clock)
    run(time_left, clock, "sft", 0, 12, [60.0, 2.0])
    assert time_left.stage_left() == Left(20.0, True)


def test_validation_every_few_steps_is_in_the_mean():
    clock = Clock()
    time_left = TimeLeft([], clock)
    run(time_left, clock, "ppo", 0, 120, ([1.0] * 4 + [6.0]) * 4)
    assert time_left.stage_left() == Left(pytest.approx(200.0), True)


def test_only_recent_steps_count():
    clock = Clock()
    time_left = TimeLeft([], clock)
    run(time_left, clock, "sft", 0, 50, [9.0] * 10 + [1.0] * 20)
    assert time_left.seconds_per_step() == 1.0


def test_warm_up_and_the_rest_are_measured_apart():
    clock = Clock()
    time_left = TimeLeft(PLAN[2:], clock)
    run(time_left, clock, "ppo", 0, 6, [1.0], warmup=2)
    assert time_left.stage_left() == Left(1.0, False, False)
    clock.now += 1
    time_left.step_done(2, warmup=True)
    clock.now += 5
    time_left.step_done(3, warmup=False)
    assert time_left.stage_left() == Left(15.0, True)


def test_a_later_round_goes_like_the_earlier():
    clock = Clock()
    time_left = TimeLeft([PlannedStage("ppo", 0, 4), PlannedStage("ppo", 1, 8)], clock)
    run(time_left, clock, "ppo", 0, 4, [2.0] * 4)
    assert time_left.run_left() == Left(16.0, True)


def test_resuming_counts_earlier_stages_as_over_and_learns_from_their_rows():
    clock = Clock()
    time_left = TimeLeft(PLAN, clock)
    rows = [{"stage": "ppo", "round": 0, "step": s, "seconds": 7.0 * s, "warmup": s <= 2} for s in (1, 2, 3, 4)]
    time_left.learn(rows)
    time_left.start("ppo", 0, 6, 4)
    assert time_left.run_left() == Left(14.0, True)


def test_how_time_is_written():
    assert [clock_text(s) for s in (0.4, 59.6, 125, 3725)] == ["0:00", "1:00", "2:05", "1:02:05"]
    assert left_text(None) == "unknown"
    assert left_text(Left(61, False)) == left_text(Left(61, False, False)) == "over 1:01"
    assert left_text(Left(61, True, False)) == "about 1:01"
    assert left_text(Left(61, True)) == "1:01"
