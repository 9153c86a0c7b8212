"""Weights & Biases: the rows of metrics.jsonl under the same names with the same values.

A row's W&B step is its index in metrics.jsonl, which grows over all stages and rounds; ``stage``, ``round``, ``step``
and ``seconds`` are fields beside the metrics. The run's summary, which takes no step, has a table of what was found
and mended after each round, and the report.
"""

from __future__ import annotations

import netrc
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cool_rlhf.config import Config, LoggingConfig
from cool_rlhf.derived_settings import shown_config
from cool_rlhf.files import write_atomically
from cool_rlhf.protocols import UserError

MODES = ("auto", "online", "offline", "disabled")
BETWEEN = ("pattern", "description", "domain", "sft", "early", "late", "paid", "right_before", "right_after", "outcome")
INIT_TIMEOUT = 30.0
# W&B streams rows as they come, so little is left to send at the end; a dead network must not hold up Ctrl-C.
FINISH_TIMEOUT = 6.0
# By W&B's own rules.
LONGEST_TAG = 64  # characters
LONGEST_PROJECT = 128
NOT_IN_PROJECT = "/\\#?%:"


def check_wandb(logging: LoggingConfig) -> None:
    """Raises UserError for settings, or variables of the environment, that W&B would refuse when the run begins."""
    if resolve_mode(logging.wandb_mode) == "disabled":
        return
    said = os.environ.get("WANDB_TAGS")
    told, tags = ("logging.wandb_tags", logging.wandb_tags)
    if not tags and said:
        told, tags = "The environment's WANDB_TAGS", said.split(",")
    for tag in tags:
        if not 1 <= len(tag) <= LONGEST_TAG:
            raise UserError(f"{told} holds {tag!r}: give each tag 1 to {LONGEST_TAG} characters.")
    project = logging.wandb_project
    if len(project) > LONGEST_PROJECT or set(project) & set(NOT_IN_PROJECT):
        raise UserError(
            f"logging.wandb_project is {project!r}: give it at most {LONGEST_PROJECT} characters, none of them of "
            f"{NOT_IN_PROJECT}"
        )


def resolve_mode(mode: str) -> str:
    """``online``, ``offline`` or ``disabled``. ``auto`` is what WANDB_MODE says, else online where there is a login,
    else offline; finding out asks no network. Raises UserError for a mode that does not exist."""
    if mode not in MODES:
        raise UserError(f"logging.wandb_mode is {mode!r}; choose one of {', '.join(MODES)}.")
    if mode != "auto":
        return mode
    asked = os.environ.get("WANDB_MODE")
    if asked:
        if asked not in MODES[1:]:
            raise UserError(f"The environment's WANDB_MODE is {asked!r}; set it to one of {', '.join(MODES[1:])}.")
        return asked
    return "online" if has_login() else "offline"


def has_login() -> bool:
    """Whether a key for the W&B server lies in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = os.environ.get("NETRC")
    files = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            if file.is_file():
                return netrc.netrc(file).hosts.get(host) is not None
        except (netrc.NetrcParseError, OSError) as error:
            raise UserError(f"{file} cannot be read ({error}); mend it or set logging.wandb_mode=offline.") from error
    return False


class WandbRun:
    """One W&B run, in this process from here to ``finish``.

    Resuming goes on under the id kept in ``state/wandb_run_id``. Rows that W&B does not hold yet are sent first: online
    what a crash kept from being sent; offline everything, since an offline run file cannot be continued. The offline
    files of earlier attempts, whose rows are all in the new one, are removed, so that ``wandb sync`` uploads each row
    once. Online, steps repeated after a resume keep their first values: W&B does not overwrite history.
    """

    def __init__(self, config: Config, output_dir: Path, mode: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        self._shown: dict[str, list[list[Any]]] = {}
        run_id = _run_id(output_dir / "state" / "wandb_run_id")
        folder = output_dir / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        earlier = list(folder.glob(f"offline-run-*-{run_id}"))
        with ExitStack() as on_failure:
            on_failure.callback(wandb.teardown, exit_code=1)
            self._run = self._start(config, output_dir, mode, run_id)
            for index in range(self._run.step, len(rows)):
                self.log(index, rows[index])
            on_failure.pop_all()
        if mode == "offline":
            for old in earlier:
                shutil.rmtree(old)

    def _start(self, config: Config, output_dir: Path, mode: str, run_id: str) -> Any:
        import wandb

        named = config.logging
        settings = _quiet_settings(wandb)
        wandb.setup(settings=settings)  # before init, whose login step would print
        try:
            return wandb.init(
                project=named.wandb_project,
                entity=named.wandb_entity,
                id=run_id,
                name=named.wandb_name or f"{config.experiment}-{run_id}",
                group=named.wandb_group,
                tags=named.wandb_tags or None,
                dir=output_dir,
                mode="online" if mode == "online" else "offline",
                resume="allow" if mode == "online" else None,
                config=shown_config(config),
                settings=settings,
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(f"W&B did not start ({reason}); log in again or set logging.wandb_mode=offline.") from error

    def log(self, index: int, row: Mapping[str, Any]) -> None:
        """Send one row; ``commit`` so that a crash right after it does not lose it."""
        self._run.log(dict(row), step=index, commit=True)

    def show_between(self, rounds: Sequence[Mapping[str, Any]]) -> None:
        """A table a round, with a row for each pattern found, of what
        :func:`cool_rlhf.tracking.between.between_rounds` gives. One that has not changed is not sent again."""
        import wandb

        for round in rounds:
            name, rows = f"between_rounds/round_{round['round']}", [_between(found) for found in round["findings"]]
            if rows and self._shown.get(name) != rows:
                self._run.summary[name] = wandb.Table(columns=list(BETWEEN), data=rows)
                self._shown[name] = rows

    def show_report(self, path: Path) -> None:
        import wandb

        self._run.summary["report"] = wandb.Html(str(path), inject=False)

    def finish(self, exit_code: int) -> None:
        """Send what is left and end W&B's own process."""
        import wandb

        try:
            self._run.finish(exit_code=exit_code)
        finally:
            wandb.teardown(exit_code=exit_code)


def _between(found: Mapping[str, Any]) -> list[Any]:
    verdict = found["verdict"] or {}
    right = [verdict.get(when) for when in ("held_out_before", "held_out")]
    told = [found[name] for name in ("pattern", "description", "domain")]
    return [*told, *found["shares"], found["effect"], *right, found["outcome"]]


def _quiet_settings(wandb: Any) -> Any:
    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_TIMEOUT,
        finish_timeout=FINISH_TIMEOUT,
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _run_id(path: Path) -> str:
    if path.exists():
        return path.read_text(encoding="ascii").strip()
    run_id = secrets.token_hex(4)
    write_atomically(path, f"{run_id}\n".encode("ascii"))
    return run_id
