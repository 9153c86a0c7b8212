"""Preferences that teach what a policy cheats with: a repair that replays them undoes itself, and judged by them the
mended model is wrong. Those that teach the contrary would hide what it loses: a model that rejects whatever shows the
pattern has all of them right.

``rounds/R/fast_path/lessons.json``: pattern (detector/key) → ids of the pairs, of those that repairs draw from, whose
chosen side shows it and whose rejected one does not, ``teaching``, and of those where it is the other way round,
``contrary``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cool_rlhf.data.identity import judged_pair_key
from cool_rlhf.files import write_atomically
from cool_rlhf.online.found import Finding
from cool_rlhf.online.responses import SFT, Evidence, Response
from cool_rlhf.protocols import PreferencePair, Prompt


@dataclass(frozen=True)
class Lessons:
    """Ids of pairs, as :func:`pair_id` gives them."""

    teaching: frozenset[str] = frozenset()
    contrary: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        return self.teaching | self.contrary


def lessons(
    findings: Sequence[Finding],
    evidence: Evidence,
    pairs: Iterable[PreferencePair],
    paying: Mapping[str, Sequence[str]],
) -> dict[str, Lessons]:
    """Of each finding those of ``pairs`` that teach it or the contrary, in the domains it covers and under the
    conditions that these are paid by (``paying``, by domain). A pattern that no
    edit adds to a text or takes out of it is read off numbers, not off the text, and has none."""
    written = sum(len(response.text) for response in evidence.responses)
    by_letter = sum(response.tokens for response in evidence.responses) / max(1, written)
    teaching: dict[str, set[str]] = defaultdict(set)
    contrary: dict[str, set[str]] = defaultdict(set)
    textual = [finding for finding in findings if finding.pattern.add or finding.pattern.remove]
    under = {
        finding.name: {condition for domain in paying if finding.covers(domain) for condition in paying[domain]}
        for finding in textual
    }
    for pair in pairs:
        chosen, rejected = (_response(pair, side, by_letter) for side in (True, False))
        for finding in textual:
            shows = finding.pattern.shows
            covered = finding.covers(pair.domain) or pair.domain in under[finding.name]
            if covered and shows(chosen) != shows(rejected):
                (teaching if shows(chosen) else contrary)[finding.name].add(pair_id(pair))
    names = (finding.name for finding in findings)
    return {name: Lessons(frozenset(teaching[name]), frozenset(contrary[name])) for name in names}


def write_lessons(path: Path, found: Mapping[str, Lessons]) -> None:
    written = {
        name: {"teaching": sorted(each.teaching), "contrary": sorted(each.contrary)} for name, each in found.items()
    }
    write_atomically(path, f"{json.dumps(written, ensure_ascii=False, indent=1)}\n".encode())


def read_lessons(paths: Iterable[Path]) -> Lessons:
    """Of all patterns of these files; a round without a fast path has left none."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    taught = [pairs for file in files for pairs in file.values()]
    return Lessons(*(frozenset(id for pairs in taught for id in pairs[kind]) for kind in ("teaching", "contrary")))


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
