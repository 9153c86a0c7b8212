"""The schema read as types: which keys there are, what each holds, and what does not fit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from cool_rlhf.checks.peers import called_elsewhere, done_otherwise
from cool_rlhf.config import Config

_SCALARS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def known_keys(schema: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the schema, sections and leaves, dotted."""
    for name, hint in get_type_hints(schema).items():
        yield prefix + name
        if is_dataclass(section := _required(hint)):
            yield from known_keys(section, f"{prefix}{name}.")


def hint_at(key: str) -> Any | None:
    """The type of what stands at ``key``, perhaps in a map or a list; None where the schema has no such key."""
    hint: Any = Config
    for name in re.findall(r"[^.[\]]+", key):
        kind = _required(hint)
        if is_dataclass(kind):
            hint = get_type_hints(kind).get(name)
        elif get_origin(kind) in (dict, list):
            hint = get_args(kind)[-1]
            if get_origin(kind) is dict and hint in _SCALARS:
                return hint  # names in a map may have dots of their own
        else:
            return None
    return hint


def is_map(key: str) -> bool:
    """Whether any name may be added there."""
    return get_origin(hint_at(key)) is dict


def is_text(key: str) -> bool:
    return _required(hint_at(key)) is str


def unknown(key: str) -> str:
    """What another project calls so; else nearest among its siblings; else the same name in another section, where a
    key often belongs; else by the whole path."""
    section, _, leaf = key.rpartition(".")
    kind, known = _required(hint_at(section)), list(known_keys())
    siblings = {name: f"{section}.{name}".lstrip(".") for name in get_type_hints(kind)} if is_dataclass(kind) else {}
    if meant := called_elsewhere(leaf):
        here = [name for name in meant if name in siblings.values()]
        return f"there is no setting {key}: is {' or '.join(here or meant)} meant?"
    if told := done_otherwise(leaf):
        return f"there is no setting {key}: {told}"
    near = (
        [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.75)]
        or [name for name in known if name.rpartition(".")[2] == leaf]
        or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    )
    return f"there is no setting {key}" + (f": is {near[0]} meant?" if near else "; --cfg job lists them all")


def misfits(value: Any, hint: Any = Config, key: str = "") -> Iterator[str]:
    """Sentences for what is a list, a map or null where ``hint`` has something else. OmegaConf sees to scalars, but
    lets any list or map into a list or a map."""
    kind = _required(hint)
    if (isinstance(value, str) and value.startswith("${")) or (value is None and kind is not hint):
        return
    shape = dict if is_dataclass(kind) else get_origin(kind)
    if value is None or shape is not (type(value) if isinstance(value, dict | list) else None):
        yield f"{key or 'all of it'} is {shown(value)}: it must be {wanted(key)}"
    elif is_dataclass(kind):
        for name, inner in get_type_hints(kind).items():
            if name in value:
                yield from misfits(value[name], inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from misfits(item, get_args(kind)[1], f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from misfits(item, get_args(kind)[0], f"{key}[{index}]")


def wanted(key: str) -> str:
    """What must stand at a key of the schema, in words."""
    kind = _required(hint_at(key))
    if is_dataclass(kind):
        return f"a section, such as {{{next(iter(get_type_hints(kind)))}:…}}"
    if get_origin(kind) is list:
        return f"a list, such as {key}=[first,second]"
    return _SCALARS.get(kind, "a map, such as {name:value}")


def shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _required(hint: Any) -> Any:
    """A type without its null."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return next(option for option in get_args(hint) if option is not NoneType)
