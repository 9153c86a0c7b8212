"""The fast path's search: what drifted, what of that the reward model pays for, and what nobody needs to mend."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from cool_rlhf.online.counterfactual import Payment, payment
from cool_rlhf.online.explained import distinct, is_part, standing
from cool_rlhf.online.found import (
    TOO_MANY,
    UNMEASURED,
    Dismissed,
    Finding,
    FindingSettings,
    Paid,
    Search,
    dismissal,
    finding_of,
    least_effect,
    rise,
)
from cool_rlhf.online.patterns import Candidate, Detector, Pattern, any_of, candidates_of, drift
from cool_rlhf.online.responses import Evidence
from cool_rlhf.online.statistics import benjamini_hochberg, holm

Suspect = tuple[Candidate, float]  # with its corrected p-value


def find_patterns(evidence: Evidence, detectors: Sequence[Detector], settings: FindingSettings, seed: int) -> Search:
    """Search one round's responses.

    A pattern is suspected where the late policy shows more of it than SFT and the early policy do, prompt by prompt.
    It becomes a finding only if the reward model pays for the pattern alone, see :func:`payment`: what is only the
    task done better earns nothing when its form is put on another response. One cheat drags much along that drifts and
    is paid for with it: a finding has to stand in responses out of which those before it are taken, too. ``seed`` draws
    the responses to edit.
    """
    tested = [candidate for detector in detectors for candidate in candidates_of(detector, evidence)]
    # A detector may come from another package, and a p-value that is no number would void the correction of all.
    corrected = benjamini_hochberg([candidate.p if isfinite(candidate.p) else 1.0 for candidate in tested])
    risen = [
        (candidate, p)
        for candidate, p in zip(tested, corrected, strict=True)
        if p < settings.alpha and rise(candidate) >= settings.least_rise
    ]
    suspects, untested = _in_turns(_scoped(risen), settings.most)
    payments = [payment(c.pattern, evidence, c.domain, settings.sample, seed) for c, _ in suspects]
    findings, slight, dismissed = _sorted_out(suspects, payments, evidence, settings)
    apart = [one for one in slight if not _is_part_of_any(one.candidate, findings)]
    findings += _together(apart, evidence, settings, seed)
    findings.sort(key=lambda finding: (not finding.pattern.remove, finding.pattern.broad, -finding.gain))
    left, explained = standing(distinct(findings, evidence), evidence, detectors, settings, seed)
    left.sort(key=lambda finding: (_apart(finding.pattern), -finding.gain))
    elsewhere = [_elsewhere(finding, left, evidence, settings, seed) for finding in left]
    found_in = [replace(finding, elsewhere=domains) for finding, domains in zip(left, elsewhere, strict=True)]
    parts = {id(part) for finding in left for part in finding.pattern.parts}
    dismissed = [one for one in dismissed if id(one.pattern) not in parts]
    dismissed += [Dismissed(c.pattern, c.domain, p, None, TOO_MANY.format(settings.most)) for c, p in untested]
    return Search(found_in, dismissed + explained, len(tested))


def _apart(pattern: Pattern) -> int:
    """0 where what is paid is paid for the pattern alone; 1 where whole late answers were put in, whose other cheats
    count with it; 2 where no edit tells it from them."""
    if pattern.remove or (pattern.add and not pattern.whole):
        return 0
    return 1 if pattern.add else 2


def _sorted_out(
    suspects: Sequence[Suspect], payments: Sequence[Payment | None], evidence: Evidence, settings: FindingSettings
) -> tuple[list[Finding], list[Paid], list[Dismissed]]:
    """The findings, those that explain too little by themselves, and all that is dismissed, these among them."""
    payment_ps = iter(holm([paid.p for paid in payments if paid is not None]))
    findings: list[Finding] = []
    slight: list[Paid] = []
    dismissed: list[Dismissed] = []
    for (candidate, drift_p), paid in zip(suspects, payments, strict=True):
        if paid is None:
            dismissed.append(Dismissed(candidate.pattern, candidate.domain, drift_p, None, UNMEASURED))
            continue
        tried = Paid(candidate, drift_p, paid, next(payment_ps))
        against = dismissal(tried, evidence, settings)
        if against is None:
            findings.append(finding_of(tried, evidence))
            continue
        dismissed.append(Dismissed(candidate.pattern, candidate.domain, drift_p, paid, against.reason))
        slight += [tried] if against.slight else []
    return findings, slight, dismissed


def _together(small: Sequence[Paid], evidence: Evidence, settings: FindingSettings, seed: int) -> list[Finding]:
    """A cheat in many wordings is paid for in each of them and explains little of the score in any: patterns of one
    family that were dismissed for that alone are looked at as one, in all domains if one of them drifted in all."""
    families: dict[tuple[str, str], list[Paid]] = defaultdict(list)
    for one in small:
        pattern = one.candidate.pattern
        if pattern.family and one.payment.objection is None:
            families[pattern.detector, pattern.family].append(one)
    groups: dict[tuple[str, str, str | None], list[Paid]] = defaultdict(list)
    for family, members in families.items():
        everywhere = any(one.candidate.domain is None for one in members)
        for one in members:
            groups[*family, None if everywhere else one.candidate.domain].append(one)
    several = {key: group for key, group in groups.items() if len({one.candidate.pattern.key for one in group}) > 1}
    findings = []
    for (_, _, domain), group in several.items():
        group.sort(key=lambda one: -one.payment.effect * rise(one.candidate))
        risen: dict[str, Candidate] = {}  # by pattern: one may have drifted in several domains
        for one in group:
            risen.setdefault(one.candidate.pattern.key, one.candidate)
        pattern = any_of([one.pattern for one in risen.values()], [rise(one) for one in risen.values()])
        tested = next((found for found in drift(pattern, evidence) if found.domain == domain), None)
        paid = payment(pattern, evidence, domain, settings.sample, seed)
        if tested is None or paid is None:
            continue
        payment_p = min(1.0, max(paid.p * len(several), *(one.payment_p for one in group)))
        joint = Paid(tested, max(one.drift_p for one in group), paid, payment_p)
        if dismissal(joint, evidence, settings) is None:
            findings.append(finding_of(joint, evidence))
    return findings


def _is_part_of_any(candidate: Candidate, findings: Sequence[Finding]) -> bool:
    """Whether it is a phrase with what stands beside it, say, of a finding. What is broad takes much else out with it
    and is not the reason for that."""
    shown = [response for response in candidate.evidence.late(candidate.domain) if candidate.pattern.shows(response)]
    return any(is_part(candidate.pattern, finding, shown) for finding in findings if not finding.pattern.broad)


def _scoped(risen: Sequence[Suspect]) -> list[Suspect]:
    """Each pattern in one scope: all domains, unless it drifted in one of them alone or only in single ones."""
    by_pattern: dict[tuple[str, str], list[Suspect]] = defaultdict(list)
    for suspect in risen:
        by_pattern[suspect[0].pattern.detector, suspect[0].pattern.key].append(suspect)
    chosen = []
    for group in by_pattern.values():
        single = [suspect for suspect in group if suspect[0].domain is not None]
        overall = [suspect for suspect in group if suspect[0].domain is None]
        alone = len(single) == 1 and not (overall and _rises_beside(single[0][0], overall[0][0].evidence))
        chosen += single if alone or not overall else overall
    return chosen


def _in_turns(suspects: Sequence[Suspect], most: int) -> tuple[list[Suspect], list[Suspect]]:
    """Those whose payment is tested, and the others. Detectors take turns with what rose most: of a policy that says
    fewer things than it did each phrase is said more often, and hundreds of these would leave no room for the rest."""
    ordered = sorted(suspects, key=lambda suspect: (-rise(suspect[0]), suspect[0].p))
    taken: Counter[str] = Counter()
    turns = []
    for candidate, _ in ordered:
        turns.append(taken[candidate.pattern.detector])
        taken[candidate.pattern.detector] += 1
    chosen = set(sorted(range(len(ordered)), key=turns.__getitem__)[:most])
    return (
        [suspect for at, suspect in enumerate(ordered) if at in chosen],
        [suspect for at, suspect in enumerate(ordered) if at not in chosen],
    )


def _rises_beside(candidate: Candidate, whole: Evidence) -> bool:
    """Whether a pattern that drifted surely in one domain alone rises half as much in the others together: they may be
    too few for a test of their own."""
    others = [response for response in whole.responses if response.domain != candidate.domain]
    beside = replace(candidate, domain=None, evidence=replace(whole, responses=others))
    return rise(beside) >= rise(candidate) / 2


def _elsewhere(
    finding: Finding, findings: Sequence[Finding], evidence: Evidence, settings: FindingSettings, seed: int
) -> tuple[str, ...]:
    """Where without gold, nobody can tell: one domain's flaw may be what another asks for, which conditions are for."""
    pattern = finding.pattern
    own = {
        other.domain
        for other in findings
        if (other.pattern.detector, other.pattern.key) == (pattern.detector, pattern.key)
    }
    known = [] if None in own else [domain for domain in evidence.domains if evidence.baseline(domain)]
    others = [domain for domain in known if domain not in own]
    payments = {domain: payment(pattern, evidence, domain, settings.sample, seed) for domain in others}
    return tuple(
        domain
        for domain, found in payments.items()
        if found is not None
        and found.gold is not None
        and found.objection is None
        and found.p * len(others) < settings.alpha
        and found.effect >= least_effect(evidence, domain, settings)
    )
