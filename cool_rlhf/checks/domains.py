"""Domains that settings name: each has a condition."""

from __future__ import annotations

import difflib
import re

from cool_rlhf.checks.ranges import check_number
from cool_rlhf.config import Config, DataConfig
from cool_rlhf.data.rows import OVERALL
from cool_rlhf.data.sources import without_split
from cool_rlhf.protocols import UserError


def check_domains(config: Config) -> None:
    """Raises UserError for the first that has no condition, outside the recipes and validation of PPO."""
    for domain, labelled_under in config.collect.judged_as.items():
        if not labelled_under:
            raise UserError(f"collect.judged_as gives {domain} no domain: name one or more, or leave it out")
        for name in (domain, *labelled_under):
            if difflib.get_close_matches(name, config.conditions, n=1):  # any other is of an experiment's conditions
                check_domain(config, name, "collect.judged_as names the domain")
    for domain in config.conditions:
        check_domain(config, domain, "conditions names the domain")
    _check_domains_of_sources(config)
    for domain, weight in config.data.domain_weights.items():
        check_domain(config, domain, "data.domain_weights names the domain")
        said = f"data.domain_weights gives {domain} the weight"
        check_number(said, weight, lambda value: value >= 0, "it must be 0 or more")


def _check_domains_of_sources(config: Config) -> None:
    """A source that no list has is one that an experiment brought and the user replaced, unless it looks like one
    that is there and would have no domain."""
    data, judged = config.data, _judged_sources(config.data)
    sources = judged | {*data.sft}
    left = sorted(source for source in sources if not {source, without_split(source)} & data.domains.keys())
    for source, domain in data.domains.items():
        same_set = [name for name in left if re.split("[@:]", name)[0] == re.split("[@:]", source)[0]]
        near = same_set or difflib.get_close_matches(source, left, n=1, cutoff=0.9)
        said = f"data.domains gives {source} the domain"
        if _is_listed(source, judged):
            check_domain(config, domain, said)
        elif _is_listed(source, sources):
            _check_name(domain, said)
        elif near:
            raise UserError(f"data.domains names {source}, which no list of data holds: write it as there, {near[0]}")


def replaced_domains(data: DataConfig) -> set[str]:
    """Those that ``data.domains`` gives to sources which no list has."""
    sources = _judged_sources(data) | {*data.sft}
    return {domain for source, domain in data.domains.items() if not _is_listed(source, sources)}


def _judged_sources(data: DataConfig) -> set[str]:
    """Those whose rows are judged under their domain, as chats are not."""
    sources = {*data.preferences, *data.validation_preferences, *data.prompts, *data.validation_prompts}
    return sources | {*data.test_preferences, *data.test_prompts}


def _is_listed(source: str, sources: set[str]) -> bool:
    return source in sources or source in map(without_split, sources)


def check_domain(config: Config, name: str, said: str) -> None:
    """Every domain but that of rows which name none has a condition, perhaps an empty one. stage=evaluate goes by the
    conditions of the reward model that it finds."""
    _check_name(name, said)
    if name not in config.conditions and name != "default" and config.stage != "evaluate":
        near = difflib.get_close_matches(name, config.conditions, n=1)
        known = ", ".join(sorted(config.conditions)) or "none"
        raise UserError(
            f"{said} {name!r}, which has no condition: {f'is {near[0]} meant?' if near else f'known are {known}'}"
        )


def _check_name(name: str, said: str) -> None:
    if name == OVERALL:
        raise UserError(f"{said} {name!r}, which evaluations call all rows together: give it another name")
