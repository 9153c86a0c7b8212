import json

import pytest

from cool_rlhf.protocols import UserError
from reward.conditions import Conditions, UnknownConditionError

CONDITIONS = Conditions({"helpful": "Prefer what helps.", "harmless": "Prefer what harms nobody.", "plain": ""})


def test_prompts():
    assert CONDITIONS.prompt("helpful") == "Prefer what helps."
    assert CONDITIONS.prompt(None) is None
    assert CONDITIONS.prompt("plain") is None


def test_the_default_domain_needs_no_entry_but_may_have_one():
    assert CONDITIONS.prompt("default") is None
    assert Conditions({"default": "Be good."}).prompt("default") == "Be good."


def test_a_mistyped_condition_names_the_nearest():
    with pytest.raises(UnknownConditionError, match="did you mean 'harmless'"):
        CONDITIONS.prompt("harmles")


def test_a_foreign_condition_names_all_and_is_the_users_mistake():
    with pytest.raises(UserError, match="harmless, helpful, plain"):
        CONDITIONS.prompt("zzz")
    with pytest.raises(ValueError, match="known are: none"):
        Conditions({}).prompt("helpful")


def test_a_flat_map_is_read(tmp_path):
    (tmp_path / "conditions.json").write_text(json.dumps(dict(CONDITIONS.prompts)), encoding="utf-8")
    assert Conditions.load(tmp_path / "conditions.json") == CONDITIONS


@pytest.mark.parametrize("text", [b'{"a": ', b'["a"]', b'{"a": {"prompt": "b"}}', b'{"a": "\xff"}'])
def test_a_file_that_is_no_flat_map_is_named(tmp_path, text):
    file = tmp_path / "conditions.json"
    file.write_bytes(text)
    with pytest.raises(UserError, match=r"conditions\.json"):
        Conditions.load(file)
