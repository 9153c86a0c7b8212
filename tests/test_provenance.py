"""Which changes a run in the same folder may make."""

from __future__ import annotations

from pathlib import Path

import pytest

from cool_rlhf.command import execute
from cool_rlhf.compose import compose
from cool_rlhf.config import Config
from cool_rlhf.ending import Ending
from cool_rlhf.folders import BEST_FILE, RoundFolder
from cool_rlhf.protocols import UserError
from cool_rlhf.provenance import is_lost, made_from, open_state, outputs, unfinished, without_critic


@pytest.fixture
def run(tmp_path: Path):
    """Makes the config of a run in one folder, with overrides."""
    return lambda *overrides: compose(["+experiment=smoke", f"output_dir={tmp_path}", *overrides])


def finish_all(config) -> None:
    state = open_state(config)
    for name in unfinished(config, state):
        state.begin(name, made_from(config)[name])
        outputs(config)[name].mkdir(parents=True, exist_ok=True)
        if name.startswith("online_"):
            folder = RoundFolder(Path(config.output_dir), int(name.removeprefix("online_")))
            folder.patterns.mkdir(parents=True, exist_ok=True)
        state.finish(name)


@pytest.mark.parametrize(
    "override",
    [
        "ppo.iterations=999",
        "online.rounds=3",
        "cluster.policy.ranks=2",
        "cluster.rollout.engines=2",
        "logging.wandb_mode=offline",
        "logging.progress=false",
        "ppo.save_every=3",
        "ppo.validate_every=3",
        "ppo.validation_texts=3",
        "ppo.micro_batch_tokens=777",
        "sft.micro_batch_tokens=777",
        "model.gradient_checkpointing=true",
        "evaluate.samples_per_prompt=3",
        "stage=evaluate",
        "stage=sft",
    ],
)
def test_changes_of_what_comes_or_of_how_are_taken(run, override: str) -> None:
    finish_all(run())
    open_state(run(override))


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("seed=77", "seed was 1 and is 77"),
        ("sft.learning_rate=0.5", "sft.learning_rate was {} and is 0.5"),
        ("reward.learning_rate=0.5", "reward.learning_rate was {} and is 0.5"),
        ("reward.learning_rate=0.5", "reward_0 stage"),
        ("ppo.clip=0.3", "ppo.clip was {} and is 0.3"),
        ("ppo.validation_prompts=3", "ppo.validation_prompts was {} and is 3"),
        ("sampling.top_p=0.5", "sampling.top_p was {} and is 0.5"),
        ("data.preferences=[a.jsonl]", 'data.preferences was [] and is ["a.jsonl"]'),
        ("reward.validation_share=0.5", "reward.validation_share was {} and is 0.5"),
        ("data.bad_rows=drop", 'data.bad_rows was "refuse" and is "drop"'),
        ("data.validation_preferences=[a.jsonl]", 'data.validation_preferences was [] and is ["a.jsonl"]'),
        ("data.test_preferences=[a.jsonl]", 'data.test_preferences was [] and is ["a.jsonl"]'),
        ("data.test_prompts=[a.jsonl]", "sft stage was made with other settings: data.test_prompts was [] and is"),
        ("data.world.label_noise=0.3", "data.world.label_noise was {} and is 0.3"),
        ("model.layers=7", "model.layers was {} and is 7"),
        ("conditions.brief=Other", 'and is "Other"'),
        ("sft.path=elsewhere", 'sft.path was null and is "elsewhere"'),
        ("reward.path=elsewhere", 'reward.path was null and is "elsewhere"'),
    ],
)
def test_changes_of_what_made_the_finished_part_are_refused(run, override: str, difference: str) -> None:
    finish_all(run())
    key = override.partition("=")[0]
    before = run()
    for name in key.split("."):
        before = before[name] if isinstance(before, dict) else getattr(before, name)
    with pytest.raises(UserError) as caught:
        open_state(run(override))
    assert difference.format(before) in str(caught.value)


@pytest.mark.parametrize("override", ["seed=77", "model.dtype=bfloat16", "sft.path=b", "reward.path=b"])
def test_given_models_are_part_of_what_made_ppo(run, override: str) -> None:
    given = ("sft.path=a", "reward.path=a")
    finish_all(run(*given))
    open_state(run(*given))
    with pytest.raises(UserError, match=f"{override.partition('=')[0]} was"):
        open_state(run(*given, override))


@pytest.mark.parametrize(
    ("asked", "is_read"),
    [
        (["ppo.pretrain_ratio=0.5"], True),
        (["ppo.pretrain_ratio=0"], False),
        (["ppo.pretrain_ratio=0", "ppo.best_metric=validation/lm_loss", "ppo.best_mode=min"], True),
    ],
)
def test_how_texts_are_cut_is_part_of_what_made_ppo_where_they_are_read(run, asked: list[str], is_read: bool) -> None:
    given = ("sft.path=a", "reward.path=a", "ppo.pretrain_coefficient=0.5", "ppo.validation_texts=4", *asked)
    finish_all(run(*given))
    if not is_read:
        open_state(run(*given, "sft.max_length=77"))
        return
    with pytest.raises(UserError, match=r"sft\.max_length was \d+ and is 77"):
        open_state(run(*given, "sft.max_length=77"))


@pytest.mark.parametrize(
    ("override", "bound"),
    [
        ("online.learning_rate=1e-9", "reward_1"),
        ("online.final_learning_rate=1e-9", "reward_1"),
        ("online.epochs=9", "reward_1"),
        ("online.replay=9", "reward_1"),
        ("online.least_replay=9", "reward_1"),
        ("online.least_mended=0.5", "reward_1"),
        ("online.most_lost=0.5", "reward_1"),
        ("online.policy_from=sft", "ppo_1"),
        ("online.cheating=0.9", "ppo_1"),
        ("online.patches=44", "online_0"),
        ("online.judging_pairs=44", "online_0"),
        ("online.significance=0.02", "online_0"),
    ],
)
def test_what_mends_a_round_binds_nothing_before_it(run, override: str, bound: str) -> None:
    """A repair that has diverged can be made with other settings, without its round of PPO being lost."""
    config = run("online.rounds=2")
    changed = run("online.rounds=2", override)
    for name in unfinished(config, open_state(config)):
        open_state(changed)
        state = open_state(config)
        state.begin(name, made_from(config)[name])
        state.finish(name)
        if name == bound:
            break
    with pytest.raises(UserError, match=f"{bound} stage .*{override.partition('=')[0]} was"):
        open_state(changed)


@pytest.mark.parametrize("labeller", ["people", "rule", "judge"])
def test_only_the_labeller_that_a_round_asks_is_part_of_what_made_it(run, labeller: str) -> None:
    asked = (f"online.labeller={labeller}", "annotate.judge.model=a")
    finish_all(run(*asked))
    parts = {
        "rule": ["annotate.rule=mine:rule", "annotate.rule_noise=0.3"],
        "judge": ["annotate.judge.model=b", "annotate.judge.url=http://elsewhere/v1", "annotate.judge.temperature=0"],
        "nobody": ["annotate.judge.timeout=3", "annotate.judge.requests=2", "annotate.judge.key_variable=OTHER"],
    }
    for owner, overrides in parts.items():
        for override in overrides:
            if owner == labeller:
                with pytest.raises(UserError, match=f"online_0 stage .*{override.partition('=')[0]} was"):
                    open_state(run(*asked, override))
            else:
                open_state(run(*asked, override))


def test_what_the_best_policy_is_judged_by_stays(run) -> None:
    asked = ("ppo.validation_texts=4", "ppo.best_metric=validation/lm_loss", "ppo.best_mode=min")
    finish_all(run(*asked))
    with pytest.raises(UserError, match=r"ppo\.validation_texts was 4 and is 3"):
        open_state(run(*asked, "ppo.validation_texts=3"))


def test_where_a_step_is_generated_ahead_the_saved_ones_are_part_of_what_made_ppo(run) -> None:
    ahead = ["ppo.generate_ahead=true", "ppo.old_logprobs=engine", "sampling.temperature=1.0"]
    finish_all(run(*ahead))
    with pytest.raises(UserError, match=r"ppo\.save_every was \d+ and is 3"):
        open_state(run(*ahead, "ppo.save_every=3"))
    open_state(run(*ahead, "ppo.validate_every=3"))


def test_where_a_validation_may_end_a_round_that_generates_ahead_its_steps_are_too(run) -> None:
    ahead = ["ppo.generate_ahead=true", "ppo.old_logprobs=engine", "sampling.temperature=1.0"]
    ahead += ["ppo.stop_when_parted=true", "ppo.iterations=12"]
    finish_all(run(*ahead))
    with pytest.raises(UserError, match=r"ppo\.validate_every was \d+ and is 3"):
        open_state(run(*ahead, "ppo.validate_every=3"))


def test_what_a_run_keeps_the_best_by_is_recorded_as_it_was_taken(run) -> None:
    finish_all(run())
    open_state(run("ppo.best_metric=validation/score", "ppo.best_mode=max"))
    assert made_from(run())["ppo_0"]["ppo"]["best_metric"] == "validation/score"


def test_a_finished_round_that_left_no_critic_says_so(run, capsys) -> None:
    config, keeping = run(), run("ppo.keep_critic=true")
    assert without_critic(keeping, open_state(keeping)) is None, "it is still to come"
    finish_all(config)
    assert without_critic(config, open_state(config)) is None
    told = without_critic(keeping, open_state(keeping))
    assert told is not None
    assert "round 0 left no critic" in told
    execute(["+experiment=smoke", f"output_dir={config.output_dir}", "ppo.keep_critic=true"], Ending())
    assert capsys.readouterr().out.startswith(f"{told}\n{config.output_dir} is finished")
    (Path(config.output_dir) / "rounds/0/critic").mkdir(parents=True)
    assert without_critic(keeping, open_state(keeping)) is None


def test_what_is_not_begun_may_change(run) -> None:
    finish_all(run("stage=sft"))
    open_state(run("reward.learning_rate=0.5", "ppo.clip=0.3"))


def test_collecting_is_part_of_what_made_the_reward_model(run) -> None:
    finish_all(run("collect.prompts=0"))
    with pytest.raises(UserError, match=r"collect\.prompts was 0 and is 5"):
        open_state(run("collect.prompts=5"))


def test_what_is_left_to_do(run) -> None:
    config = run("collect.prompts=4")
    state = open_state(config)
    assert unfinished(config, state) == ["sft", "collect", "reward_0", "ppo_0", "online_0", "reward_1", "export_1"]
    finish_all(config)
    assert unfinished(config, open_state(config)) == []
    more = run("collect.prompts=4", "online.rounds=2")
    assert unfinished(more, open_state(more)) == ["reward_1", "ppo_1", "online_1", "reward_2", "export_2"]


@pytest.mark.parametrize("last", ["ppo_1", "online_1", "reward_2", "export_2"])
def test_fewer_rounds_than_were_begun_are_refused(run, last: str) -> None:
    config = run("online.rounds=2")
    state = open_state(config)
    for name in unfinished(config, state):
        state.begin(name, made_from(config)[name])
        if name == last:
            break
        outputs(config)[name].mkdir(parents=True, exist_ok=True)
        state.finish(name)
    before = (state.folder / "progress.json").read_bytes()
    with pytest.raises(UserError) as caught:
        open_state(run("online.rounds=1"))
    assert str(caught.value) == (
        f"online.rounds is 1, but {config.output_dir} holds a run that has begun 2: set it to 2 or more, or choose "
        "another output_dir"
    )
    assert (state.folder / "progress.json").read_bytes() == before
    open_state(config)


def test_rounds_that_were_not_begun_may_be_left_out(run) -> None:
    config = run("online.rounds=2")
    state = open_state(config)
    for name in ("sft", "reward_0", "ppo_0", "online_0", "reward_1"):
        state.begin(name, made_from(config)[name])
        state.finish(name)
    open_state(run("online.rounds=1"))


def test_more_iterations_reopen_ppo(run) -> None:
    config = run("ppo.iterations=2", "ppo.critic_warmup=1")
    finish_all(config)
    open_state(config).save_snapshot("ppo_0", {"step": 3}, lambda folder: None)
    assert unfinished(config, open_state(config)) == []
    longer = run("ppo.iterations=5", "ppo.critic_warmup=1")
    assert unfinished(longer, open_state(longer)) == ["ppo_0", "online_0", "reward_1", "export_1"]


@pytest.mark.parametrize(("best", "least"), [(0.5, 3), (None, 4)])  # without a policy another validation is wanted
def test_fewer_iterations_than_a_round_under_way_has_made_are_refused(run, best: float | None, least: int) -> None:
    def asked(iterations: int) -> Config:
        return run(f"ppo.iterations={iterations}", "ppo.critic_warmup=2")

    config = asked(6)
    state = open_state(config)
    state.begin("ppo_0", made_from(config)["ppo_0"])
    state.save_snapshot("ppo_0", {"step": 5, "best": best}, lambda folder: None)
    outputs(config)["ppo_0"].mkdir(parents=True)
    for iterations in range(1, least):
        with pytest.raises(UserError) as caught:
            open_state(asked(iterations))
        assert str(caught.value) == (
            f"ppo.iterations is {iterations}, but {config.output_dir} holds a PPO whose round 0 has made 3: set it to "
            f"{least} or more, or choose another output_dir"
        )
    open_state(asked(least))
    (outputs(config)["ppo_0"] / BEST_FILE).write_text('{"step": 7, "value": 0.5}')  # kept after the snapshot
    with pytest.raises(UserError, match="has made 5: set it to 5 or more"):
        open_state(asked(4))
    open_state(asked(5))
    state.finish("ppo_0")
    open_state(asked(1))
    state.reopen_from("ppo_0")
    state.save_snapshot("ppo_0", {"step": 5, "best": 0.5, "ended": True}, lambda folder: None)
    open_state(asked(1))


def test_a_round_that_score_and_gold_ended_stays_ended(run) -> None:
    config = run("ppo.iterations=5", "ppo.critic_warmup=1")
    finish_all(config)
    open_state(config).save_snapshot("ppo_0", {"step": 3, "ended": True}, lambda folder: None)
    assert unfinished(config, open_state(config)) == []


@pytest.mark.parametrize("lost", ["sft", "reward_0", "ppo_0", "online_0", "reward_1", "export_1"])
def test_what_was_taken_away_and_all_after_it_is_left_to_do(run, lost: str) -> None:
    config = run()
    whole = unfinished(config, open_state(config))
    finish_all(config)
    outputs(config)[lost].rmdir()
    state = open_state(config)
    state.save_snapshot("ppo_0", {"step": 999, "best": 0.5}, lambda folder: None)
    assert [name for name in whole if is_lost(config, state, name)] == [lost]
    left = whole[whole.index(lost) :]
    assert unfinished(config, state) == left
    state.discard_from(lost)
    state = open_state(config)
    assert [name for name in whole if not state.is_finished(name)] == left
    assert (state.snapshot("ppo_0") is None) == ("ppo_0" in left)


def test_findings_that_were_taken_away_are_made_again_but_where_none_are_asked_for(run) -> None:
    config = run()
    finish_all(config)
    RoundFolder(Path(config.output_dir), 0).patterns.rmdir()
    state = open_state(config)
    assert is_lost(config, state, "online_0")
    config.online.fast_path = False
    assert not is_lost(config, state, "online_0")


def test_a_best_policy_that_was_taken_away_begins_ppo_again(run) -> None:
    config = run("stage=ppo")
    state = open_state(config)
    state.begin("ppo_0", made_from(config)["ppo_0"])
    state.save_snapshot("ppo_0", {"step": 1, "best": None}, lambda folder: None)
    assert not is_lost(config, state, "ppo_0")
    state.save_snapshot("ppo_0", {"step": 2, "best": 0.5}, lambda folder: None)
    assert is_lost(config, state, "ppo_0")
