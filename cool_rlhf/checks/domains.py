"""Domains that settings name: each has a condition."""

from __future__ import annotations

import difflib
import re

from cool_rlhf.config import Config, DataConfig
from cool_rlhf.data.rows import OVERALL
from cool_rlhf.data.sources import without_split
from cool_rlhf.protocols import UserError


def check_domains_of_sources(config: Config) -> None:
    """A source that no list has is one that an experiment brought and the user replaced, unless it looks like one
    that is there."""
    data, sources = config.data, _sources_with_domains(config.data)
    for source, domain in data.domains.items():
        near = [name for name in sorted(sources) if re.split("[@:]", name)[0] == re.split("[@:]", source)[0]]
        if _is_listed(source, sources):
            check_domain(config, domain, f"data.domains gives {source} the domain")
        elif near:
            raise UserError(f"data.domains names {source}, which no list of data holds: write it as there, {near[0]}")


def replaced_domains(data: DataConfig) -> set[str]:
    """Those that ``data.domains`` gives to sources which no list has."""
    sources = _sources_with_domains(data)
    return {domain for source, domain in data.domains.items() if not _is_listed(source, sources)}


def _sources_with_domains(data: DataConfig) -> set[str]:
    sources = {*data.sft, *data.preferences, *data.validation_preferences, *data.prompts, *data.validation_prompts}
    return sources | {*data.test_preferences, *data.test_prompts}


def _is_listed(source: str, sources: set[str]) -> bool:
    return source in sources or source in map(without_split, sources)


def check_domain(config: Config, name: str, said: str) -> None:
    """Every domain but that of rows which name none has a condition, perhaps an empty one. stage=evaluate goes by the
    conditions of the reward model that it finds."""
    if name == OVERALL:
        raise UserError(f"{said} {name!r}, which evaluations call all rows together: give it another name")
    if name not in config.conditions and name != "default" and config.stage != "evaluate":
        near = difflib.get_close_matches(name, config.conditions, n=1)
        known = ", ".join(sorted(config.conditions)) or "none"
        raise UserError(
            f"{said} {name!r}, which has no condition: {f'is {near[0]} meant?' if near else f'known are {known}'}"
        )
