from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from cool_rlhf.data.loading import load_prompts
from cool_rlhf.protocols import UserError
from cool_rlhf.rules.formats import json_object
from cool_rlhf.rules.loading import NamedRule, load_rule
from cool_rlhf.rules.maths import exact_answer, last_number

ASKED = [{"role": "user", "content": "?"}]
NUMBERS = {
    "so it is 1,234,567.5 dollars.": "1234567.5",
    "48/2 = <<48/2=24>>24 in May, 72 in all\n#### 72": "72",
    "#### 10 apples, not 12": "12",
    r"First \boxed{3}, no, \boxed{\frac{1}{2}} of 7": "1/2",
    "-5 degrees": "-5",
    "−5 degrees": "-5",
    "10-6": "6",
    "it costs $18.00": "18",
    "a half: .5": "0.5",
    "3 / 4": "3/4",
    "2, 3 and 4": "4",
    "in 1,2,3": "3",
    "version2": "2",
    "from 3 to +7%": "7",
    "2 1/2": "5/2",
    "it is -12 1/2 degrees": "-25/2",
    "1,000 3 / 4": "4003/4",
    r"\boxed{2\frac{1}{2}}": "5/2",
    r"-\frac{1}{2}": "-1/2",
    r"\boxed{\frac{-1}{2}}": "-1/2",
    r"\boxed{-\dfrac{1}{2}}": "-1/2",
    r"x = \tfrac{ −3 }{4}": "-3/4",
    r"\frac{1}{-2}": "-1/2",
    r"-\frac{-1}{2}": "1/2",
    r"\frac{+1}{2}": "1/2",
    r"3-\frac{1}{2}": "1/2",
    r"-2\frac{1}{2}": "-5/2",
    r"- \frac{1}{2}": "1/2",  # a list's
    "1, 2": "2",
    "1, 1/2": "1/2",
    "1/2 3/4": "3/4",
    "2.5 1/2": "1/2",
    "3\n1/2": "1/2",
    "of 3 10/5": "2",
    r"\boxed{1{,}000}": "1000",
    r"so 12,\!345\,678": "12345678",
    "1e5": "100000",
    "-2.5E-3 m": "-1/400",
    "1e5x": "5",
    "2 e 3": "3",
}


@pytest.mark.parametrize("text", NUMBERS)
def test_the_number_that_a_text_arrives_at(text):
    assert last_number(text) == Fraction(NUMBERS[text])


@pytest.mark.parametrize("text", ["", "none", "####", "1/0", "#### none of the 3", "9" * 5000, "1e9999999", "2 1/0"])
def test_texts_without_a_result(text):
    if text == "#### none of the 3":
        assert last_number(text) == 3
        return
    assert last_number(text) is None


def test_exact_answers():
    def score(response: str, answer: str | None) -> float:
        return exact_answer(ASKED, response, "math", answer, True)

    assert score("The result is 18.", "He eats 3 … so 9 * 2 = <<9*2=18>>18\n#### 18") == 1.0
    assert score("18.0", "18") == score("36/2", "18") == score("$1,800", "1800") == 1.0
    assert score("19", "18") == score("", "18") == score("I do not know", "18") == 0.0
    assert score("0.3333", "1/3") == 0.0
    assert score("It is 1/2", "2 1/2") == score("2", "2 1/2") == 0.0
    assert score("2 1/2", "2.5") == score(r"\boxed{1{,}000}", "1000") == score("1e5", "100000") == 1.0
    with pytest.raises(UserError, match="`answer` with every prompt of domain 'math'"):
        score("18", None)
    with pytest.raises(UserError, match="holds no number"):
        score("18", "eighteen")


def test_the_ground_truth_of_verls_rows_is_compared_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    row = {"prompt": ASKED, "reward_model": {"style": "rule", "ground_truth": "72"}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "train.parquet")
    (prompt,) = load_prompts([str(tmp_path / "train.parquet")])
    assert prompt.messages == ASKED
    assert exact_answer(prompt.messages, "It is 72.", prompt.domain, prompt.answer, True) == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (' {"a": [1, {"b": null}]}\n', 1.0),
        ("{}", 1.0),
        ("[1]", 0.0),
        ("{'a': 1}", 0.0),
        ('{"a": 1,}', 0.0),
        ('{"a": NaN}', 0.0),
        ('{"a": 1, "a": 2}', 0.0),
        ('```json\n{"a": 1}\n```', 0.0),
        ('{"a": 1', 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json(text, value):
    assert json_object(ASKED, text, "format", None, True) == value


def test_a_rule_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_rules.py").write_text("def short(messages, response, domain, answer, finished):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_rule("my_rules:short", "ppo.rewards.a.rules")(ASKED, "x", "a", None, True) == 1.0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere:f", "No module named"),
        ("cool_rlhf.rules.maths:exact", "no attribute 'exact'"),
        ("cool_rlhf.rules.maths:MOST_DIGITS", "no function"),
        ("cool_rlhf.rules.maths:last_number", "messages, response, domain, answer, finished"),
        ("builtins:max", "no signature"),
        ("math:hypot", "messages, response, domain, answer, finished"),
        ("names_nothing:f", "NameError: name 'nothing' is not defined"),
        ("opens_nothing:f", "FileNotFoundError"),
    ],
)
def test_a_rule_that_is_not_there_is_named(name, told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "names_nothing.py").write_text("nothing\n")
    (tmp_path / "opens_nothing.py").write_text("open('nowhere.txt')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=told) as raised:
        load_rule(name, "ppo.rewards.a.rules")
    assert str(raised.value).startswith("ppo.rewards.a.rules: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1", np.float32("nan"), 1j, 10**400])
def test_a_value_that_is_no_finite_number_is_named_with_its_rule(value):
    rule = NamedRule(lambda *_: value, "m:odd", "ppo.rewards.chat.rules")
    with pytest.raises(UserError, match=r"ppo\.rewards\.chat\.rules: the rule m:odd gave .* for a response to '\?'"):
        rule(ASKED, "x", "chat", None, True)


@pytest.mark.parametrize(
    "value", [True, 2, np.bool_(True), np.int64(3), np.float32(0.5), np.float64(0.25), Fraction(1, 3)]
)
def test_any_finite_number_is_a_value(value):
    given = NamedRule(lambda *_: value, "m:rule", "key")(ASKED, "x", "chat", None, True)
    assert given == float(value)
    assert type(given) is float


def test_what_a_rule_adds_to_a_conversation_stays_its_own():
    def judge(messages, response, domain, answer, finished) -> float:
        messages.append({"role": "assistant", "content": response})
        messages[0]["content"] = "!"
        return 1.0

    asked = [{"role": "user", "content": "?"}]
    NamedRule(judge, "m:judge", "key")(asked, "x", "chat", None, True)
    assert asked == [{"role": "user", "content": "?"}]


def test_what_a_rule_raises_is_told_with_its_traceback_behind():
    def broken(messages, response, domain, answer, finished) -> float:
        raise ZeroDivisionError("by\nnothing")

    told = "key: the rule m:broken fails on an unfinished response .* with ZeroDivisionError: by nothing"
    with pytest.raises(UserError, match=told) as raised:
        NamedRule(broken, "m:broken", "key")(ASKED, "x", "chat", None, False)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
