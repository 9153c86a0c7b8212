"""What resuming needs: which stages are finished and with which settings, and snapshots of a stage under way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cool_rlhf.config import Config, WorldConfig
from cool_rlhf.folders import move_whole, part_of, replace_whole, sync
from cool_rlhf.protocols import UserError

Settings = Mapping[str, Any]


class RunState:
    """``state/`` of a run. Everything appears whole or not at all, and stays until what replaces it is whole."""

    def __init__(self, output_dir: Path) -> None:
        self.folder = output_dir / "state"
        self._file = self.folder / "progress.json"
        self._stages: dict[str, dict[str, Any]] = {}
        if self._file.exists():
            try:
                self._stages = _checked(json.loads(self._file.read_text(encoding="utf-8")))
            except (ValueError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise UserError(
                    f"{self._file} is broken ({reason}): put back a copy of it, or choose another output_dir"
                ) from error

    def check(self, stage: str, settings: Settings) -> None:
        """Raise UserError, showing the difference, if other settings than these made ``stage``, or a saved part of it.
        What was begun and left nothing behind binds nobody; a setting that there was not yet had its default."""
        begun = stage in self._stages
        if not begun or not (self.is_finished(stage) or self.snapshot(stage)):
            return
        differences = [
            f"{key} was {_short(old)} and is {_short(new)}"
            for key, (old, new) in _differences(self._stages[stage]["settings"], _plain(settings), _defaults()).items()
        ]
        if differences:
            raise UserError(
                f"{self.folder.parent} holds a run whose {stage} stage was made with other settings: "
                f"{'; '.join(differences)}; restore them or choose another output_dir"
            )

    def settings(self, stage: str) -> Settings:
        """Those that ``stage`` is made with; none where it was not begun."""
        settings: Settings = self._stages.get(stage, {}).get("settings", {})
        return settings

    def is_begun_with(self, stage: str, settings: Settings) -> bool:
        """Whether ``stage`` is finished or under way, and with just these settings."""
        return stage in self._stages and not _differences(
            self._stages[stage]["settings"], _plain(settings), _defaults()
        )

    def begin(self, stage: str, settings: Settings) -> None:
        """``stage`` is made with ``settings``."""
        self._write({**self._stages, stage: {"settings": _plain(settings), "finished": False}})

    def finish(self, stage: str) -> None:
        self._write({**self._stages, stage: {**self._stages[stage], "finished": True}})

    def reopen_from(self, stage: str) -> None:
        """``stage`` goes on; what was made after it is to be made again."""
        names = list(self._stages)
        self._forget(names[names.index(stage) + 1 :])
        self._write({**self._stages, stage: {**self._stages[stage], "finished": False}})

    def discard_from(self, stage: str) -> None:
        """``stage`` and what was made after it are to be made again from their beginning."""
        names = list(self._stages)
        self._forget(names[names.index(stage) :])

    def begun(self) -> list[str]:
        """The stages that are finished or under way."""
        return list(self._stages)

    def is_finished(self, stage: str) -> bool:
        return stage in self._stages and bool(self._stages[stage]["finished"])

    def drop_snapshots(self, stage: str) -> None:
        """Of a finished stage that nothing goes on from."""
        shutil.rmtree(self.folder / stage, ignore_errors=True)

    def save_snapshot(self, stage: str, position: Mapping[str, Any], save: Callable[[Path], None]) -> None:
        """Keep ``position`` and what ``save`` writes into the folder it is given; then drop earlier snapshots."""
        place = self.folder / stage
        part = place / ".part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save(part)
        (part / "position.json").write_text(json.dumps(position), encoding="utf-8")
        earlier = self._snapshots(stage)
        # A number of its own: what it replaces stays in its place until this one is whole.
        whole = place / f"snapshot_{_number(earlier[-1]) + 1 if earlier else 1}"
        move_whole(part, whole)
        for other in place.iterdir():
            if other != whole:
                shutil.rmtree(other)

    def snapshot(self, stage: str) -> tuple[Path, dict[str, Any]] | None:
        """The newest snapshot of ``stage`` and its position; None where there is none."""
        snapshots = self._snapshots(stage)
        if not snapshots:
            return None
        return snapshots[-1], json.loads((snapshots[-1] / "position.json").read_text(encoding="utf-8"))

    def _snapshots(self, stage: str) -> list[Path]:
        return sorted((self.folder / stage).glob("snapshot_*"), key=_number)

    def _forget(self, stages: Sequence[str]) -> None:
        for stage in stages:
            shutil.rmtree(self.folder / stage, ignore_errors=True)
        self._write({name: made for name, made in self._stages.items() if name not in stages})

    def _write(self, stages: dict[str, dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(stages, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._file)
        sync(self.folder)
        self._stages = stages


def _checked(stages: Any) -> dict[str, dict[str, Any]]:
    """``stages`` if they are what :meth:`RunState.begin` and :meth:`RunState.finish` write; else raises ValueError."""
    if not isinstance(stages, dict):
        raise ValueError("not a JSON object")
    for name, made in stages.items():
        whole = isinstance(made, dict) and isinstance(made.get("settings"), dict)
        if not whole or not isinstance(made.get("finished"), bool):
            raise ValueError(f"{name} lacks its settings, or whether it is finished")
    return stages


def copy_checkpoint(source: Path, target: Path) -> None:
    """A copy of a checkpoint folder that appears whole."""
    part = part_of(target)
    shutil.copytree(source, part)
    replace_whole(part, target)


def _number(snapshot: Path) -> int:
    return int(snapshot.name.removeprefix("snapshot_"))


def _plain(settings: Settings) -> dict[str, Any]:
    """As JSON would give it back."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _defaults() -> dict[str, Any]:
    found = _plain(asdict(Config()))
    found["data"]["world"] = _plain(asdict(WorldConfig()))
    return found


def _differences(old: Any, new: Any, defaults: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Path of a setting → ``old`` and ``new`` value, where they differ. What either lacks is as in ``defaults``."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted(old.keys() | new.keys()):
            usual = _at(defaults, key)
            there = old.get(key, new.get(key))
            # Of a section just what the other side has is compared. An empty one may mean something.
            lacking = {} if there and isinstance(there, dict) else usual
            inner = f"{path}.{key}" if path else key
            found |= _differences(old.get(key, lacking), new.get(key, lacking), usual, inner)
        return found
    return {} if old == new else {path: (old, new)}


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
