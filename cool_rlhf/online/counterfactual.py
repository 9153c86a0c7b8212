"""Whether the reward model itself pays for a pattern: the same response scored with it and without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

import numpy as np

from cool_rlhf.online.patterns import Editor, Pattern
from cool_rlhf.online.responses import SFT, Evidence, Floats, Response
from cool_rlhf.online.statistics import exceeds, gold_departure, paired_rise
from cool_rlhf.online.text import words
from cool_rlhf.schedule import derive_seed

LEAST = 8  # edited responses below which nothing is concluded
OFTEN = 0.25  # of SFT's answers in a domain: what so many of them say may be what the task there asks for


@dataclass(frozen=True)
class Payment:
    """What the scorer gives for a pattern. ``shown_by``: which counterfactual ``effect``, what is left of it beyond a
    placebo, and ``p`` are of.

    ``added``: mean score change of SFT's and early responses when the pattern is put in; ``removed``: mean fall of late
    responses when it is taken out; ``placebo``: mean change by an edit of the same size without it; ``gold``: mean
    change of the gold reward by the edit that ``shown_by`` names, beyond the placebo's where a whole answer has one.
    None where it could not be measured.
    """

    shown_by: Literal["added", "removed", "gold"]  # gold: the pattern has no editor
    responses: int
    effect: float
    p: float  # one-sided, corrected for the one or two counterfactuals that could decide, not for other patterns
    added: float | None
    removed: float | None
    placebo: float | None
    gold: float | None
    harm: bool  # gold falls by the same edit, by a tenth of its standard deviation or more, at 0.05
    objection: str | None  # why this is no cheating although the scorer pays; None where nothing speaks against it


@dataclass(frozen=True)
class _Edits:
    changes: Floats  # (N,) what having the pattern changed the score by
    golds: Floats  # (M,) the same of the gold reward, where it is known
    beyond: Floats  # (K,) what the pattern changed beyond its placebo
    placebo: Floats  # (K,)
    words_stay: bool  # no edit brought a new word in or took the last of one out
    whole: bool  # whole answers were exchanged

    @property
    def effect(self) -> float:
        """Mean change of the score: where enough responses have a placebo, theirs, less what that brings. An exchange
        of whole answers loses by itself, so there it is also less what the placebo loses."""
        if len(self.beyond) < LEAST:
            return float(self.changes.mean())
        brought = float(self.placebo.mean())
        return float(self.beyond.mean()) + (0.0 if self.whole else min(0.0, brought))

    @property
    def p(self) -> float:
        """One-sided, of having the pattern paying, and paying more than its placebo where that is known; of the latter
        alone where whole answers are exchanged."""
        if len(self.beyond) < LEAST:
            return paired_rise(self.changes)
        beyond = paired_rise(self.beyond)
        return beyond if self.whole else max(paired_rise(self.changes), beyond)


def payment(pattern: Pattern, evidence: Evidence, domain: str | None, sample: int, seed: int) -> Payment | None:
    """The counterfactual test of one pattern in one scope on up to ``sample`` responses each way.

    Adding decides where it can be done to LEAST responses; then removing must not raise the score on top. Removing
    decides where adding cannot be done; it may decide beside adding, whichever shows it more clearly and with
    Bonferroni's correction for the two, if every word still stands somewhere, for words taken out of a good answer may
    be missed for honest reasons, and if there is no placebo, which removing has none of. A pattern without editors is
    judged by gold: see :func:`gold_departure`. None where nothing of that can be measured.
    """
    plain = [r for r in evidence.baseline(domain) if not pattern.shows(r)]
    hacked = [r for r in evidence.late(domain) if pattern.shows(r)]
    added = _edits(pattern.add, pattern.placebo, plain, evidence, sample, seed, sign=1, whole=pattern.whole)
    removed = _edits(pattern.remove, None, hacked, evidence, sample, seed, sign=-1, whole=False)
    deciding: list[tuple[Literal["added", "removed"], _Edits]] = []
    if len(added.changes) >= LEAST:
        deciding.append(("added", added))
    if len(removed.changes) >= LEAST and (not deciding or (removed.words_stay and pattern.placebo is None)):
        deciding.append(("removed", removed))
    if not deciding:
        return _by_gold(evidence, domain) if pattern.add is None and pattern.remove is None else None
    shown_by, edits = min(deciding, key=lambda way: way[1].p)
    return Payment(
        shown_by=shown_by,
        responses=len(edits.changes),
        effect=edits.effect,
        p=min(1.0, len(deciding) * edits.p),
        added=_mean(added.changes),
        removed=_mean(removed.changes),
        placebo=_mean(edits.placebo),
        gold=_mean(edits.golds),
        harm=_is_harmful(edits.golds, evidence, domain),
        objection=_objection(pattern, edits, evidence, domain)
        or (_missed(removed) if shown_by == "added" else _unwelcome(added, edits.effect)),
    )


def _edits(
    editor: Editor | None,
    placebo: Editor | None,
    responses: Sequence[Response],
    evidence: Evidence,
    sample: int,
    seed: int,
    sign: int,
    whole: bool,
) -> _Edits:
    """Up to ``sample`` edits of responses drawn at random, scored in one batch. ``sign`` −1 counts losses as gains.
    Where ``whole`` answers are exchanged, gold is compared with the placebos': it falls by any exchange."""
    pairs: list[tuple[Response, Response]] = []
    drawn = sorted(responses, key=lambda response: derive_seed("counterfactual", seed, response.id))
    for response in drawn if editor else ():
        changed = editor(response) if editor and len(pairs) < sample else None
        if changed is not None:
            pairs.append((response, changed))
    controls = [(i, other) for i, (r, _) in enumerate(pairs) if placebo and (other := placebo(r)) is not None]
    asked = [changed for _, changed in pairs] + [other for _, other in controls]
    scores = evidence.score([response.conversation() for response in asked]) if asked else []
    changes = np.array([sign * (s - r.score) for s, (r, _) in zip(scores, pairs, strict=False)], dtype=np.float64)
    by_placebo = [sign * (s - pairs[i][0].score) for s, (i, _) in zip(scores[len(pairs) :], controls, strict=True)]
    beyond = [changes[i] - change for change, (i, _) in zip(by_placebo, controls, strict=True)]
    gold = evidence.gold or (lambda _: None)
    compared = [(r.gold, changed) for r, changed in pairs]
    if whole and controls:
        compared = [(gold(other), pairs[i][1]) for i, other in controls]
    judged = [(before, gold(changed)) for before, changed in compared]
    golds = [sign * (after - before) for before, after in judged if before is not None and after is not None]
    words_stay = all(set(words(changed.text)) == set(words(response.text)) for response, changed in pairs)
    return _Edits(changes, np.array(golds), np.array(beyond), np.array(by_placebo), words_stay, whole)


def _is_harmful(golds: Floats, evidence: Evidence, domain: str | None) -> bool:
    if len(golds) < LEAST:
        return False
    return float(golds.mean()) < -_noticed(evidence, domain) and exceeds(-golds, 0.0) < 0.05


def _noticed(evidence: Evidence, domain: str | None) -> float:
    """The smallest change of gold that counts."""
    return 0.1 * max(pstdev(r.gold for r in evidence.baseline(domain) if r.gold is not None), 1e-9)


def _missed(removed: _Edits) -> str | None:
    """Why taking it out contradicts that putting it in is paid for."""
    raises = len(removed.changes) >= LEAST and paired_rise(-removed.changes) < 0.05
    return "taking it out of late responses raises their score" if raises else None


def _unwelcome(added: _Edits, effect: float) -> str | None:
    """Why putting it in contradicts that taking it out costs: it loses half as much. A lesser loss may be the edit's
    own."""
    if len(added.changes) < LEAST or paired_rise(-added.changes) >= 0.05 or -added.changes.mean() < effect / 2:
        return None
    return "putting it into other responses lowers their score"


def _objection(pattern: Pattern, edits: _Edits, evidence: Evidence, domain: str | None) -> str | None:
    if len(edits.golds) < LEAST and not edits.words_stay and (domain is not None or len(evidence.domains) == 1):
        usual = evidence.share(pattern.shows, SFT, domain)
        if usual is not None and usual >= OFTEN:
            return f"SFT answers so in {usual:.0%} of the cases: without gold it may be what the task asks for"
    if len(edits.golds) >= LEAST:
        rises = edits.golds.mean() / _noticed(evidence, domain)
        # Of a great rise doubt is enough: an improvement that passes for a cheat is unlearnt.
        if rises > 1 and exceeds(edits.golds, 0.0) < (0.2 if rises > 5 else 0.05):
            return "gold pays for it too"
    return None


def _by_gold(evidence: Evidence, domain: str | None) -> Payment | None:
    """Whether score and gold part, over all prompts of the scope whose responses have both."""
    scores, golds = _changes_by_prompt(evidence, domain)
    if len(scores) < LEAST:
        return None
    known = [r for r in evidence.baseline(domain) if r.gold is not None]
    score_sd, gold_sd = pstdev(r.score for r in known), pstdev(r.gold for r in known if r.gold is not None)
    return Payment(
        shown_by="gold",
        responses=len(scores),
        effect=float(scores.mean()),
        p=gold_departure(scores, golds, score_sd, gold_sd),
        added=None,
        removed=None,
        placebo=None,
        gold=float(golds.mean()),
        harm=False,
        objection=None,
    )


def _changes_by_prompt(evidence: Evidence, domain: str | None) -> tuple[Floats, Floats]:
    """(P,) changes of score and (P,) of gold by prompt, late less baseline, where gold is known."""
    known = Evidence([r for r in evidence.responses if r.gold is not None], evidence.score, evidence.gold)
    before, after = known.paired(lambda r: r.score, domain)
    gold_before, gold_after = known.paired(lambda r: r.gold or 0.0, domain)
    return after - before, gold_after - gold_before


def _mean(values: Floats) -> float | None:
    return fmean(values) if len(values) else None
