"""Preferences that teach what a policy cheats with: a repair that replays them undoes itself, and judged by them the
mended model is wrong.

``rounds/R/fast_path/lessons.json``: pattern (detector/key) → ids of the pairs whose chosen side shows it and whose
rejected one does not, of those that repairs draw from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from cool_rlhf.data.identity import judged_pair_key
from cool_rlhf.online.finding import Finding
from cool_rlhf.online.responses import SFT, Evidence, Response
from cool_rlhf.protocols import PreferencePair, Prompt
from cool_rlhf.tracking.rows import write_atomically

FILE_NAME = "lessons.json"


def lessons(findings: Sequence[Finding], evidence: Evidence, pairs: Iterable[PreferencePair]) -> dict[str, list[str]]:
    """Of each finding the ids of ``pairs`` that teach it, in the domains it covers. A pattern that no edit adds to a
    text or takes out of it is read off numbers, not off the text, and has none."""
    written = sum(len(response.text) for response in evidence.responses)
    by_letter = sum(response.tokens for response in evidence.responses) / max(1, written)
    found: dict[str, list[str]] = {finding.name: [] for finding in findings}
    textual = [finding for finding in findings if finding.pattern.add or finding.pattern.remove]
    for pair in pairs:
        chosen, rejected = (_response(pair, side, by_letter) for side in (True, False))
        for finding in textual:
            shows = finding.pattern.shows
            if finding.covers(pair.domain) and shows(chosen) and not shows(rejected):
                found[finding.name].append(pair_id(pair))
    return found


def write_lessons(path: Path, found: dict[str, list[str]]) -> None:
    write_atomically(path, f"{json.dumps(found, ensure_ascii=False, indent=1)}\n".encode())


def read_lessons(paths: Iterable[Path]) -> set[str]:
    """Ids of all pairs that teach any pattern of these files; a round without a fast path has left none."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    return {pair for file in files for pairs in file.values() for pair in pairs}


def pair_id(pair: PreferencePair) -> str:
    """The id of the item that people judge the pair as (:attr:`cool_rlhf.online.annotation.items.Item.id`)."""
    return judged_pair_key(pair.chosen, pair.rejected, pair.chosen_finished, pair.rejected_finished, pair.domain)


def _response(pair: PreferencePair, chosen: bool, tokens_by_letter: float) -> Response:
    """A side of a pair as detectors look at it; its tokens go by its letters, and it has no score and no policy."""
    conversation, finished = (pair.chosen, pair.chosen_finished) if chosen else (pair.rejected, pair.rejected_finished)
    text = conversation[-1]["content"]
    return Response(
        id="",
        prompt=Prompt("", conversation[:-1], pair.domain, None),
        text=text,
        finished=finished,
        tokens=max(1, round(len(text) * tokens_by_letter)),
        policy=SFT,
        round=-1,
        score=float("nan"),
        gold=None,
        kl=None,
        hidden=None,
    )
