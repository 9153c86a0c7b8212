from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from cool_rlhf import rule_checks
from cool_rlhf.compose import compose
from cool_rlhf.config import Config
from cool_rlhf.online import detectors
from cool_rlhf.protocols import UserError
from cool_rlhf.rule_checks import check_rules

MODULE = """
def good(messages, response, domain, answer, finished):
    return 1.0 if response == answer else 0.0
def nan(messages, response, domain, answer, finished):
    return float("nan")
def wordy(messages, response, domain, answer, finished):
    return len(response.split()[0])
def whole(messages, response, domain, answer, finished):
    return 1.0 if finished else None
def narrow(response):
    return 1.0
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the config of a run on three prompts of the user's own, whose current folder holds a module of rules."""
    (tmp_path / "rules_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    rows = [
        {"prompt": "1 + 1?", "domain": "math", "answer": 2},
        {"prompt": "1 + 2?", "domain": "math"},
        {"prompt": "Hello", "domain": "brief"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(*overrides: str) -> Config:
        quiet = ["collect.prompts=0", "online.labeller=people"]
        return compose(["+experiment=demo", f"data.prompts=[{file}]", *quiet, *overrides])

    return make


def test_good_rules_pass(config):
    check_rules(config("ppo.rewards={math:{rules:{rules_of_mine\\:good:1}}}", "data.domain_weights.brief=0"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["ppo.rewards={math:{rules:{rules_of_yours\\:good:1}}}"], "ppo.rewards.math.rules: rules_of_yours:good"),
        (
            ["ppo.rewards={math:{rules:{rules_of_mine\\:narrow:1}}}"],
            "rule(messages, response, domain, answer, finished)",
        ),
        (["ppo.rewards={math:{rules:{rules_of_mine\\:nan:1}}}"], "gave nan"),
        (["ppo.rewards={math:{rules:{rules_of_mine\\:whole:1}}}"], "gave None for an unfinished response"),
        (["ppo.rewards={math:{rules:{cool_rlhf.rules.maths\\:exact_answer:1}}}"], "add that field"),
        (["data.domain_weights={brief:0,math:0}"], "data.domain_weights leaves no prompt"),
        (["collect.prompts=5", "collect.labeller=rules_of_mine:bad"], "collect.labeller: rules_of_mine:bad"),
        (["collect.prompts=5"], "collect.labeller: the rule cool_rlhf.demo.gold:score refuses a response to '"),
        (["collect.prompts=5", "collect.labeller=rules_of_mine:nan", "stage=reward"], "gave nan"),
        (
            ["ppo.rewards={brief:{rules:{rules_of_mine\\:wordy:1}}}"],
            "on a response to 'Hello' of domain 'brief'",
        ),
        (["ppo.best_metric=validation/score/format"], "ppo.best_metric is 'validation/score/format'"),
        (
            ["ppo.rewards={format:{rules:{rules_of_mine\\:good:1}}}"],
            "ppo.rewards.format: no prompt is of domain 'format', only of brief, math: name one",
        ),
        (["data.domain_weights={format:2}"], "data.domain_weights.format: no prompt is of domain 'format'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_begins(config, overrides, told):
    with pytest.raises(UserError) as raised:
        check_rules(config(*overrides))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


RULED = "ppo.rewards={math:{rules:{cool_rlhf.rules.maths\\:exact_answer:1}}}"


@pytest.mark.parametrize("key", ["prompts", "validation_prompts", "test_prompts"])
def test_rules_are_tried_on_every_prompt(config, tmp_path, key):
    def write(name: str, *rows: dict) -> str:
        (tmp_path / name).write_text("".join(json.dumps({"domain": "math", **row}) + "\n" for row in rows))
        return str(tmp_path / name)

    good = [{"prompt": f"1 + {number}?", "answer": number + 1} for number in range(30)]
    files = {
        "prompts": write("asked.jsonl", *good),
        "validation_prompts": write("held.jsonl", {"prompt": "3 + 0?", "answer": 3}),
        "test_prompts": write("tested.jsonl", {"prompt": "5 + 0?", "answer": 5}),
    }

    def check(*more: str) -> None:
        check_rules(config(*(f"data.{name}=[{file}]" for name, file in files.items()), RULED, *more))

    check()
    check("stage=evaluate")
    files[key] = write("bad.jsonl", *good, {"prompt": "7 + 7?"})
    told = r"ppo\.rewards\.math\.rules: the rule .*:exact_answer refuses a response to '7 \+ 7\?' .* add that field"
    with pytest.raises(UserError, match=told):
        check()
    if key == "test_prompts":
        with pytest.raises(UserError, match=told):
            check("stage=evaluate")
        check("stage=evaluate", "evaluate.samples_per_prompt=0")
        check("stage=reward")


def test_a_slow_rule_is_tried_on_the_first_of_each_domain(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(rule_checks, "TRIED_SECONDS", 0.0)
    domains = ["math"] * 20 + ["brief"] * 20
    rows = [{"prompt": f"{number}?", "domain": domain, "answer": 1} for number, domain in enumerate(domains)]
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "no answer", "domain": "math"}]))
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"prompt": "held", "domain": "math", "answer": 1}) + "\n")
    named = [f"data.prompts=[{file}]", f"data.validation_prompts=[{held}]"]
    check_rules(config(*named, RULED))
    assert "exact_answer: so slow that it was not tried on 14 of 22 prompts" in caplog.text
    with pytest.raises(UserError, match="of domain 'brief'"):
        check_rules(config(*named, "ppo.rewards={brief:{rules:{rules_of_mine\\:nan:1}}}"))


def test_a_rule_that_labels_in_the_place_of_people_is_tried(config, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"prompt": "Hello?", "domain": "brief"}) + "\n")
    named = ["online.labeller=rule", f"data.validation_prompts=[{held}]"]
    with pytest.raises(UserError, match=r"annotate\.rule: the rule cool_rlhf\.demo\.gold:score refuses .* 'Hello\?'"):
        check_rules(config(*named))
    check_rules(config(*named, "annotate.rule=cool_rlhf.rules.formats:json_object"))
    for unasked in ("stage=ppo", "online.pairs=0", "online.prompts=0"):
        check_rules(config(*named, unasked))


def test_a_rule_that_labels_is_tried_under_the_conditions_that_pay(tmp_path):
    """The world's rule judges the world's answers under their own conditions, and some of them under no other."""
    made = ["+experiment=demo", f"output_dir={tmp_path}", "collect.prompts=0", "online.prompts=20"]
    crossed = "ppo.rewards={math:{conditions:{math:1,brief:0.5}}}"
    check_rules(compose([*made, crossed]))
    for under in ("ppo.rewards={math:{conditions:{brief:1}}}", crossed):
        reviewed = ["online.review=true"] if under == crossed else []
        with pytest.raises(UserError, match=r"annotate\.rule: the rule cool_rlhf\.demo\.gold:score refuses"):
            check_rules(compose([*made, under, *reviewed]))


def test_the_best_metric_may_be_one_of_a_domain_that_is_validated_on(config, tmp_path):
    held = tmp_path / "held.jsonl"
    rows = [{"prompt": "1 + 5?", "domain": "math", "answer": 6}, {"prompt": "Hi", "domain": "brief"}]
    held.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = f"data.validation_prompts=[{held}]"
    check_rules(config(named, "ppo.best_metric=validation/score/math"))
    check_rules(config(named, "ppo.best_metric=validation/gold", "ppo.rewards={math:{rules:{rules_of_mine\\:good:1}}}"))
    with pytest.raises(UserError, match=r"read.* are of (math|brief); use one of validation/score, "):
        check_rules(config(named, "ppo.best_metric=validation/score/format", "ppo.validation_prompts=1"))


def test_a_best_metric_that_only_training_prompts_would_give_is_refused(config, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"prompt": "Hi", "domain": "brief"}) + "\n")
    ruled = "ppo.rewards={math:{rules:{rules_of_mine\\:good:1}}}"
    with pytest.raises(UserError, match="use one of"):
        check_rules(config(f"data.validation_prompts=[{held}]", ruled, "ppo.best_metric=validation/gold"))


def test_a_recipe_may_be_for_test_prompts_alone(config, tmp_path):
    recipe = "ppo.rewards={format:{rules:{rules_of_mine\\:good:1}}}"
    tested = tmp_path / "tested.jsonl"
    tested.write_text(json.dumps({"prompt": "{}?", "domain": "format", "answer": "{}"}) + "\n")
    check_rules(config(recipe, f"data.test_prompts=[{tested}]"))
    check_rules(config(recipe, "stage=reward"))
    with pytest.raises(UserError, match=r"data\.domain_weights\.format: no prompt"):
        check_rules(config(recipe, f"data.test_prompts=[{tested}]", "data.domain_weights={format:2}"))


def test_the_weight_of_a_source_that_was_replaced_stays(config):
    check_rules(config("data.domains={trl-lib/tldr: format}", "data.domain_weights={format:2}"))


def test_the_embedded_world_has_prompts_of_its_domains(tmp_path):
    made = ["+experiment=smoke", f"output_dir={tmp_path}"]
    check_rules(compose([*made, "ppo.rewards={math:{conditions:{math:1}}}", "data.domain_weights={brief:2}"]))
    with pytest.raises(UserError, match=r"ppo\.rewards\.default: no prompt"):
        check_rules(compose([*made, "ppo.rewards={default:{conditions:{math:1}}}"]))


def test_the_loss_on_held_out_texts_needs_some(config, tmp_path):
    by_loss = ("ppo.best_metric=validation/lm_loss", "ppo.best_mode=min")
    few = tmp_path / "texts.jsonl"  # a twentieth of them is none
    few.write_text("".join(json.dumps({"text": f"Text {number}."}) + "\n" for number in range(19)))
    with pytest.raises(UserError, match=r"no pretraining texts are held out: name some in data\.validation_pretrain"):
        check_rules(config(*by_loss, f"data.pretrain=[{few}]"))
    check_rules(config(*by_loss))


def test_other_stages_do_not_ask_for_rules(config):
    check_rules(config("ppo.rewards={math:{rules:{rules_of_yours\\:good:1}}}", "stage=sft"))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("builtins:dict", "'mine'.*no `name`"),
        (f"{detectors.__name__}:LengthDetector", "two detectors are called 'length'"),
    ],
)
def test_detectors_of_packages_are_looked_at_where_they_will_be_asked(config, monkeypatch, place, told):
    point = EntryPoint("mine", place, detectors.ENTRY_POINTS)
    monkeypatch.setattr(detectors, "entry_points", lambda group: [point])
    with pytest.raises(UserError, match=told):
        check_rules(config())
    for unasked in ("online.fast_path=false", "online.prompts=0", "stage=sft"):
        check_rules(config(unasked))


def test_a_given_reward_model_has_to_know_the_conditions(config, tmp_path):
    (tmp_path / "conditions.json").write_text(json.dumps({"math": "Do the sum right."}))
    given = f"reward.path={tmp_path}"
    check_rules(config(given, "ppo.rewards={brief:{conditions:{math:1}}}"))
    for override in ("ppo.rewards={math:{conditions:{brief:1}}}", "ppo.validation_conditions=[brief]"):
        with pytest.raises(UserError, match="no condition is called 'brief'"):
            check_rules(config(given, override))


def test_a_given_reward_model_has_to_know_the_prompts_domains(config, tmp_path):
    (tmp_path / "conditions.json").write_text(json.dumps({"math": "Do the sum right."}))
    with pytest.raises(UserError, match=r"domain 'brief'.*ppo\.rewards\.brief\.conditions"):
        check_rules(config(f"reward.path={tmp_path}"))
    check_rules(config(f"reward.path={tmp_path}", "ppo.rewards={brief:{conditions:{default:1}}}"))
