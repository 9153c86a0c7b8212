"""The command: ``python -m cool_rlhf.run +experiment=NAME [stage=STAGE] [key=value …]``.

Exit status 0 on success; 2, with one sentence on standard error, for a mistake in config, data or resources; 1
otherwise. Everything heavy is imported only once the checks are through.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cool_rlhf.compose import compose, compose_tree, experiments
from cool_rlhf.config import Config
from cool_rlhf.memory import ModelShape
from cool_rlhf.planning import Node, Resources, describe, plan
from cool_rlhf.preflight import check_data, check_models, check_output_dir, machine_resources
from cool_rlhf.protocols import UserError

_HELP = """\
usage: python -m cool_rlhf.run +experiment=NAME [stage=STAGE] [key=value ...]

Trains a model by conditional online RLHF: SFT, conditional reward model, PPO. The same command with the same
output_dir resumes.

experiments: {experiments}
stages:      pipeline (default), sft, reward, ppo, evaluate, annotate, plan (prints what would run where)
common keys: output_dir, seed, model.path, sft.path, reward.path, data.sft, data.preferences, data.prompts,
             data.pretrain, conditions, online.rounds, ppo.iterations

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


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    config: Config | None = None
    try:
        parsed = _parse(arguments)
        if parsed.show_help:
            print(_HELP.format(experiments=", ".join(experiments(parsed.config_dir))))
            return 0
        config = compose(parsed.overrides, parsed.config_dir)
        if parsed.show_config:
            _print_config(parsed)
        else:
            _run(config)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted{_log_place(config)}; the same command resumes", file=sys.stderr)
        return 1
    return 0


def _run(config: Config) -> None:
    if config.stage == "annotate":
        raise UserError("stage=annotate is not available yet in this version")
    placements = plan(config, _resources(config))
    if config.stage == "plan":
        print(describe(config, placements, ModelShape.of(config.model)))
        return
    check_output_dir(config)
    check_models(config)
    check_data(config)

    from cool_rlhf.pipeline import run

    run(config)


def _resources(config: Config) -> Resources:
    """Of the cluster that is joined, else of this machine."""
    if config.cluster.address is None:
        return machine_resources(config)
    import ray

    try:
        ray.init(address=config.cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cluster.address: no Ray cluster answers at {config.cluster.address} ({error})") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    ray.shutdown()
    return Resources(tuple(Node(node.get("CPU", 0.0), int(node.get("GPU", 0))) for node in nodes))


def _parse(arguments: Sequence[str]) -> _Arguments:
    overrides: list[str] = []
    config_dir: Path | None = None
    show_config = show_help = False
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, _, value = argument.partition("=")
        if argument in ("--help", "-h"):
            show_help = True
        elif name in ("--cfg", "-c"):
            if (value or (remaining.pop(0) if remaining else "")) != "job":
                raise UserError("--cfg takes `job`: it prints the settings of the run")
            show_config = True
        elif name in ("--config-dir", "-cd"):
            if not value and not remaining:
                raise UserError("--config-dir takes a folder")
            config_dir = Path(value or remaining.pop(0))
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


def _log_place(config: Config | None) -> str:
    if config is None:
        return ""
    log = Path(config.output_dir) / "logs" / "run.log"
    return f"; the log is {log}" if log.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
