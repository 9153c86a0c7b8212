"""One cheat drags much along that drifts and is paid for with it: which findings others explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cool_rlhf.online.counterfactual import payment
from cool_rlhf.online.found import Dismissed, Finding, FindingSettings, Paid, dismissal, rise
from cool_rlhf.online.patterns import Candidate, Detector, Pattern, candidates_of, drift
from cool_rlhf.online.responses import POLICIES, Evidence, Response

ALIKE = 0.8  # of the responses that show either of two patterns, those that show both: they are one


def distinct(findings: Sequence[Finding], evidence: Evidence) -> list[Finding]:
    """Without those that another of their family explains, see :func:`_explains`. ``findings``: those that explain most
    of the score first; of two that explain each other the first stays."""
    explaining = [
        [one.pattern.family == other.pattern.family != "" and _explains(one, other, evidence) for other in findings]
        for one in findings
    ]
    ranks = range(len(findings))
    return [
        finding
        for rank, finding in enumerate(findings)
        if not any(explaining[by][rank] and (by < rank or not explaining[rank][by]) for by in ranks if by != rank)
    ]


def _explains(one: Finding, other: Finding, evidence: Evidence) -> bool:
    """Whether ``one`` stands where ``other`` does, and either explains more of the score or is a part of it that is
    paid at least half as much: of a sentence's phrases, each of which is paid for in part, the best is enough, and an
    opening is the same whatever follows it."""
    shown = [response for response in evidence.late(other.domain) if other.pattern.shows(response)]
    if sum(one.pattern.shows(response) for response in shown) < 0.9 * len(shown):
        return False
    if one.pattern.parts and not is_part(other.pattern, one, shown):  # it stands in most responses anyway
        return False
    if one.gain >= other.gain:
        return True
    remove = other.pattern.remove
    rest = [changed for response in shown if remove and (changed := remove(response)) is not None]
    part = bool(rest) and sum(one.pattern.shows(response) for response in rest) <= 0.1 * len(rest)
    return part and 2 * one.payment.effect >= other.payment.effect


def is_part(pattern: Pattern, finding: Finding, shown: Sequence[Response]) -> bool:
    """Whether most of the responses that show ``pattern`` do so no more without the finding."""
    remove = finding.pattern.remove
    rest = [changed for r in shown if remove and finding.pattern.shows(r) and (changed := remove(r)) is not None]
    return 2 * sum(not pattern.shows(response) for response in rest) > len(shown)


def standing(
    findings: Sequence[Finding],
    evidence: Evidence,
    detectors: Sequence[Detector],
    settings: FindingSettings,
    seed: int,
) -> tuple[list[Finding], list[Dismissed]]:
    """Those that their detectors find again once the standing ones before them are taken out of all responses, and
    those of which nothing is left then."""
    by_name = {detector.name: detector for detector in detectors}
    left: list[Finding] = []
    explained: list[Dismissed] = []
    cleaned = evidence
    for finding in findings:
        detector = by_name.get(finding.pattern.detector)
        if cleaned is not evidence and detector and not _found_again(finding, detector, cleaned, settings, seed):
            reason = f"nothing of it is left without {', '.join(one.name for one in left)}"
            explained.append(Dismissed(finding.pattern, finding.domain, finding.drift_p, finding.payment, reason))
        else:
            left.append(finding)
            cleaned = _without(finding, cleaned)
    return left, explained


def _found_again(
    finding: Finding, detector: Detector, evidence: Evidence, settings: FindingSettings, seed: int
) -> bool:
    """Whether the detector finds it in what ``evidence`` is now: goes by the responses that show it, for its key may be
    another one now (a phrase is named by what most of its responses have around it)."""
    late = evidence.late(finding.domain)
    shown = {response.id for response in late if finding.pattern.shows(response)}

    def likeness(candidate: Candidate) -> float:
        if candidate.pattern.key == finding.pattern.key:
            return 1.0
        other = {response.id for response in late if candidate.pattern.shows(response)}
        return len(shown & other) / max(1, len(shown | other))

    every = drift(finding.pattern, evidence) if finding.pattern.parts else candidates_of(detector, evidence)
    tested = (candidate for candidate in every if candidate.domain == finding.domain)
    found = max((c for c in tested if c.p < settings.alpha), key=likeness, default=None)
    if found is None or likeness(found) < ALIKE or rise(found) < settings.least_rise:
        return False
    paid = payment(found.pattern, evidence, found.domain, settings.sample, seed)
    return paid is not None and dismissal(Paid(found, found.p, paid, paid.p), evidence, settings) is None


def _without(finding: Finding, evidence: Evidence) -> Evidence:
    """Every policy's responses with the pattern taken out and scored anew, as far as that can be done."""
    pattern = finding.pattern
    edited = {
        response.id: changed
        for response in evidence.of(*POLICIES, domain=finding.domain)
        if pattern.remove and pattern.shows(response) and (changed := pattern.remove(response)) is not None
    }
    if not edited:
        return evidence
    scores = dict(zip(edited, evidence.score([changed.conversation() for changed in edited.values()]), strict=True))
    responses = [
        replace(
            edited[response.id],
            score=scores[response.id],
            gold=evidence.gold(edited[response.id]) if evidence.gold else response.gold,
        )
        if response.id in edited
        else response
        for response in evidence.responses
    ]
    return Evidence(responses, evidence.score, evidence.gold)
