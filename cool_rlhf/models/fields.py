"""What a checkpoint's config.json says, read without torch and transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cool_rlhf.files import check_reachable
from cool_rlhf.protocols import UserError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # of a model
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")  # as families call their number
SCALAR_ARCHITECTURES = ("ForRewardModel", "ForSequenceClassification")


def check_there(key: str, path: str) -> None:
    """Raise UserError, which names ``key``, where ``path`` is neither a checkpoint's folder nor can be a Hub name."""
    check_reachable(Path(path, "config.json"), key)
    if Path(path).is_dir():
        if not Path(path, "config.json").is_file():
            raise UserError(f"{key}: the folder {path} holds no config.json, so it is not a checkpoint")
    elif Path(path).exists():
        raise UserError(f"{key}: {path} is a file; give the checkpoint's folder")
    elif not HUB_NAME.fullmatch(path) or path.startswith("outputs/"):
        raise UserError(f"{key}: there is no folder {path}")


def config_fields(path: str) -> dict[str, Any]:
    """Of a folder, or of a Hub name of which only what is in the cache is looked at; none for what is not there.

    Raises UserError for a file that cannot be read, or is no JSON object.
    """
    file = Path(path, "config.json")
    check_reachable(file)
    if not Path(path).exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(path, "config.json")
        except HFValidationError:  # no Hub name either: whoever checks models says so
            found = None
        file = Path(found) if isinstance(found, str) else file
    if not file.is_file():
        return {}
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): make it readable, or give a copy") from error
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): it is no checkpoint's") from error
    if not isinstance(fields, dict):
        raise UserError(f"{file} is not a JSON object: it is no checkpoint's")
    return fields


def is_scalar(architectures: list[str] | None) -> bool:
    """Whether these are of a model with one number for a token, such as a reward model; a config may name none."""
    return any(name.endswith(SCALAR_ARCHITECTURES) for name in architectures or [])


def size_of(fields: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """What the first of ``names`` that is there says, since families call the same size differently; None where none
    is, or all are null."""
    return next((int(fields[name]) for name in names if isinstance(fields.get(name), int | float)), None)


def has_experts(fields: Mapping[str, Any]) -> bool:
    """Whether they are of a mixture of experts, whose numbers every such family names."""
    return any("expert" in name for name in fields)
