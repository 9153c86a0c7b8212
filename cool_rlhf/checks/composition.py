"""What Hydra, OmegaConf and YAML say of a mistake, made one sentence that names the key or the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ConfigTypeError, KeyValidationError, ValidationError

from cool_rlhf.checks.overrides import groups, no_choice
from cool_rlhf.checks.schema import hint_at, misfits, shown, unknown, wanted

_READ_AS = {"bool": "true or false (yes, no, on and off are too)", "NoneType": "nothing"}
_NOT_THERE = re.compile(r"Could not delete from config\. '([^']+)' does not exist")


def sentence(error: BaseException, folders: Sequence[Path]) -> str:
    """``folders`` are those of the config files, as they are searched."""
    cause = error
    while isinstance(cause, HydraException) and (inner := cause.__cause__ or cause.__context__):
        cause = inner
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
        return f"{cause.problem_mark.name}, line {cause.problem_mark.line + 1} is not valid YAML: {cause.problem}"
    if isinstance(cause, yaml.reader.ReaderError):
        return f"{cause.name} is not valid YAML: it holds the character {chr(cause.character)!r}"
    if isinstance(cause, UnicodeDecodeError):
        unread = next((path for path in _files(folders) if cause.object in path.read_bytes()), "a config file")
        return f"{unread} is not UTF-8 text: save it as UTF-8"
    if isinstance(cause, OSError) and cause.filename:  # a missing choice is one of Hydra's, which name no file
        return f"{cause.filename} cannot be read ({cause.strerror}): make it readable, or give a copy"
    if missing := re.search(r"Could not (?:find|load) '(\w+)/([^']+)'", str(error)):
        return _missing(missing[1], missing[2], folders)
    named = re.search(r"[Ii]n '([^']+)'", str(error))
    file = next((path for folder in folders if named and (path := folder / f"{named[1]}.yaml").is_file()), None)
    told = _of_name(cause) or (file and _of_file(file)) or _of_key(cause) or _as_told(cause)
    return f"{told} (in {file})" if file else told


def _missing(group: str, choice: str, folders: Sequence[Path]) -> str:
    """Hydra says that it was in config.yaml, whichever file asked for another choice."""
    asking = re.compile(rf"\b{group}(@\S*)?:\s*{re.escape(choice)}\b|^\s*- {re.escape(choice)}\b", re.MULTILINE)
    files = [path for path in _files(folders) if asking.search(path.read_text(encoding="utf-8", errors="replace"))]
    return no_choice(group, choice, groups(folders).get(group, [])) + (f" (in {files[0]})" if files else "")


def _files(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.glob("*/*.yaml"))]


def _of_name(cause: BaseException) -> str | None:
    """A name in a map that YAML does not take for a text."""
    if not isinstance(cause, KeyValidationError):
        return None
    kind = re.search(r"\((\w+)\) is incompatible|'(\w+)'", str(cause))
    read_as = _READ_AS.get(kind[1] or kind[2], "a number") if kind else "no text"
    section = str(cause.full_key or "").rpartition(".")[0]
    return f"{section or 'a map'} holds a name that YAML reads as {read_as}: put it in quotes"


def left_out_in_vain(error: BaseException) -> str | None:
    """The key of a ``~key`` that there is not."""
    found = _NOT_THERE.search(str(error))
    return found[1] if found else None


def _of_key(cause: BaseException) -> str | None:
    """Where OmegaConf names a key."""
    key = getattr(cause, "full_key", None)
    if not key:
        return None
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return unknown(key)
    if hint_at(key) is None:
        return None
    if isinstance(cause, ValidationError):
        value = OmegaConf.to_container(cause.value) if OmegaConf.is_config(cause.value) else cause.value
        return f"{key} is {shown(value)}: it must be {wanted(key)}"
    return f"{key} must be {wanted(key)}" if isinstance(cause, ConfigTypeError) else None


def _of_file(file: Path) -> str | None:
    """What OmegaConf could not merge with the settings so far, of which it names no key."""
    tree, group = OmegaConf.to_container(OmegaConf.load(file)), file.parent.name
    if "@package _global_" in file.read_text(encoding="utf-8"):
        return next(misfits(tree), None)
    if group == "experiment":
        return "its first line must be `# @package _global_`, without which its settings are not those of the run"
    hint = hint_at(group)
    return next(misfits(tree, hint, group), None) if hint else None


def _as_told(cause: BaseException) -> str:
    text = str(cause)
    if twice := re.search(r"Multiple values for (\w+)|(\w+) appears more than once", text):
        group = twice[1] or twice[2]
        return f"{group} is chosen twice: name one alone (in a file that builds on another, `override /{group}: …`)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fault = next((line for line in lines if "raised while composing" not in line), text)
    key = re.search(r"full_key: (\S+)", text)
    return f"{key[1] if key else 'the config cannot be read'}: " + re.sub(r"^In '[^']+': ", "", fault).rstrip(".")
