"""docs/metrics.md names every metric that the code names. What a real run logs is looked at in tests/end_to_end."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cool_rlhf.compose import compose
from cool_rlhf.metric_names import validation_metrics
from cool_rlhf.online.overoptimisation import Parting
from cool_rlhf.stages.repair import Repair, Rise
from cool_rlhf.tracking.distance import trends

ROOT = Path(__file__).parents[1]
NAME = re.compile(
    r"(loss|accuracy|score|policy|critic|value|return|advantage|engine_gap|reward|gold|validation|overoptimisation|"
    r"repair|time)/[a-z_]+"
)


def literals() -> Iterator[tuple[str, str]]:
    """(name, file) of the code's constants that have the form of a metric's name."""
    for package in ("cool_rlhf", "reward", "rollout"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
                    yield node.value, file.name


def test_names_written_in_the_code(undocumented: Callable[..., list[str]]) -> None:
    names = dict(literals())
    assert {"loss/policy", "engine_gap/mean", "repair/kept", "validation/lm_loss"} <= names.keys()
    assert not undocumented(names)


def test_names_of_validation(undocumented: Callable[..., list[str]]) -> None:
    rewards = "ppo.rewards={math:{conditions:{math:1},rules:{cool_rlhf.rules.maths\\:exact_answer:1,a\\:b:1}}}"
    more = ("ppo.validation_conditions=[brief]", "ppo.validation_instructions=40", rewards)
    names = validation_metrics(compose(["+experiment=demo", *more]))
    assert "validation/rule/math/a:b" in names
    assert not undocumented(names)


def test_names_of_repairs_and_trends(undocumented: Callable[..., list[str]]) -> None:
    repair = Repair(1, {"a/b": 1}, {}, 0.5, 0.6, {"c/d": 1.0}, ["c/d"], Rise(0.0, 0.0, 1.0, 1.0))
    parting = Parting(True, 10, 0.1, -0.1, 0.01, 0.01, 3)
    assert not undocumented([*repair.metrics(), *trends(parting)])


@pytest.mark.parametrize("name", ["loss/unknown", "rewards", "score/", "kl/math", "validation/gold/a/b"])
def test_other_names_are_missed(undocumented: Callable[..., list[str]], name: str) -> None:
    assert undocumented([name]) == [name]
