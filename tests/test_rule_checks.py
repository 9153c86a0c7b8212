from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

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
        return compose(["+experiment=demo", f"data.prompts=[{file}]", "collect.prompts=0", *overrides])

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
        (["ppo.rewards={math:{rules:{cool_rlhf.rules.maths\\:exact_answer:1}}}"], "add that field"),
        (["data.domain_weights={brief:0,math:0}"], "data.domain_weights leaves no prompt"),
        (["collect.prompts=5", "collect.labeller=rules_of_mine:bad"], "collect.labeller: rules_of_mine:bad"),
    ],
)
def test_what_cannot_work_is_said_before_anything_begins(config, overrides, told):
    with pytest.raises(UserError) as raised:
        check_rules(config(*overrides))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


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
