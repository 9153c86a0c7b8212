"""The pages in docs name every key, some of them with the schema's default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from cool_rlhf.checks.ranges import ROLES
from cool_rlhf.checks.schema import known_keys
from cool_rlhf.config import Config
from cool_rlhf.provenance import _FREE

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = ("model", "sft", "sampling", "logging")
PAGES = {
    "annotate": ["annotation.md"],
    "collect": ["data.md"],
    "data": ["data.md", "ppo.md"],
    "evaluate": ["evaluation.md"],
    "online": ["online.md"],
    "ppo": ["ppo.md", "settings.md"],
    "reward": ["reward_model.md", "settings.md"],
}
UNTRAINED = ("cluster.reference.zero_stage", "cluster.scorer.zero_stage")


def tables(name: str) -> Iterator[dict[str, Any]]:
    """Key → default of each table in a page that has both."""
    for table in re.findall(
        r"\| key \| default \|.*\n\|[- |]+\n((?:\|.*\n)+)", (DOCS / name).read_text(encoding="utf-8")
    ):
        yield {
            key: yaml.safe_load(re.sub(r"^(\d+)e", r"\1.0e", default))
            for key, default in re.findall(r"^\| `([\w.]+)` \| (.*?) \|", table, re.MULTILINE)
        }


def leaves(prefix: str) -> set[str]:
    keys = {key for key in known_keys() if key.startswith(f"{prefix}.")}
    return {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}


def test_settings() -> None:
    documented = {key: default for table in tables("settings.md") for key, default in table.items()}
    assert documented == {key: attrgetter(key)(Config()) for key in documented}
    assert {key for section in SECTIONS for key in leaves(section)} <= documented.keys()


def test_cluster() -> None:
    of_roles, of_engines, general = tables("cluster.md")
    documented = {f"cluster.{role}.{key}": default for role in ROLES for key, default in of_roles.items()}
    documented |= {f"cluster.rollout.{key}": default for key, default in of_engines.items()}
    documented |= {f"cluster.{key}": default for key, default in general.items()}
    documented |= dict.fromkeys(UNTRAINED, 0)
    assert documented == {key: attrgetter(key)(Config()) for key in leaves("cluster")}


@pytest.mark.parametrize("section", PAGES)
def test_every_key_is_named(section: str) -> None:
    """In full, without its section, or in a list of such as ``.model``."""
    lines = [line for page in PAGES[section] for line in (DOCS / page).read_text(encoding="utf-8").splitlines()]
    code = {quoted for line in lines for quoted in re.findall(r"`([^`]+)`", line)}
    named = {re.split(r"[=:\s]", each)[0] for each in code}
    unnamed = {
        key
        for key in leaves(section)
        if not {key, key.removeprefix(f"{section}."), f".{key.rpartition('.')[2]}"} & named
    }
    assert unnamed == set()


def test_what_may_change_when_a_run_goes_on() -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8").partition("## Going on with a run")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE))
    free = {section: set(re.findall(r"`(\w+)`", keys)) - {"generate_ahead"} for section, keys in rows.items()}
    assert free == _FREE
