"""Composition, and the report's settings."""

from __future__ import annotations

import dataclasses
import json
import math
from operator import attrgetter
from pathlib import Path

import pytest

from cool_rlhf.checks.schema import known_keys
from cool_rlhf.compose import compose, compose_tree, experiments
from cool_rlhf.config import Config
from cool_rlhf.data.loading import Reading
from cool_rlhf.data.sources import HubName, resolve
from cool_rlhf.derived_settings import best_by, judged_as, validation_share
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


@pytest.mark.parametrize(
    "name",
    ["a[b]", "größe", "日本", "a,b", "x=y", "it's", "a b", "{x}", "(x)", "#h", "~x", "back\\slash", "tail\\", "$x"],
)
def test_users_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 77\n")
    assert compose(["+experiment=mine"], folder).seed == 77


def test_users_folder_adds_to_the_groups(tmp_path: Path) -> None:
    for group in ("conditions", "experiment"):
        (tmp_path / group).mkdir()
    (tmp_path / "conditions" / "mine.yaml").write_text('default: ""\nlaw: Judge it as a lawyer.\n', encoding="utf-8")
    (tmp_path / "experiment" / "law.yaml").write_text(
        "# @package _global_\ndefaults:\n  - demo\n  - override /conditions: mine\n  - _self_\nppo: {clip: 0.1}\n",
        encoding="utf-8",
    )
    config = compose(["+experiment=law"], tmp_path)
    assert (config.experiment, config.output_dir) == ("law", "outputs/law")
    assert set(config.conditions) == {"default", "law"}
    assert (config.ppo.clip, config.ppo.critic_warmup) == (0.1, compose(["+experiment=demo"]).ppo.critic_warmup)
    assert "law" in experiments(tmp_path)
    assert "law" not in experiments()


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


@pytest.mark.parametrize(
    "path",
    [
        "/runs/run=1",
        "/runs/run(1)",
        "outputs/é",
        "/runs/a,b",
        "it's",
        "run[1]",
        "a b",
        "owner/name:train[:10]",
        "a{b,c}",
        "#",
    ],
)
def test_paths_need_no_quotes_of_their_own(path: str) -> None:
    config = compose(
        [
            f"output_dir={path}",
            f"model.path={path}",
            f"data.sft=[{path}]" if "," not in path else f"data.sft=['{path}']",
        ]
    )
    assert (config.output_dir, config.model.path, config.data.sft) == (path, path, [path])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[~x.jsonl,b.jsonl]", ["~x.jsonl", "b.jsonl"]),
        ("[ a=b , 'c,d' ]", ["a=b", "c,d"]),
        ('["a=b",x(1),]', ["a=b", "x(1)"]),
        ("[owner/name:train[:10],é.jsonl]", ["owner/name:train[:10]", "é.jsonl"]),
        ("[it's,that's,(a)]", ["it's", "that's", "(a)"]),
        ("[]", []),
    ],
)
def test_elements_of_lists_need_none_either(written: str, read: list[str]) -> None:
    assert compose([f"data.sft={written}", f"+data.prompts={written}"]).data.sft == read


def test_home_needs_no_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    config = compose(["model.path=~/m", "data.prompts=[~/x.jsonl,~/y.jsonl]"])
    assert (config.model.path, config.data.prompts) == ("/users/me/m", ["/users/me/x.jsonl", "/users/me/y.jsonl"])


def test_a_plus_that_is_not_needed_does_no_harm() -> None:
    config = compose(["+experiment=demo", "+ppo.clip=0.1", "++ppo.dual_clip=3", "+conditions=demo"])
    assert (config.ppo.clip, config.ppo.dual_clip) == (0.1, 3)


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


def test_named_pairs_take_the_place_of_a_share() -> None:
    assert validation_share(compose(["reward.validation_share=0.1"])) == 0.1
    assert validation_share(compose(["data.validation_preferences=[a.jsonl]", "reward.validation_share=0.1"])) == 0.0


def test_known_keys_are_those_of_the_schema() -> None:
    keys = set(known_keys())
    assert {"data.world.label_noise", "cluster.rollout.engines", "ppo", "seed"} <= keys
    assert "conditions.default" not in keys


def test_domains_without_a_condition_are_not_labelled_under() -> None:
    """The demo names brief and thorough for both; the user may have taken one of them out."""
    assert judged_as(compose(["+experiment=demo"]))["thorough"] == ["brief", "thorough"]
    assert judged_as(compose(["+experiment=demo", "~conditions.brief"]))["thorough"] == ["thorough"]
    assert judged_as(compose(["+experiment=demo", "conditions=default"])) == {}
