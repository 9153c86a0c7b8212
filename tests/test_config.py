"""Composition, the checks of single values, and the report's settings."""

from __future__ import annotations

import dataclasses
import json
import math
from operator import attrgetter
from pathlib import Path

import pytest

from cool_rlhf.checks.settings import without_effect
from cool_rlhf.compose import compose, compose_tree, experiments, known_keys
from cool_rlhf.config import Config, best_by, judged_as, validation_share
from cool_rlhf.data.loading import Reading
from cool_rlhf.data.sources import HubName, resolve
from cool_rlhf.metric_names import validation_metrics
from cool_rlhf.protocols import UserError

REPORT = {
    # Conditional reward model
    "reward.gamma": 2.0,
    "reward.penalty_weight": 0.02,
    "reward.bound": 5.0,
    "reward.batch_tokens": 16384,
    "reward.max_length": 8192,
    "reward.learning_rate": 1e-5,
    "reward.final_learning_rate": 5e-6,
    "reward.weight_decay": 0.01,
    "reward.epochs": 1,
    "reward.detach_focal": False,
    # PPO
    "ppo.critic_warmup": 50,
    "ppo.iterations": 400,
    "ppo.pretrain_coefficient": 0.5,
    "ppo.pretrain_ratio": 0.5,
    "ppo.kl_coefficient": 0.01,
    "ppo.policy_learning_rate": 1e-6,
    "ppo.critic_learning_rate": 5e-6,
    "ppo.trace_decay": 0.99,
    "sampling.top_p": 0.9,
    # Not stated there; the defaults chosen for it
    "ppo.discount": 1.0,
    "ppo.clip": 0.2,
    "sampling.temperature": 1.0,
    "ppo.epochs": 1,
    "ppo.kl_estimator": "k1",
    "ppo.unfinished_penalty": 0.0,
    # SFT and rounds
    "sft.epochs": 1,
    "sft.learning_rate": 4e-5,
    "online.rounds": 3,
}
SHAPES = {  # hidden, layers, heads, ffn
    "1_8b": (2048, 24, 16, 8192),
    "7b": (4096, 32, 32, 14336),
    "20b": (6144, 48, 48, 16384),
}


@pytest.mark.parametrize("size", SHAPES)
def test_big_experiments_have_the_reports_settings(size: str) -> None:
    config = compose([f"+experiment={size}_ppo"])
    assert {key: attrgetter(key)(config) for key in REPORT} == REPORT
    queries = config.ppo.iterations * config.ppo.prompts_per_iteration
    assert math.isclose(queries, 200_000, rel_tol=0.05)
    model = config.model
    assert (model.hidden_size, model.layers, model.heads, model.ffn_size) == SHAPES[size]
    assert (model.kv_heads, model.vocab_size, model.max_positions, model.dtype) == (8, 92544, 32768, "bfloat16")
    assert model.path == config.sft.path == f"internlm/internlm2-chat-{size}-sft"
    assert config.output_dir == f"outputs/{size}_ppo"
    data = config.data
    assert all((data.sft, data.preferences, data.prompts, data.pretrain))
    assert set(data.domains.values()) <= set(config.conditions)


def test_public_sets_contradict_each_other_under_conditions_and_every_domain_is_asked_in_ppo() -> None:
    config = compose(["+experiment=7b_ppo"])
    reading = Reading.of(config)

    def domains(sources: list[str]) -> set[str]:
        return {reading.rules(source).domain for source in sources}

    learnt = domains(config.data.preferences)
    assert learnt >= {"helpful", "harmless"}
    assert domains(config.data.prompts) == learnt
    prompts = [config.conditions[domain] for domain in learnt]
    assert all(prompt.strip() for prompt in prompts)
    assert len(set(prompts)) == len(learnt)
    assert set(config.data.domain_weights) <= learnt


def test_sft_model_follows_the_model_that_the_user_names() -> None:
    config = compose(["+experiment=7b_ppo", "model.path=/models/mine"])
    assert config.sft.path == "/models/mine"
    assert compose(["+experiment=7b_ppo", "sft.path=null"]).sft.path is None


def test_files_and_schema_agree_on_the_defaults() -> None:
    composed, schema = compose([]), Config()
    composed.conditions = {}
    composed.cluster = schema.cluster
    schema.ppo.best_metric, schema.ppo.best_mode = best_by(schema.ppo)  # as compose writes out
    assert composed == dataclasses.replace(schema, output_dir="outputs/custom")


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_composes_and_names_itself(name: str) -> None:
    config = compose([f"+experiment={name}"])
    assert config.experiment == name
    assert config.output_dir == f"outputs/{name}"


def test_experiment_may_be_named_without_the_plus() -> None:
    assert compose(["experiment=demo"]) == compose(["+experiment=demo"])


def test_user_lists_replace_the_experiments() -> None:
    config = compose(["+experiment=7b_ppo", "data.preferences=[a.jsonl,b.parquet]"])
    assert config.data.preferences == ["a.jsonl", "b.parquet"]


def test_public_texts_are_a_slice_of_about_what_three_rounds_take() -> None:
    config = compose(["+experiment=7b_ppo"])
    (part,) = resolve(config.data.pretrain[0], "data.pretrain")
    assert isinstance(part, HubName)
    assert (part.name, part.configuration) == ("HuggingFaceFW/fineweb-edu", "sample-10BT")
    texts = int(part.split.removeprefix("train[:").removesuffix("]"))
    queries = config.online.rounds * config.ppo.iterations * config.ppo.prompts_per_iteration
    assert math.isclose(texts * 1000, queries * 700 * config.ppo.pretrain_ratio, rel_tol=0.1)  # tokens


def test_home_is_written_out_wherever_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    paths = ("output_dir", "model.path", "model.tokenizer", "sft.path", "reward.path", "ppo.critic_init")
    lists = [name for name, value in vars(compose([]).data).items() if isinstance(value, list)]
    maps = {"domains": {"~/sft/*.jsonl": "math"}, "weights": {"~/preferences/*.jsonl": 2.0}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.yaml").write_text(json.dumps(maps))
    own = [*(f"{key}='~/{key}'" for key in paths), *(f"data.{name}=['~/{name}/*.jsonl',owner/name]" for name in lists)]
    config = compose(["experiment=demo", "data=mine", *own], tmp_path)
    for key in paths:
        section, _, name = key.rpartition(".")
        assert getattr(getattr(config, section) if section else config, name) == f"/users/me/{key}"
    for name in lists:
        assert getattr(config.data, name) == [f"/users/me/{name}/*.jsonl", "owner/name"]
    assert config.data.domains == {"/users/me/sft/*.jsonl": "math"}
    assert config.data.weights == {"/users/me/preferences/*.jsonl": 2.0}


def test_rows_without_a_domain_are_judged_without_a_prompt() -> None:
    for name in experiments():
        assert compose([f"+experiment={name}"]).conditions["default"] == ""


def test_conditions_can_be_changed_and_added() -> None:
    config = compose(["+experiment=demo", "conditions.brief=Short.", "conditions.mine=Mine."])
    assert (config.conditions["brief"], config.conditions["mine"]) == ("Short.", "Mine.")


def test_every_preference_domain_has_a_prompt_of_its_own() -> None:
    prompts = compose([]).conditions
    report = {"dialogue", "writing", "poetry", "summarization", "code", "math", "format", "helpful", "harmless"}
    assert set(prompts) == report | {"honest", "safety", "default"}
    assert prompts.pop("default") == ""
    assert len(set(prompts.values())) == len(prompts)
    assert all(prompt.strip() for prompt in prompts.values())


def test_users_folder_adds_to_the_groups(tmp_path: Path) -> None:
    for group in ("conditions", "experiment"):
        (tmp_path / group).mkdir()
    (tmp_path / "conditions" / "mine.yaml").write_text('default: ""\nlaw: Judge it as a lawyer.\n', encoding="utf-8")
    (tmp_path / "experiment" / "law.yaml").write_text(
        "# @package _global_\ndefaults:\n  - demo\n  - override /conditions: mine\nexperiment: law\nppo: {clip: 0.1}\n",
        encoding="utf-8",
    )
    config = compose(["+experiment=law"], tmp_path)
    assert set(config.conditions) == {"default", "law"}
    assert (config.ppo.clip, config.ppo.critic_warmup) == (0.1, compose(["+experiment=demo"]).ppo.critic_warmup)
    assert "law" in experiments(tmp_path)
    assert "law" not in experiments()


BAD_VALUES = {
    "ppo.clip=nan": "ppo.clip",
    "ppo.trace_decay=1.01": "ppo.trace_decay",
    "ppo.discount=-0.1": "ppo.discount",
    "ppo.minibatches=100000": "ppo.minibatches",
    "ppo.kl_estimator=k4": "k1, k2, k3",
    "ppo.learning_rate_schedule=step": "constant, cosine, linear",
    "ppo.entropy_schedule=step": "constant, cosine, linear",
    "ppo.learning_rate_warmup=1.1": "ppo.learning_rate_warmup",
    "ppo.final_learning_rate=-1": "ppo.final_learning_rate",
    "ppo.clip_high=0": "ppo.clip_high",
    "ppo.dual_clip=0.5": "ppo.dual_clip",
    "ppo.value_clip=-0.1": "ppo.value_clip",
    "ppo.entropy_coefficient=nan": "ppo.entropy_coefficient",
    "ppo.stop_kl=-1": "ppo.stop_kl",
    "ppo.critic_trace_decay=2": "ppo.critic_trace_decay",
    "ppo.critic_init=''": "ppo.critic_init",
    "ppo.kl_in=penalty": "reward, loss",
    "ppo.kl_in=loss": "expected gradient of zero",
    "ppo.kl_gradient=k1": "k2, k3",
    "ppo.kl_target=-1": "ppo.kl_target",
    "ppo.kl_horizon=0": "ppo.kl_horizon",
    "ppo.reward_clip=-1": "ppo.reward_clip",
    "ppo.engine_correction=-2": "ppo.engine_correction",
    "ppo.old_logprobs=vllm": "trainer, engine",
    "ppo.policy_learning_rate=0": "ppo.policy_learning_rate",
    "reward.batch_tokens=0": "reward.batch_tokens",
    "reward.final_learning_rate=1": "reward.learning_rate",
    "reward.gamma=-1": "reward.gamma",
    "sft.warmup_fraction=2": "sft.warmup_fraction",
    "sft.max_length=100000": "model.max_positions",
    "model.dtype=float16": "bfloat16, float32",
    "model.heads=3": "model.hidden_size",
    "model.heads=128": "even",
    "seed=1.5": "whole number",
    "seed=null": "null",
    "seed=1,2": "several",
    "data.sft=one.jsonl": "data.sft=[",
    "data.sft=['']": "data.sft",
    "collect.labeller=nonsense": "module:function",
    "cluster.cpus=1.5": "cluster.cpus",  # Ray has whole ones alone
    "cluster.policy.ranks=0": "cluster.policy.ranks",
    "cluster.policy.zero_stage=4": "0, 1, 2, 3",
    "cluster.policy.gpus=2": "ranks",
    "cluster.reference.zero_stage=3": "cluster.reference.zero_stage is 3",
    "cluster.scorer.zero_stage=1": "cluster.scorer.zero_stage is 1",
    "cluster.rollout.gpu_memory_utilization=0": "cluster.rollout.gpu_memory_utilization",
    "cluster.rollout.cache_gib=0": "cluster.rollout.cache_gib",
    "logging.wandb_mode=of": "offline",
    "evaluate.samples_per_prompt=-1": "evaluate.samples_per_prompt",
    "evaluate.best_of=-1": "evaluate.best_of",
    "online.rounds=0": "online.rounds",
    "online.prompts=-1": "online.prompts",
    "online.pairs=-1": "online.pairs",
    "online.patches=19": "online.patches",
    "online.replay=-1": "online.replay",
    "online.learning_rate=0": "online.learning_rate",
    "online.least_mended=2": "online.least_mended",
    "online.most_lost=-0.1": "online.most_lost",
    "online.labeller=robot": "people, rule, judge",
    "online.labeller=judge": "annotate.judge.model",
    "annotate.overlap=0": "annotate.overlap is 0: it must be 1 or more",
    "annotate.judge.requests=0": "annotate.judge.requests",
    "annotate.judge.temperature=-1": "annotate.judge.temperature",
    "online.policy_from=first": "clean, last, sft",
    "online.cheating=0": "online.cheating",
    "online.significance=1": "online.significance",
    "online.least_gain=20": "online.least_gain",
    "data.test_prompts=['']": "data.test_prompts",
    "output_dir=''": "output_dir",
    "ppo.rewards.brief.rules={m\\:f:1}": "one map",
    "ppo.rewards={breif:{rules:{m\\:f:1}}}": "is brief meant?",
    "ppo.rewards={brief:{conditions:{mth:1}}}": "is math meant?",
    "ppo.rewards={brief:{rules:{f:1}}}": "module:function",
    "ppo.rewards={brief:{rules:{m\\:f:nan}}}": "finite",
    "ppo.rewards={brief:{}}": "rewards nothing",
    "ppo.rewards={brief:{conditions:{math:0.0}}}": "rewards nothing",
    "ppo.rewards={brief:{rule:{m\\:f:1}}}": "rule",
    "ppo.best_metric=reward/score": "validation",
    "ppo.best_metric=validation/score/breif": "validation/score/brief",
    "ppo.best_metric=validation/instructions": "validation/",
    "ppo.best_mode=least": "max, min",
    "ppo.engine_correction=0.5": "1 or more",
    "ppo.validation_conditions=[mth]": "is math meant?",
    "ppo.validation_prompts=0": "ppo.validation_prompts",
    "data.domain_weights.mth=2": "is math meant?",
    "collect.judged_as.brief=[thorogh]": "is thorough meant?",
    "collect.judged_as.breif=[thorough]": "is brief meant?",
    "collect.judged_as.brief=[]": "gives brief no domain",
    "collect.least_gap=-1": "collect.least_gap",
    "data.domain_weights.math=-1": "data.domain_weights",
    "data.domain_weights.overall=1": "give it another name",
    "conditions.overall=Be good.": "give it another name",
    "ppo.validation_conditions=[overall]": "give it another name",
    "sampling.system_prompt=''": "sampling.system_prompt",
    "sampling.stop=[x,'']": "sampling.stop holds an empty text",
    "sampling.system_prompt='a<|im_end|>'": "<|im_end|>",
    "learning_rate=1": "learning_rate",
    "hydra.run.dir=x": "output_dir",
    "reward.bound=0.1": "reward.bound",
    "reward.lora.targets=[wqkv,nope]": "reward.lora.targets names 'nope'",
    "data.bad_rows=ignore": "refuse, drop, drop_hub",
    "data.weights={a.jsonl: 2.0}": "data.preferences",
    "data.validation_preferences=['']": "data.validation_preferences",
    "reward.too_long=shorten": "cut, drop",
    "reward.condition_dropout=1.5": "reward.condition_dropout",
    "reward.validation_share=1": "reward.validation_share",
    "conditions.brief='Be brief<|im_end|>'": "<|im_end|>",
    "model=3": "fresh",
    "model.path=${nowhere}": "nowhere",
}


@pytest.mark.parametrize(
    "text",
    [
        "Judge it, as a lawyer would.",
        "Judge it as the court's lawyer: is it (by any law) sound?",
        'Ask: "Would it stand in court, today?" \\',
        "[Law, equity]",
        "作为律师，评价这个回答。",
    ],
)
def test_prose_needs_no_quotes_of_its_own(text: str) -> None:
    config = compose(
        ["+experiment=demo", f"conditions.law={text}", "+conditions.tax='A, b'", f"sampling.system_prompt={text}"]
    )
    assert (config.conditions["law"], config.conditions["tax"], config.sampling.system_prompt) == (text, "A, b", text)
    assert compose(["+experiment=demo", "sampling.system_prompt=null"]).sampling.system_prompt is None


def test_domains_of_sources_name_conditions_and_sources_that_are_there() -> None:
    source = ["+experiment=demo", "data.preferences=[a/b:train]"]
    with pytest.raises(UserError, match=r"data\.domains gives a/b:train the domain 'breif'.*is brief meant"):
        compose([*source, r"data.domains={a/b\:train: breif}"])
    with pytest.raises(UserError, match=r"data\.domains names a/b:test, .*write it as there, a/b:train"):
        compose([*source, r"data.domains={a/b\:test: brief}"])
    with pytest.raises(UserError, match=r"data\.domains gives a/b the domain 'breif'.*is brief meant"):
        compose([*source, "data.domains={a/b: breif}"])
    assert compose([*source, "data.domains={other/set: law}"]), "an experiment's own list was replaced"


def test_recipes_of_rewards() -> None:
    rewards = "ppo.rewards={brief:{conditions:{brief:0.7,thorough:0.3},rules:{my.module\\:function:1.0}}}"
    recipe = compose(["+experiment=demo", rewards, "ppo.best_metric=validation/rule/brief"]).ppo.rewards["brief"]
    assert (recipe.conditions, recipe.rules) == ({"brief": 0.7, "thorough": 0.3}, {"my.module:function": 1.0})


def test_an_unfinished_response_pays_the_whole_range_of_scores_at_most_unless_rules_pay() -> None:
    def refused(penalty: float, recipe: str = "conditions:{brief:1}") -> bool:
        try:
            compose(["+experiment=demo", f"ppo.unfinished_penalty={penalty}", f"ppo.rewards={{brief:{{{recipe}}}}}"])
        except UserError as error:
            return "ppo.unfinished_penalty" in str(error)
        return False

    assert refused(10.1)
    assert not refused(10.0)
    assert refused(20.1, "conditions:{brief:1,thorough:-1}")
    assert not refused(20.0, "conditions:{brief:1,thorough:-1}")
    assert not refused(99.0, "rules:{my.module\\:function:1}")


@pytest.mark.parametrize("override", BAD_VALUES)
def test_bad_value_is_refused_with_its_key(override: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["+experiment=demo", override])
    assert BAD_VALUES[override] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_score_and_gold_cannot_part_where_gold_is_not_known() -> None:
    assert compose(["+experiment=demo", "ppo.stop_when_parted=true"]).ppo.stop_when_parted
    with pytest.raises(UserError, match=r"ppo\.stop_when_parted .* ppo\.rewards"):
        compose(["+experiment=demo", "ppo.stop_when_parted=true", "data.prompts=[own.jsonl]"])
    ruled = "ppo.rewards={math:{conditions:{math:1.0},rules:{cool_rlhf.rules.maths\\:exact_answer:0.0}}}"
    own = compose(["+experiment=demo", "ppo.stop_when_parted=true", "data.prompts=[own.jsonl]", ruled])
    assert [name for name in validation_metrics(own) if "gold" in name] == ["validation/gold", "validation/gold/math"]


def test_a_round_that_ends_where_they_part_keeps_the_best_by_gold() -> None:
    stopping = ["+experiment=demo", "ppo.stop_when_parted=true"]
    assert compose(stopping).ppo.best_metric == "validation/gold"
    assert compose(stopping[:1]).ppo.best_metric == "validation/score"
    assert compose([*stopping, "ppo.best_metric=validation/gold"]).ppo.best_mode == "max"
    for other in ("ppo.best_metric=validation/kl", "ppo.best_metric=validation/score", "ppo.best_mode=min"):
        with pytest.raises(UserError, match=r"ppo\.best_metric is .*validation/gold"):
            compose([*stopping, other])


@pytest.mark.parametrize(
    ("metric", "mode"),
    [(None, "max"), ("validation/gold", "max"), ("validation/kl", "min"), ("validation/lm_loss", "min")],
)
def test_what_tells_a_loss_is_best_where_it_is_least(metric: str | None, mode: str) -> None:
    named = ["+experiment=demo", *([f"ppo.best_metric={metric}"] if metric else [])]
    for ppo in (compose(named).ppo, compose_tree(named).ppo):  # the tree is what --cfg job prints
        assert (ppo.best_metric, ppo.best_mode) == (metric or "validation/score", mode)
    for explicit in ("max", "min"):
        assert compose([*named, f"ppo.best_mode={explicit}"]).ppo.best_mode == explicit


def test_too_few_validations_show_no_parting() -> None:
    short = ["+experiment=demo", "ppo.stop_when_parted=true", "ppo.iterations=20", "ppo.validate_every=10"]
    with pytest.raises(UserError, match=r"ppo\.iterations=20 with ppo\.validate_every=10 gives 3: validate more often"):
        compose(short)
    assert compose([*short, "ppo.validate_every=8"])
    assert compose([short[0], *short[2:]]), "the warning alone may be out of reach"


@pytest.mark.parametrize("source", ["a.jsonl", "/data/pairs-*.jsonl", "owner/name", "owner/name@all"])
def test_weights_go_by_the_names_of_the_sources(source: str) -> None:
    named = f"data.preferences=['{source}']"
    assert compose([named, f"data.weights={{{source}: 2}}"]).data.weights == {source: 2.0}
    for weight in (-1, "nan"):
        with pytest.raises(UserError, match=r"data\.weights gives"):
            compose([named, f"data.weights={{{source}: {weight}}}"])
    with pytest.raises(UserError, match="is other/name meant"):
        compose(["data.preferences=[other/name]", "data.weights={othr/name: 2}"])


def test_named_pairs_take_the_place_of_a_share() -> None:
    assert validation_share(compose(["reward.validation_share=0.1"])) == 0.1
    assert validation_share(compose(["data.validation_preferences=[a.jsonl]", "reward.validation_share=0.1"])) == 0.0


def test_world_that_is_not_there_has_no_sizes() -> None:
    with pytest.raises(UserError, match="data=world"):
        compose(["data.world.sft=3"])


def test_known_keys_are_those_of_the_schema() -> None:
    keys = set(known_keys())
    assert {"data.world.label_noise", "cluster.rollout.engines", "ppo", "seed"} <= keys
    assert "conditions.default" not in keys


TOGETHER = {
    ("ppo.kl_target=6", "ppo.kl_coefficient=0"): "start it above 0",
    ("ppo.kl_target=6", "ppo.prompts_per_iteration=64", "ppo.kl_horizon=63"): "ppo.kl_horizon is 63 responses",
    ("ppo.old_logprobs=engine", "ppo.engine_correction=2"): "ppo.old_logprobs=engine",
    ("ppo.old_logprobs=engine", "sampling.temperature=0.7"): "sampling.temperature",
    ("ppo.old_logprobs=engine", "ppo.stop_kl=0.1"): "ppo.stop_kl is 0.1 with ppo.old_logprobs=engine",
    ("ppo.engine_correction=2", "sampling.temperature=0.7"): "sampling.temperature",
    ("ppo.keep_passes=true", "ppo.minibatches=2"): "ppo.minibatches is 2",
    ("ppo.keep_passes=true", "cluster.policy.zero_stage=3"): "cluster.policy.zero_stage is 3",
    ("ppo.keep_passes=true", "cluster.critic.zero_stage=3"): "cluster.critic.zero_stage is 3",
}


@pytest.mark.parametrize("overrides", TOGETHER)
def test_values_that_do_not_go_together_are_refused_in_a_sentence(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        compose(["+experiment=demo", *overrides])
    assert TOGETHER[overrides] in str(caught.value)
    for override in overrides:
        compose(["+experiment=demo", override])


def test_sampling_ahead_takes_a_correction() -> None:
    with pytest.raises(UserError, match="generate_ahead"):
        compose(["+experiment=demo", "ppo.generate_ahead=true"])
    for correction in ("ppo.old_logprobs=engine", "ppo.engine_correction=2"):
        assert compose(["+experiment=demo", "ppo.generate_ahead=true", correction]).ppo.generate_ahead


def test_k2_and_k3_may_stand_in_the_loss() -> None:
    for kind in ("k2", "k3"):
        assert compose(["+experiment=demo", "ppo.kl_in=loss", f"ppo.kl_estimator={kind}"]).ppo.kl_in == "loss"


WITHOUT_EFFECT: dict[tuple[str, ...], list[str]] = {
    (): [],
    ("ppo.stop_kl=0.1", "ppo.value_clip=0.2"): ["ppo.stop_kl=0.1", "ppo.value_clip=0.2"],
    ("ppo.stop_kl=0.1", "ppo.value_clip=0.2", "ppo.epochs=2"): [],
    ("ppo.dual_clip=3", "ppo.minibatches=2"): [],
    ("ppo.dual_clip=3",): ["ppo.dual_clip=3.0"],
    ("ppo.dual_clip=3", "ppo.old_logprobs=engine"): [],
    ("ppo.kl_gradient=k3",): ["ppo.kl_gradient=k3"],
    ("ppo.kl_gradient=k3", "ppo.kl_in=loss", "ppo.kl_estimator=k3"): [],
}


@pytest.mark.parametrize("overrides", WITHOUT_EFFECT)
def test_what_a_ppo_of_single_steps_cannot_feel_is_told(overrides: tuple[str, ...]) -> None:
    told = without_effect(compose(["+experiment=demo", *overrides]).ppo)
    assert [sentence.partition(" ")[0] for sentence in told] == WITHOUT_EFFECT[overrides]


def test_domains_without_a_condition_are_not_labelled_under() -> None:
    """The demo names brief and thorough for both; the user may have taken one of them out."""
    assert judged_as(compose(["+experiment=demo"]))["thorough"] == ["brief", "thorough"]
    assert judged_as(compose(["+experiment=demo", "~conditions.brief"]))["thorough"] == ["thorough"]
    assert judged_as(compose(["+experiment=demo", "conditions=default"])) == {}
