"""From the command line's overrides to a checked Config, with Hydra's composition and one sentence for each mistake.

Hydra's own entry point is not used: it answers mistakes with several lines and status 1, changes logging, and drops a
``+key`` that the schema does not know.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cool_rlhf.checks.settings import check_config
from cool_rlhf.config import Config, best_by
from cool_rlhf.protocols import UserError

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "configs"
ConfigStore.instance().store("schema", Config)
_PROSE = re.compile(r"[+]*(conditions\.[^.=]+|sampling\.system_prompt)=[^'\"]")


def compose(overrides: Sequence[str], extra_folder: Path | None = None) -> Config:
    """The checked Config that ``overrides`` (``+experiment=NAME``, ``key=value``) make of the files in ``configs/``.

    ``extra_folder`` is searched for groups of the user's own. Raises UserError for an unknown key, group or choice, and
    for a value that is not allowed.
    """
    config = OmegaConf.to_object(compose_tree(overrides, extra_folder))
    assert isinstance(config, Config)
    _expand_home(config)
    check_config(config)
    return config


def compose_tree(overrides: Sequence[str], extra_folder: Path | None = None) -> DictConfig:
    """The same, still as OmegaConf's tree and with only keys and types checked. What a setting follows from where it is
    left open is written out in it: a finished run is compared by these."""
    folders = [CONFIG_FOLDER] if extra_folder is None else [CONFIG_FOLDER, _existing(extra_folder)]
    groups = _groups(folders)
    prepared = [_prepare(text, groups) for text in overrides]
    if extra_folder is not None:
        prepared.append(f"hydra.searchpath=[{_as_text(f'file://{extra_folder.resolve()}')}]")
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            tree = hydra_compose("config", overrides=prepared)
        OmegaConf.resolve(tree)
        tree.ppo.best_metric, tree.ppo.best_mode = best_by(tree.ppo)
    except AssertionError as error:  # OmegaConf's answer to a key below a section that is null
        raise UserError("data.world.… has no effect: this run has no embedded world; add data=world") from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(_sentence(error)) from error
    return tree


def _expand_home(config: Config) -> None:
    """Write ``~`` out, here once, in every setting that names a file or a folder; Hub names stay as they are."""
    full, data = os.path.expanduser, config.data
    paths = [(section, "path") for section in (config.model, config.sft, config.reward)]
    labels = [(config.annotate, "import_labels"), (config.annotate, "export_labels")]
    for owner, name in [
        *paths,
        *labels,
        (config, "output_dir"),
        (config.model, "tokenizer"),
        (config.ppo, "critic_init"),
    ]:
        value = getattr(owner, name)
        setattr(owner, name, value and full(value))
    for name, value in vars(data).items():
        if isinstance(value, list):
            setattr(data, name, [full(source) for source in value])
    data.domains = {full(source): domain for source, domain in data.domains.items()}
    data.weights = {full(source): weight for source, weight in data.weights.items()}


def experiments(extra_folder: Path | None = None) -> list[str]:
    """Names for ``+experiment=``."""
    folders = [CONFIG_FOLDER] if extra_folder is None else [CONFIG_FOLDER, _existing(extra_folder)]
    return _groups(folders).get("experiment", [])


def known_keys(schema: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the schema, sections and leaves, dotted."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key = prefix + field.name
        yield key
        section = _section(hints[field.name])
        if section is not None:
            yield from known_keys(section, key + ".")


def _section(hint: Any) -> Any | None:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"--config-dir: there is no folder {folder}")
    return folder


def _groups(folders: Iterable[Path]) -> dict[str, list[str]]:
    """Config group -> its choices."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.glob("*/*.yaml"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(choices) for group, choices in found.items()}


def _prepare(text: str, groups: dict[str, list[str]]) -> str:
    """Check the name in one override against groups and schema; ``experiment=`` is taken as ``+experiment=``."""
    text = _quoted(text)
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise UserError(
            f"{text!r} is not of the form key=value (values with special characters need quotes)"
        ) from error
    key = override.key_or_group
    if override.is_sweep_override():
        raise UserError(f"{text!r} names several values: one run takes one (a list is written key=[a,b])")
    if key.startswith("hydra.") and key != "hydra.searchpath":
        raise UserError(f"{key} has no effect here: one run writes to output_dir and nowhere else")
    if key in groups and not override.is_delete():
        _check_choice(key, override.value(), groups[key])
        return f"+{text}" if key == "experiment" and not text.startswith(("+", "~")) else text
    if key == "hydra.searchpath":
        return text
    return _check_key(text, override)


def _quoted(text: str) -> str:
    """An override whose value is prose, as Hydra reads it: it would take a comma, a colon or an apostrophe for a mark
    of its own. What the user has quoted, what needs no quotes, and null, is left."""
    if not _PROSE.match(text):
        return text
    try:
        override = OverridesParser.create().parse_override(text)
        plain = not override.is_sweep_override() and not isinstance(override.value(), list | dict)
    except HydraException:
        plain = False
    if plain:
        return text
    key, _, value = text.partition("=")
    return f"{key}={_as_text(value)}"


def _as_text(value: str) -> str:
    """As Hydra's grammar has a text that may hold its own marks, or letters that it does not know."""
    return QuotedString(value, Quote.single).with_quotes()


def _check_choice(group: str, choice: Any, choices: list[str]) -> None:
    if str(choice) not in choices:
        what = "experiment" if group == "experiment" else f"choice for {group}"
        meant = _meant(str(choice), choices)
        raise UserError(f"there is no {what} {str(choice)!r}{meant}; available: {', '.join(choices)}")


def _check_key(text: str, override: Override) -> str:
    key = override.key_or_group
    if key.startswith("ppo.rewards."):
        raise UserError(
            f"{key}: on a command line the recipes are one map, ppo.rewards={{DOMAIN:{{conditions:{{…}},…}}}}"
        )
    maps = r"conditions\.[^.]+|(data\.(domains|weights|domain_weights)|collect\.judged_as)(\..+)?|ppo\.rewards"
    if re.fullmatch(maps, key):  # any name may be added
        return text if text.startswith(("+", "~")) else f"++{text}"
    known = list(known_keys())
    if key not in known:
        raise UserError(_unknown(key, known))
    return text


def _unknown(key: str, known: Sequence[str]) -> str:
    """Nearest by the whole path, else by the last name alone: a key is often right but in another section."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if not near:
        leaf = key.rsplit(".", 1)[-1]
        near = [name for name in known if name.rsplit(".", 1)[-1] == leaf] or difflib.get_close_matches(
            key, known, n=1, cutoff=0.5
        )
    return f"there is no setting {key}" + (f": is {near[0]} meant?" if near else "; --cfg job lists them all")


def _meant(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (is {near[0]} meant?)" if near else ""


def _sentence(error: BaseException) -> str:
    """Hydra and OmegaConf tell the key and the fault on lines of their own: make them one sentence."""
    cause = error
    while isinstance(cause, HydraException) and cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause)
    key = re.search(r"full_key: (\S+)", text)
    where = re.match(r"In '([^']+)'", str(error))
    file = f" (in configs/{where[1]}.yaml)" if where else ""
    if key and re.search(r"Key '.*' (is )?not in", text):
        return _unknown(key[1], list(known_keys())) + file
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fault = lines[1] if where and len(lines) > 1 and "raised while composing" in lines[0] else lines[0]
    wanted = re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", fault)
    if key and wanted:
        kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "a text"}
        return f"{key[1]} is {wanted[1]!r}: it must be {kinds.get(wanted[2], wanted[2])}{file}"
    if key and "is not a ListConfig" in fault:
        return f"{key[1]} must be a list: {key[1]}=[first,second]{file}"
    if key and "is not Optional" in fault:
        return f"{key[1]} cannot be null: it must have a value{file}"
    if key and "Invalid type assigned" in fault:
        return f"{key[1]} is a section, not a value: set one of its keys, such as {_first_key(key[1])}{file}"
    return f"{key[1]}: {fault.rstrip('.')}{file}" if key else f"the config cannot be read: {fault.rstrip('.')}{file}"


def _first_key(section: str) -> str:
    return next((name for name in known_keys() if name.startswith(section + ".")), section)
