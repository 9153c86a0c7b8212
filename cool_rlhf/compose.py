"""From the command line's overrides to a checked Config, with Hydra's composition and one sentence for each mistake.

Hydra's own entry point is not used: it answers mistakes with several lines and status 1, changes logging, and drops a
``+key`` that the schema does not know.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cool_rlhf.checks.composition import left_out_in_vain, sentence
from cool_rlhf.checks.overrides import as_text, chosen, groups, prepare
from cool_rlhf.checks.schema import misfits
from cool_rlhf.checks.settings import check_config
from cool_rlhf.config import Config
from cool_rlhf.derived_settings import best_by
from cool_rlhf.files import check_reachable
from cool_rlhf.protocols import UserError

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "configs"
ConfigStore.instance().store("schema", Config)


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
    folders = _folders(extra_folder)
    choices = groups(folders)
    prepared = [prepare(text, choices) for text in overrides]
    if extra_folder is not None:
        prepared.append(f"hydra.searchpath=[{as_text(f'file://{extra_folder.resolve()}')}]")
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            tree = hydra_compose("config", overrides=prepared)
        # By its file's name: one that builds on another is not to run in that one's folder.
        tree.experiment = chosen("experiment", prepared) or tree.experiment
        OmegaConf.resolve(tree)
        if misfit := next(misfits(OmegaConf.to_container(tree)), None):
            raise UserError(misfit)
        tree.ppo.best_metric, tree.ppo.best_mode = best_by(tree.ppo)
    except AssertionError as error:  # OmegaConf's answer to a key below a section that is null
        raise UserError("data.world.… has no effect: this run has no embedded world; add data=world") from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
        if key := left_out_in_vain(error):
            section, _, name = key.rpartition(".")
            others = compose_tree([text for text in overrides if not text.startswith("~")], extra_folder)
            there = ", ".join(OmegaConf.select(others, section)) or "no names"
            raise UserError(f"~{key}: {section} does not hold {name}; it holds {there}") from error
        raise UserError(sentence(error, folders)) from error
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
    return groups(_folders(extra_folder)).get("experiment", [])


def _folders(extra: Path | None) -> list[Path]:
    """In the order in which they are searched."""
    if extra is not None:
        check_reachable(extra, "--config-dir")
        if not extra.is_dir():
            raise UserError(f"--config-dir: there is no folder {extra}")
    return [CONFIG_FOLDER, *([extra] if extra else [])]
