"""Names of other projects: docs/ppo.md tells them, and the command answers them with ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cool_rlhf.checks.peers import _NAMES, _WITHOUT
from cool_rlhf.checks.schema import hint_at, unknown

ROOT = Path(__file__).parents[2]
GENERAL = {"type", "path"}  # last parts that say nothing by themselves


def documented() -> Iterator[tuple[str, list[str]]]:
    """Another project's name, and those of our keys in whose row it stands."""
    for line in (ROOT / "docs/ppo.md").read_text(encoding="utf-8").splitlines():
        cells = re.split(r"(?<!\\)\|", line.strip("|"))
        if len(cells) == 5:
            ours = [key if "." in key else f"ppo.{key}" for key in re.findall(r"`([a-z_.]+)`", cells[0])]
            for name in re.findall(r"`([a-z_0-9.]+)`", cells[4]):
                yield name, ours


def test_every_name_in_the_documentation_is_answered_with_the_key_of_its_row() -> None:
    names = [(name.rpartition(".")[2], ours) for name, ours in documented()]
    assert {"init_kl_coef", "cliprange", "lambd", "lr", "n", "actor_learning_rate"} <= {name for name, _ in names}
    for name, ours in names:
        if hint_at(f"ppo.{name}") is None and name not in GENERAL:
            told = unknown(f"ppo.{name}")
            assert any(re.search(rf"\b{re.escape(key)}\b", told) for key in ours), (told, ours)


def test_ours_are_there_and_theirs_are_not() -> None:
    for key, names in _NAMES.items():
        assert hint_at(key) is not None, key
        section, _, own = key.rpartition(".")
        assert all(hint_at(f"{section}.{name}") is None for name in names.split() if name != own), key


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("ppo.lr", "is ppo.policy_learning_rate or ppo.critic_learning_rate meant?"),
        ("ppo.learning_rate", "is ppo.policy_learning_rate or ppo.critic_learning_rate meant?"),
        ("sft.lr", "is sft.learning_rate meant?"),
        ("critic_learning_rate", "is ppo.critic_learning_rate meant?"),
        ("algorithm.kl_ctrl.kl_coef", "is ppo.kl_coefficient meant?"),
        ("ppo.gae_lambda", "is ppo.trace_decay meant?"),
        ("ppo.gamma", "is ppo.discount meant?"),
        ("ppo.top_p", "is sampling.top_p meant?"),
        ("ppo.iteration", "is ppo.iterations meant?"),
        ("trainer.test_freq", "is ppo.validate_every meant?"),
        ("trainer.project_name", "is logging.wandb_project meant?"),
    ],
)
def test_a_section_of_ours_is_kept_to(given: str, told: str) -> None:
    assert unknown(given) == f"there is no setting {given}: {told}"


@pytest.mark.parametrize("given", ["algorithm.adv_estimator", "ppo.advantage_estimator", "trainer.total_epochs"])
def test_what_has_no_counterpart_is_answered_with_what_is_so_here(given: str) -> None:
    (told,) = (told for names, told in _WITHOUT.items() if given.rpartition(".")[2] in names.split())
    assert unknown(given) == f"there is no setting {given}: {told}"
    named = re.findall(r"\b(?:sft|reward|ppo)\.[a-z_]+", told)
    assert named
    assert all(hint_at(key) is not None for key in named)
