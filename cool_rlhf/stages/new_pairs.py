"""What the rounds so far add to the preferences: patches of what a policy cheated with, and labels."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from cool_rlhf.config import Config
from cool_rlhf.data.identity import judges_repairs, pair_key, prompt_key
from cool_rlhf.data.messages import with_system_turn, without_system_turn
from cool_rlhf.data.rows import DEFAULT_DOMAIN
from cool_rlhf.folders import RoundFolder
from cool_rlhf.online.annotation.arrived import labelled
from cool_rlhf.online.annotation.items import pair_files, read_pairs_to_label
from cool_rlhf.online.annotation.store import FILE_NAME as STORE_FILE
from cool_rlhf.online.annotation.store import Store
from cool_rlhf.online.attempts import repetitions
from cool_rlhf.online.lessons import pair_id
from cool_rlhf.online.records import StoredPatch, read_patches
from cool_rlhf.protocols import PreferencePair
from cool_rlhf.stages.inputs import Inputs

logger = logging.getLogger(__name__)

FATES = ("kept", "rolled_back", "not_judged")  # of a pattern that a repair has tried, as its record has them
JUDGES_REPAIRS = "prompt is one that repairs are judged on"


@dataclass(frozen=True)
class MendedPattern:
    """A pattern that earlier rounds mended, enough or in part."""

    pairs: Sequence[PreferencePair]  # held out: they show whether it stays so
    right: float = 1.0  # share of them that was, each after its round's repair; 1 where its record says nothing


@dataclass(frozen=True)
class NewPairs:
    """What a round adds to the preferences. ``patches``: those not tried before, by pattern. ``kept``: those to train
    on that earlier rounds kept, each as often as then. ``labels``: every one that has arrived, of other pairs than
    patches, and of prompts that may teach (:func:`_teaching`). ``mended``: the patterns that earlier rounds kept.
    ``learnt``: the labels that earlier rounds trained on (:func:`judgements`)."""

    patches: Mapping[str, Sequence[StoredPatch]]
    kept: Sequence[PreferencePair]
    labels: Sequence[PreferencePair]
    mended: Mapping[str, MendedPattern] = field(default_factory=dict)
    learnt: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything that no earlier round has trained on. Where there is, all of it is trained on."""
        return bool(self.patches) or not judgements(self.labels).items() <= self.learnt.items()

    def training(self, times: Mapping[str, int]) -> list[PreferencePair]:
        """Those to train on, with the round's own patches of the patterns in ``times``, each as often as it says."""
        own = [
            patch.pair
            for name, count in times.items()
            for patch in self.patches[name]
            if not patch.held_out
            for _ in range(count)
        ]
        return [*own, *self.kept, *self.labels]


def new_pairs(inputs: Inputs, round: int) -> NewPairs:
    """What has been gathered by the end of ``round``.

    With ``online.review`` those patches to train on count that were judged, see :func:`_reviewed`. A pattern none of
    whose patches anybody had judged when its round ended is tried in a later one.
    """
    config = inputs.config
    output_dir, review = Path(config.output_dir), config.online.review
    folders = [RoundFolder(output_dir, past) for past in range(round + 1)]
    repairs = [_repair(folder.repair) for folder in folders[:round]]
    labels, ties = _judged(output_dir / STORE_FILE, config.conditions)
    patches: dict[str, list[StoredPatch]] = {}
    kept: list[PreferencePair] = []
    judging: dict[str, list[tuple[PreferencePair, float]]] = defaultdict(list)  # and the share that was right then
    for past, folder in enumerate(folders):
        stored = read_patches(folder.patches)
        counted = _reviewed(stored, labels, ties) if review else stored
        for patch in counted:
            fate = _fate(patch.pattern, repairs[past:])
            if fate == "kept" and patch.held_out:
                judging[patch.pattern].append((patch.pair, _right_after(patch.pattern, repairs[past:])))
            elif fate == "kept":
                kept += [patch.pair] * _times(patch.pattern, repairs[past:])
            elif fate is None and (review or past == round):
                patches.setdefault(patch.pattern, []).append(patch)
        if review:
            for patch in counted:
                labels.pop(pair_id(patch.pair), None)  # it counts as a patch, which may be rolled back
    learnt: dict[str, str] = {}
    for repair in repairs:
        learnt |= repair.get("labels", {})
    mended = {
        name: MendedPattern([pair for pair, _ in pairs], fmean(right for _, right in pairs))
        for name, pairs in judging.items()
    }
    return NewPairs(patches, kept, _teaching(labels, inputs), mended, learnt)


def _fate(pattern: str, repairs: Iterable[Mapping[str, Any]]) -> str | None:
    """What the first of ``repairs`` that tried ``pattern`` made of it: ``kept``, ``rolled_back``, or ``not_judged``
    where it had nothing to judge it by. None where none has tried it."""
    tried = (fate for repair in repairs for fate in FATES if pattern in repair.get(fate, []))
    return next(tried, None)


def _times(pattern: str, repairs: Iterable[Mapping[str, Any]]) -> int:
    """How many times the first repair that kept the pattern learnt its patches, as later ones do."""
    return next((repetitions(repair).get(pattern, 1) for repair in repairs if pattern in repair.get("kept", [])), 1)


def _right_after(pattern: str, repairs: Iterable[Mapping[str, Any]]) -> float:
    """The share of the pattern's held-out pairs that were right after the first of ``repairs`` that tried it."""
    verdicts = (repair.get("verdicts", {}) for repair in repairs)
    return next((found[pattern]["held_out"] for found in verdicts if pattern in found), 1.0)


def _teaching(labels: Mapping[str, PreferencePair], inputs: Inputs) -> list[PreferencePair]:
    """``labels``, by the ids of their pairs, but for those of prompts that teach no reward model: those that repairs
    are judged on, and those that are tested or held out. A round chooses no pair of the latter, but pairs of any may
    be imported. The log says how many are left out."""
    system = inputs.config.sampling.system_prompt
    chosen = set(_chosen_ids(inputs.config))
    held = inputs.kept_from_reward_models if labels.keys() - chosen else {}
    teaching: list[PreferencePair] = []
    left_out: Counter[str] = Counter()
    for name, label in labels.items():
        prompt = label.chosen[:-1]
        reason = None if name in chosen else held.get(prompt_key(without_system_turn(prompt, system)))
        if judges_repairs(with_system_turn(prompt, system)):
            reason = JUDGES_REPAIRS
        if reason is None:
            teaching.append(label)
        else:
            left_out[reason] += 1
    if left_out:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        logger.warning("labels that teach nothing: %d (%s)", left_out.total(), reasons)
    return teaching


def _chosen_ids(config: Config) -> Iterator[str]:
    """Of the pairs that the rounds have left to be labelled."""
    for round, file in pair_files(Path(config.output_dir)):
        yield from (item.id for item in read_pairs_to_label(file, round, config.conditions))


def judgements(labels: Iterable[PreferencePair]) -> dict[str, str]:
    """By the pair's id which side is preferred: the ``first`` or the ``second`` of the two in a fixed order, whichever
    way round they are stored."""
    return {pair_id(label): ("first", "second")[_is_swapped(label)] for label in labels}


def _is_swapped(pair: PreferencePair) -> bool:
    return pair_key(pair.chosen, pair.rejected, pair.chosen_finished, pair.rejected_finished)[1]


def _reviewed(
    patches: Sequence[StoredPatch], labels: Mapping[str, PreferencePair], ties: Collection[str]
) -> list[StoredPatch]:
    """Those to train on that were judged, each as it was judged, and those that judge the same patterns.

    A rule's tie is for the patch: it sees only how well the task is done, which the pattern leaves as it is. A label
    against a patch stands beside those for it and is kept or rolled back with them: alone it would teach the pattern.
    Where more are against the patches that show a pattern than for them, people want it, and its labels are labels like
    others. Patches that only keep lengths even say nothing of that.
    """
    judged: list[StoredPatch] = []
    balance: Counter[str] = Counter()  # of each pattern, labels for what shows it being rejected less labels against
    for patch in patches:
        as_judged = patch.pair if pair_id(patch.pair) in ties else labels.get(pair_id(patch.pair))
        if not patch.held_out and as_judged is not None:
            judged.append(replace(patch, pair=as_judged))
            if not patch.balances:
                balance[patch.pattern] += 1 if as_judged == patch.pair else -1
    counted = {patch.pattern for patch in judged if not patch.balances and balance[patch.pattern] >= 0}
    held_out = [patch for patch in patches if patch.held_out]
    return [patch for patch in (*judged, *held_out) if patch.pattern in counted]


def _judged(path: Path, conditions: Collection[str]) -> tuple[dict[str, PreferencePair], set[str]]:
    """By id the pairs of which most prefer one side, and the ids of those whose sides a rule finds equal; all of
    domains that have a condition, as nothing else can be trained on."""
    if not path.exists():
        return {}, set()
    with Store(path) as store:
        every = labelled(store)
    entries = [entry for entry in every if entry.item.domain in {*conditions, DEFAULT_DOMAIN}]
    if len(entries) < len(every):
        unknown = sorted({entry.item.domain for entry in every} - {*conditions, DEFAULT_DOMAIN})
        logger.warning(
            "left out: %d labelled pairs of domains that have no condition (%s) in %s",
            *(len(every) - len(entries), ", ".join(unknown), path),
        )
    preferred = {entry.item.id: entry.item.preference(entry.winner) for entry in entries if entry.winner is not None}
    return preferred, {entry.item.id for entry in entries if entry.tied_by_rule}


def _repair(path: Path) -> dict[str, Any]:
    """The record of a round's repair; an empty one where the round brought nothing new."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
