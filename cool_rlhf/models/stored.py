"""Weights as they lie in a checkpoint's folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from cool_rlhf.protocols import UserError


def stored_weights(folder: Path) -> Iterator[dict[str, Tensor]]:
    """A checkpoint's weights by name, file by file. Raises UserError where there are none, or a file is damaged."""
    files = _files(folder)
    if not files:
        raise UserError(f"{folder} holds neither safetensors files nor pytorch_model*.bin: it is no checkpoint")
    for file in files:
        with damage_told(folder):
            yield _read(file)


@contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """Raise UserError where reading fails and ``folder`` has a damaged file of weights. Readers raise errors of several
    kinds for it, which do not name the file, and raise the same for other trouble, such as memory that runs out: such
    an error is left as it is."""
    try:
        yield
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        damaged = next(filter(_is_damaged, _files(folder)), None)
        if damaged is None:
            raise
        raise _damage(damaged) from error


def check_whole(files: Iterable[Path]) -> None:
    """Raise UserError where a file of weights is damaged, as its first and last bytes tell it, whatever its size."""
    for file in files:
        if _is_damaged(file) and not _is_old_pickle(file):
            raise _damage(file)


def _damage(file: Path) -> UserError:
    return UserError(
        f"{file} holds no whole weights: it was cut off, or Git LFS has left its pointer in the file's place; copy or "
        "download it again (git lfs pull)"
    )


def _files(folder: Path) -> list[Path]:
    """Those in safetensors alone where there are some."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return weights


def _is_damaged(file: Path) -> bool:
    if file.suffix != ".safetensors":
        return not is_zipfile(file)
    try:
        with safe_open(file, "pt"):
            return False
    except SafetensorError:
        return True


def _is_old_pickle(file: Path) -> bool:
    """As torch wrote weights before 1.6, which reads to its end before it is known to be whole."""
    if file.suffix == ".safetensors":
        return False
    with file.open("rb") as stream:
        return stream.read(1) == b"\x80"
