import pytest

from cool_rlhf.config import Config
from cool_rlhf.tracking.plan import run_plan

TOKENS = {"sft": 100_000.0, "reward": 20_000.0, "prompt": 30.0}


@pytest.fixture
def config():
    config = Config(experiment="test")
    config.sft.batch_tokens = 8192
    config.reward.batch_tokens = 4096
    config.collect.prompts = 10
    config.collect.samples_per_prompt = 4
    config.sampling.max_new_tokens = 100
    config.ppo.critic_warmup, config.ppo.iterations = 5, 60
    config.ppo.prompts_per_iteration = 64
    return config


def names(plan):
    return [(stage.name, stage.round) for stage in plan]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("sft", [("sft", 0)]),
        ("reward", [("sft", 0), ("collect", 0), ("reward", 0)]),
        ("ppo", [("sft", 0), ("collect", 0), ("reward", 0), ("ppo", 0)]),
        (
            "pipeline",
            [
                *(("sft", 0), ("collect", 0), ("reward", 0), ("ppo", 0), ("online", 0), ("reward", 1)),
                *(("ppo", 1), ("online", 1), ("reward", 2)),
            ],
        ),
    ],
)
def test_stages_come_in_the_order_in_which_they_run(config, stage, expected):
    config.stage = stage
    config.online.rounds = 2
    assert names(run_plan(config, set(), TOKENS.__getitem__)) == expected


def test_steps_follow_from_tokens_and_config(config):
    config.sft.epochs = 2
    config.online.rounds = 1
    sft, collect, reward, ppo, online, repair = run_plan(config, set(), TOKENS.__getitem__)
    assert (sft.steps, reward.steps, collect.steps) == (25, 5, 1)
    assert (ppo.steps, ppo.warmup_steps) == (65, 5)
    assert collect.work == 10 * 4 * (30 + 50)
    assert ppo.work > 64 * 80 * 2
    assert online.steps == 1
    assert repair.steps == 180, "2 epochs of 200 pairs, 100 patches and 2,000 replayed ones, 160 tokens a pair"
    assert all(stage.startup_seconds > 0 for stage in (sft, collect, reward, ppo, online, repair))


def test_nothing_is_asked_of_rows_that_are_not_needed(config):
    config.sft.path = config.reward.path = "somewhere"
    config.online.rounds = 1
    asked = []
    plan = run_plan(config, set(), lambda what: asked.append(what) or 30.0)
    assert names(plan) == [("ppo", 0)]
    assert set(asked) == {"prompt"}


def test_finished_stages_are_not_planned(config):
    config.online.rounds = 1
    config.online.prompts = 0
    assert names(run_plan(config, {("sft", 0), ("collect", 0)}, TOKENS.__getitem__)) == [("reward", 0), ("ppo", 0)]
