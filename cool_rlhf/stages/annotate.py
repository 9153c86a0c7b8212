"""stage=annotate: labels for the pairs that a run has left, from people on a page, from a rule, from a judge, or from a
file of another tool."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from cool_rlhf.config import AnnotateConfig, Config
from cool_rlhf.ending import Ending
from cool_rlhf.folders import round_folders
from cool_rlhf.online.annotation.arrived import write_labels
from cool_rlhf.online.annotation.exchange import (
    export_label_studio,
    export_trl,
    import_label_studio,
    import_trl,
)
from cool_rlhf.online.annotation.items import pair_files, read_pairs_to_label
from cool_rlhf.online.annotation.labellers import Labeller, RuleLabeller, label_with
from cool_rlhf.online.annotation.store import FILE_NAME, Store
from cool_rlhf.protocols import UserError
from reward.conditions import FILE_NAME as CONDITIONS_FILE
from reward.conditions import Conditions

if TYPE_CHECKING:
    from cool_rlhf.online.annotation.judge import JudgeLabeller


def annotate(config: Config, ending: Ending) -> None:
    """Label the pairs that the rounds have left, and write ``rounds/R/slow_path/labels.jsonl``. Raises UserError where
    there are none."""
    output_dir = Path(config.output_dir)
    if not pair_files(output_dir):
        raise UserError(
            f"output_dir {output_dir} holds no rounds/R/slow_path/pairs.jsonl: name the folder of a run that has "
            "finished a round"
        )
    conditions = run_conditions(output_dir)
    if conditions is not None:
        config = replace(config, conditions=dict(conditions))
    settings = config.annotate
    path = output_dir / FILE_NAME
    with Store(path, overlap=settings.overlap, lease_seconds=60 * settings.lease_minutes) as store:
        pairs = RunPairs(config, output_dir, store)
        pairs.take_in()
        ending.running(output_dir)
        if settings.import_labels or settings.export_labels:
            _exchange(settings, pairs, conditions)
        elif settings.labeller == "people":
            _serve_page(config, pairs)
        else:
            _label_all(make_labeller(config, settings.labeller), pairs)


def run_conditions(output_dir: Path) -> Mapping[str, str] | None:
    """The conditions of the run in ``output_dir``, whatever the settings now: by its config, else by its newest reward
    model. None where it has left neither, as where pairs alone were copied: nothing says which domains there are."""
    settings = output_dir / "config.yaml"
    try:
        tree = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.exists() else None
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{settings} is broken ({said}): put back a copy of it, or take it away") from error
    if isinstance(tree, Mapping) and isinstance(tree.get("conditions"), Mapping):
        return {str(domain): str(prompt) for domain, prompt in tree["conditions"].items()}
    files = [folder.reward_model / CONDITIONS_FILE for folder in reversed(round_folders(output_dir))]
    found = next((file for file in files if file.exists()), None)
    return Conditions.load(found).prompts if found else None


def make_labeller(config: Config, kind: str) -> Labeller:
    """``kind``: rule or judge. Raises UserError for a rule that is not there."""
    settings = config.annotate
    if kind == "rule":
        from cool_rlhf.rules.loading import load_rule

        score = load_rule(settings.rule, "annotate.rule")
        return RuleLabeller(score, settings.rule, noise=settings.rule_noise, seed=config.seed)
    if kind == "judge":
        return make_judge(config)
    raise ValueError(f"{kind!r} labels nothing by itself: rule and judge do")


def make_judge(config: Config) -> JudgeLabeller:
    """The judge that ``annotate.judge`` names; nothing is asked of it yet."""
    from cool_rlhf.online.annotation.judge import Endpoint, JudgeLabeller

    judge = config.annotate.judge
    assert judge.model is not None, "checked with the config"
    key = os.environ.get(judge.key_variable, "") or "none"  # the client wants one where the server does not
    return JudgeLabeller(Endpoint(judge.url, judge.model, key, judge.timeout, judge.requests, judge.temperature))


def _exchange(settings: AnnotateConfig, pairs: RunPairs, domains: Collection[str] | None) -> None:
    """Take labels in, then write all out. ``domains``: those that the run knows, None where nobody can tell."""
    folder = settings.export_labels and Path(settings.export_labels).parent
    if folder and not folder.exists():
        raise UserError(f"annotate.export_labels: there is no folder {folder}: make it or name another")
    if settings.import_labels:
        source = Path(settings.import_labels)
        if source.suffix == ".json":
            count = import_label_studio(pairs.store, source, domains, pairs.newest_round, pairs.conditions)
        else:
            count = import_trl(pairs.store, source, source.name, domains=domains, guidelines=pairs.conditions)
        print(f"new labels from {source}: {count}; in {pairs.store.path}: {len(pairs.store.labels())}")
    pairs.keep_up()
    if settings.export_labels:
        target = Path(settings.export_labels)
        is_task_file = target.suffix == ".json"
        try:
            count = export_label_studio(pairs.store, target) if is_task_file else export_trl(pairs.store, target)
        except OSError as error:
            raise UserError(f"annotate.export_labels: {target} cannot be written ({error.strerror})") from error
        kind = "tasks with their labels" if is_task_file else "pairs of which most prefer one side"
        print(f"{kind} in {target}: {count}")


def _label_all(labeller: Labeller, pairs: RunPairs) -> None:
    print(f"{labeller.name} labels the pairs that it has not judged yet", flush=True)
    try:
        count = label_with(labeller, pairs.store)
    finally:
        pairs.keep_up()
    print(f"new labels: {count}; in {pairs.store.path}: {len(pairs.store.labels())}")


def _serve_page(config: Config, pairs: RunPairs) -> None:
    from cool_rlhf.online.annotation.page import annotation_app
    from cool_rlhf.online.annotation.server import HOST, bind, serve

    token = config.annotate.token or secrets.token_urlsafe(24)
    bound = bind(config.annotate.port)
    port = bound.getsockname()[1]
    print(f"pairs to label: {len(pairs.store.items())}; the page is http://{HOST}:{port}/?token={token}", flush=True)
    print("Whoever has this address can label. Ctrl-C ends it; every answer is kept as it is given.", flush=True)
    serve(annotation_app(pairs.store, token, f"cool_rlhf_{port}"), bound, pairs.keep_up)
    print(f"labels in {pairs.store.path}: {len(pairs.store.labels())}")


class RunPairs:
    """The files of a run beside the store: pairs are taken in from them, labels written out to them."""

    def __init__(self, config: Config, output_dir: Path, store: Store) -> None:
        self.store = store
        self.conditions = config.conditions
        self._output_dir = output_dir
        self._read: dict[Path, int] = {}
        self._written: tuple[int, int] | None = None

    @property
    def newest_round(self) -> int:
        return max(folder.round for folder in round_folders(self._output_dir))

    def take_in(self) -> int:
        """Add the items of files that are new or have changed; returns how many."""
        added = 0
        for round, path in pair_files(self._output_dir):
            changed = path.stat().st_mtime_ns
            if self._read.get(path) != changed:
                added += self.store.add_items(read_pairs_to_label(path, round, self.conditions))
                self._read[path] = changed
        return added

    def keep_up(self) -> None:
        """Take new pairs in, since the run may go on meanwhile, and write the labels out if there are new ones."""
        self.take_in()
        mark = self.store.mark()
        if mark != self._written:
            write_labels(self.store, self._output_dir)
            self._written = mark
