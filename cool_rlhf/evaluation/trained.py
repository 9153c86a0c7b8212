"""What the run that is evaluated was trained with, which stage=evaluate may be told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from cool_rlhf.checkpoint import RunState
from cool_rlhf.config import Config, WorldConfig
from cool_rlhf.data.splitting import TEST_ROWS

T = TypeVar("T")


def as_trained(config: Config) -> Config:
    """``config`` with all that said, when the run in ``output_dir`` was trained, which prompts it was asked and which
    were held out: the seed, the sources of prompts with how they are read, and the test rows known by then. The config
    itself where the run has asked none yet."""
    state = RunState(Path(config.output_dir))
    made = state.settings("ppo_0") or state.settings("collect")
    if not made:
        return config
    sources = {**{key: [] for key in TEST_ROWS}, **made.get("data", {})}
    if sources.get("world"):
        sources["world"] = WorldConfig(**sources["world"])
    return replace(
        config,
        seed=made.get("seed", config.seed),
        model=_with(config.model, made.get("model", {})),
        sft=_with(config.sft, made.get("sft", {})),
        data=_with(config.data, sources),
        sampling=_with(config.sampling, made.get("sampling", {})),
        conditions=state.settings("reward_0").get("conditions", config.conditions),
    )


def _with(section: T, settings: Mapping[str, Any]) -> T:
    """``section`` with those of ``settings`` that there still are."""
    known = {field.name for field in fields(section)}  # type: ignore[arg-type]
    return replace(section, **{key: value for key, value in settings.items() if key in known})  # type: ignore[type-var]
