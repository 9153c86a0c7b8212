"""What the command does with its arguments. Everything heavy is imported only once the checks are through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cool_rlhf.compose import compose, compose_tree, experiments
from cool_rlhf.config import Config
from cool_rlhf.ending import Ending
from cool_rlhf.files import check_reachable
from cool_rlhf.lock import sole_use
from cool_rlhf.memory import ModelShape
from cool_rlhf.model_checks import check_models
from cool_rlhf.planning import Placement, Resources, describe, plan
from cool_rlhf.preflight import (
    NEEDS_PPO,
    check_data,
    check_output_dir,
    machine_resources,
    missing_models,
    with_earlier_stages,
)
from cool_rlhf.protocols import UserError
from cool_rlhf.provenance import open_state, unfinished, without_critic
from cool_rlhf.rule_checks import check_rules
from cool_rlhf.tracking.wandb_run import check_wandb

_RUN_STAGES = ("sft", "reward", "ppo", "pipeline")
_CHECKED = "settings, output_dir, models, every row of data and rules"

_HELP = """\
usage: python -m cool_rlhf.run +experiment=NAME [stage=STAGE] [key=value ...]

Trains a model by conditional online RLHF: SFT, conditional reward model, PPO. The same command with the same
output_dir resumes.

experiments: {experiments}
stages:      pipeline (default), sft, reward, ppo, evaluate, annotate, plan (prints what would run where), check
             (reads models and every row as the pipeline would, and starts nothing)
common keys: output_dir, seed, model.path, sft.path, reward.path, data.sft, data.preferences, data.prompts,
             data.pretrain, conditions, online.rounds, ppo.iterations; for evaluate: data.test_preferences,
             data.test_prompts, evaluate.samples_per_prompt, evaluate.best_of. A reward model alone:
             stage=evaluate reward.path=MODEL data.test_preferences=[FILE]

options:
  --cfg job          print the settings of the run, and stop
  --config-dir DIR   also look for experiments, conditions and other groups in DIR
  --help             print this, and stop"""


@dataclass(frozen=True)
class _Arguments:
    overrides: list[str]
    config_dir: Path | None
    show_config: bool
    show_help: bool


def execute(arguments: Sequence[str], ending: Ending) -> None:
    """Do what the command line asks; ``ending`` learns where the run's log is. Raises UserError for mistakes."""
    parsed = _parse(arguments)
    if parsed.show_help:
        print(_HELP.format(experiments=", ".join(experiments(parsed.config_dir))))
        return
    config = compose(parsed.overrides, parsed.config_dir)
    if parsed.show_config:
        _print_config(parsed)
    else:
        _run(config, ending)


def _run(config: Config, ending: Ending) -> None:
    check_reachable(Path(config.output_dir, "state"), "output_dir")  # before anybody asks what a run has left there
    if config.stage == "annotate":
        from cool_rlhf.stages.annotate import annotate

        annotate(config, ending)
        return
    if config.stage == "check":  # on whatever machine: what it has is not looked at
        config = replace(config, stage="pipeline")
        if _left(config, with_earlier_stages(config)):
            print(f"checked and found good: {_CHECKED}; nothing was started")
        return
    legs, resources = with_earlier_stages(config), _resources(config)
    placements: list[Placement] = []
    for leg in legs:
        with _said_why(leg, config):
            placements += plan(leg, resources)
    if config.stage == "plan":
        print(describe(config, placements, ModelShape.of(config)))
        return
    legs = _left(config, legs)
    if not legs:
        return
    output_dir = Path(config.output_dir)
    with sole_use(output_dir):
        from cool_rlhf.pipeline import run

        ending.running(output_dir)
        for leg in legs:
            run(leg, ending.limited())


def _left(config: Config, legs: Sequence[Config]) -> list[Config]:
    """Those of ``legs`` that still have something to do, each checked for all that it will read."""
    check_output_dir(config)
    if config.stage in NEEDS_PPO and (told := without_critic(config, open_state(config))):
        print(told)
    left = [leg for leg in legs if leg.stage not in _RUN_STAGES or unfinished(leg, open_state(leg))]
    if not left:
        print(f"{config.output_dir} is finished: stage {config.stage} has nothing left to do")
    if any(leg.stage in _RUN_STAGES for leg in left):
        check_wandb(config.logging)
    for leg in left:
        with _said_why(leg, config):
            check_models(leg)
            check_data(leg)
            check_rules(leg)
    return left


@contextmanager
def _said_why(leg: Config, config: Config) -> Iterator[None]:
    """Put in front of what is wrong with a stage that was not asked for why it would be run."""
    try:
        yield
    except UserError as error:
        if leg.stage == config.stage:
            raise
        raise UserError(f"{missing_models(config)}; stage {leg.stage}, which makes them, says: {error}") from error


def _resources(config: Config) -> Resources:
    """Of the cluster that is joined, else of this machine."""
    if config.cluster.address is None:
        return machine_resources(config)

    from cool_rlhf.roles.cluster import resources_at

    return resources_at(config.cluster.address)


def _parse(arguments: Sequence[str]) -> _Arguments:
    overrides: list[str] = []
    config_dir: Path | None = None
    show_config = show_help = False
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, value = argument.partition("=")
        if argument in ("--help", "-h"):
            show_help = True
        elif name in ("--cfg", "-c"):
            if (value if equals or not remaining else remaining.pop(0)) != "job":
                raise UserError("--cfg takes `job`: it prints the settings of the run")
            show_config = True
        elif name in ("--config-dir", "-cd"):
            folder = value if equals or not remaining else remaining.pop(0)
            if not folder:
                raise UserError("--config-dir takes a folder: --config-dir=DIR")
            config_dir = Path(folder)
        elif argument.startswith("-"):
            raise UserError(f"there is no option {name}; settings are written key=value, --help says more")
        else:
            overrides.append(argument)
    if not overrides and not show_help:
        raise UserError(f"no experiment named: add +experiment=NAME, one of {', '.join(experiments(config_dir))}")
    return _Arguments(overrides, config_dir, show_config, show_help)


def _print_config(parsed: _Arguments) -> None:
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(compose_tree(parsed.overrides, parsed.config_dir)), end="")
