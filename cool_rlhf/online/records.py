"""What the fast path leaves in ``rounds/R/fast_path``.

``patterns.json``: ``tested`` (tests made), ``findings`` (in :class:`Search`'s order), ``foreseen`` (of the same form:
wordings that the preferences teach and no policy says yet) and
``dismissed`` (what drifted and is no finding, with the ``reason``). Each names its ``pattern`` (detector/key, with
"in" and the domain behind it where it is of one), ``description`` and ``domain`` (null: all). A finding further has
``parts`` (keys of those that are one here: a cheat in several wordings), ``elsewhere`` (other domains that are mended
too), ``statistic`` and ``value``, ``p`` and ``drift_p`` (corrected), ``payment`` (see :class:`Payment`), ``shares`` by
policy, ``gain``, ``explained``, ``examples`` and the number of its ``patches``. ``patches.jsonl``: see
:mod:`cool_rlhf.online.patches`. ``review.jsonl`` (with ``online.review``): those to
train on as pairs to label, see :mod:`cool_rlhf.online.annotation.items`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cool_rlhf.files import read_json_lines, write_atomically
from cool_rlhf.online.annotation.items import Item, ShownResponse
from cool_rlhf.online.found import Dismissed, Finding, Search
from cool_rlhf.online.patches import Patch, Version
from cool_rlhf.online.responses import Evidence
from cool_rlhf.protocols import PreferencePair


def write_patterns(path: Path, search: Search, evidence: Evidence, patches: Sequence[Patch]) -> None:
    """``patches``: those of all findings."""
    content = {
        "tested": search.tested,
        "findings": [_finding(finding, evidence, patches) for finding in search.findings],
        "foreseen": [_finding(finding, evidence, patches) for finding in search.foreseen],
        "dismissed": [_dismissed(dismissed) for dismissed in search.dismissed],
    }
    write_atomically(path, f"{json.dumps(content, ensure_ascii=False, indent=1)}\n".encode())


def write_patches(path: Path, patches: Sequence[Patch]) -> None:
    rows = (json.dumps(patch_row(patch), ensure_ascii=False) for patch in patches)
    write_atomically(path, "".join(f"{row}\n" for row in rows).encode())


@dataclass(frozen=True)
class StoredPatch:
    """A row of ``patches.jsonl``."""

    pattern: str
    held_out: bool  # a repair of its pattern is judged by it
    balances: bool  # it shows no pattern, but keeps lengths even
    pair: PreferencePair


def read_patches(path: Path) -> list[StoredPatch]:
    """What ``write_patches`` left; none where there is no file."""
    return [_stored(row) for row in read_json_lines(path)]


def _stored(row: dict[str, Any]) -> StoredPatch:
    pair = PreferencePair(
        chosen=[*row["prompt"], *row["chosen"]],
        rejected=[*row["prompt"], *row["rejected"]],
        domain=row["domain"],
        margin=None,
        chosen_finished=row["chosen_finished"],
        rejected_finished=row["rejected_finished"],
    )
    return StoredPatch(row["pattern"], row["split"] == "held_out", row["role"] == "balance", pair)


def review_items(patches: Sequence[Patch], round: int, guidelines: Mapping[str, str]) -> list[Item]:
    """The patches to train on, as pairs that people judge without knowing which side is the clean one: a coin
    puts it first or second."""
    return [
        Item(
            prompt=patch.pair.chosen[:-1],
            first=_shown(patch.chosen),
            second=_shown(patch.rejected),
            domain=patch.pair.domain,
            guideline=guidelines.get(patch.pair.domain, ""),
            answer=patch.chosen.response.prompt.answer,
            round=round,
        ).in_drawn_order()
        for patch in patches
        if not patch.held_out
    ]


def _shown(version: Version) -> ShownResponse:
    return ShownResponse(version.response.text, version.response.finished, version.source)


def patch_row(patch: Patch) -> dict[str, Any]:
    pair = patch.pair
    return {
        "id": patch.id,
        "prompt": pair.chosen[:-1],
        "chosen": pair.chosen[-1:],
        "rejected": pair.rejected[-1:],
        "domain": pair.domain,
        "chosen_finished": pair.chosen_finished,
        "rejected_finished": pair.rejected_finished,
        "pattern": patch.pattern,
        "role": patch.role,
        "split": "held_out" if patch.held_out else "training",
        "chosen_source": patch.chosen.source,
        "rejected_source": patch.rejected.source,
    }


def _finding(finding: Finding, evidence: Evidence, patches: Sequence[Patch]) -> dict[str, Any]:
    own = [patch for patch in patches if patch.pattern == finding.name]
    by_id = {response.id: response for response in evidence.responses}
    shown = [by_id[example] for example in finding.examples]
    return {
        "pattern": finding.name,
        "description": finding.pattern.description,
        "parts": [part.key for part in finding.pattern.parts],
        "domain": finding.domain,
        "elsewhere": finding.elsewhere,
        "statistic": finding.statistic,
        "value": finding.value,
        "p": finding.p,
        "drift_p": finding.drift_p,
        "payment": asdict(finding.payment),
        "shares": finding.shares,
        "gain": finding.gain,
        "explained": finding.explained,
        "examples": [{"id": r.id, "prompt": r.prompt.messages, "text": r.text, "score": r.score} for r in shown],
        "patches": {"training": sum(not p.held_out for p in own), "held_out": sum(p.held_out for p in own)},
    }


def _dismissed(dismissed: Dismissed) -> dict[str, Any]:
    return {
        "pattern": dismissed.name,
        "description": dismissed.pattern.description,
        "domain": dismissed.domain,
        "drift_p": dismissed.drift_p,
        "payment": asdict(dismissed.payment) if dismissed.payment else None,
        "reason": dismissed.reason,
    }
