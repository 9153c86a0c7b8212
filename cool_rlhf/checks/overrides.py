"""One override of the command line: its name is checked, and its value written as Hydra reads it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from cool_rlhf.checks.schema import hint_at, is_map, is_text, unknown
from cool_rlhf.protocols import UserError

_ELEMENT = re.compile(r"""\s*('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?:\[[^]]*\]|\{[^}]*\}|[^,])+)\s*(?:,|$)""")


def groups(folders: Iterable[Path]) -> dict[str, list[str]]:
    """Config group -> its choices."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.glob("*/*.yaml"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(choices) for group, choices in found.items()}


def prepare(text: str, choices: dict[str, list[str]]) -> str:
    """Check the name in one override against groups and schema; ``experiment=`` is taken as ``+experiment=``, and for
    all else that is there already no ``+`` is needed."""
    given, text = text, _quoted(text)
    override = _parsed(text)
    if override is None or not override.key_or_group:
        raise UserError(_unreadable(given))
    key, bare = override.key_or_group, text.lstrip("+")
    if override.is_sweep_override():
        raise UserError(f"{given!r} names several values: one run takes one (a list is written key=[a,b])")
    if key == "hydra.searchpath":
        return text
    if key.startswith("hydra."):
        raise UserError(f"{key} has no effect here: one run writes to output_dir and nowhere else")
    if key in choices:
        if not override.is_delete():
            _check_choice(key, override.value(), choices[key])
        return f"+{bare}" if key == "experiment" and not override.is_delete() else bare
    return _check_key(bare, override)


def chosen(group: str, prepared: Iterable[str]) -> str | None:
    """What the command line names of ``group``."""
    of_group = (override for override in map(_parsed, prepared) if override and override.key_or_group == group)
    return next((str(override.value()) for override in of_group if not override.is_delete()), None)


def no_choice(group: str, choice: str, choices: Sequence[str]) -> str:
    what = "experiment" if group == "experiment" else f"choice for {group}"
    near = difflib.get_close_matches(choice, choices, n=1, cutoff=0.6)
    meant = f" (is {near[0]} meant?)" if near else ""
    return f"there is no {what} {choice!r}{meant}; available: {', '.join(choices)}"


def as_text(value: str) -> str:
    """As Hydra's grammar has a text that may hold its own marks, or letters that it does not know."""
    return QuotedString(value, Quote.single).with_quotes()


def _parsed(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _quoted(text: str) -> str:
    """An override whose value needs no quotes of its own: Hydra would take a comma, a tilde or an apostrophe for a mark
    of its own. What the user has quoted, what needs no quotes, and null, is left."""
    key, equals, value = text.partition("=")
    return key + equals + _value(value, is_text(key.lstrip("+"))) if equals else text


def _value(value: str, is_one_text: bool) -> str:
    override = _parsed(f"key={value}")
    whole = override is not None and not (
        is_one_text and (override.is_sweep_override() or isinstance(override.value(), list | dict))
    )
    if whole or value.startswith(("'", '"')) or (value.startswith("{") and not is_one_text):
        return value
    if value.startswith("[") and value.endswith("]") and not is_one_text:
        elements = _ELEMENT.findall(value[1:-1])
        return f"[{','.join(_value(element.strip(), is_one_text=True) for element in elements)}]"
    return as_text(value)


def _unreadable(text: str) -> str:
    key, _, value = text.partition("=")
    if value.startswith("{"):
        return (
            f"{text!r} is not a map that a command line can hold: in a name, write \\ before each of ()[]{{}}:=, and "
            "a blank; a name with other marks or letters goes into a file (--config-dir)"
        )
    meant = f": is {key}={as_text(value.strip(value[0]))} meant?" if value.startswith(("'", '"')) else ""
    return f"{text!r} is not of the form key=value{meant}"


def _check_choice(group: str, choice: Any, choices: Sequence[str]) -> None:
    if isinstance(choice, dict) and choice:
        name, value = next(iter(choice.items()))
        raise UserError(
            f"{group}= takes the name of a file ({', '.join(choices)}): write its settings one by one, "
            f"{group}.{name}={value}"
        )
    if str(choice) not in choices:
        raise UserError(no_choice(group, str(choice), choices))


def _check_key(text: str, override: Override) -> str:
    key = override.key_or_group
    if key.startswith("ppo.rewards."):
        raise UserError(
            f"{key}: on a command line the recipes are one map, ppo.rewards={{DOMAIN:{{conditions:{{…}},…}}}}"
        )
    if hint_at(key) is None:
        raise UserError(unknown(key))
    in_map = is_map(key.rpartition(".")[0])
    if override.is_delete():
        if not in_map:
            raise UserError(f"{text}: a setting is always there: give it another value, {key}=…")
        return text
    return f"++{text}" if in_map or is_map(key) else text
