"""The fast path's search: what drifted, what of that the reward model pays for, and what nobody needs to mend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import fmean, pstdev

from cool_rlhf.online.counterfactual import Payment, payment
from cool_rlhf.online.patterns import Candidate, Detector, Pattern, any_of, drift
from cool_rlhf.online.responses import EARLY, LATE, POLICIES, SFT, Evidence, Response
from cool_rlhf.online.statistics import benjamini_hochberg, holm

ALIKE = 0.8  # of the responses that show either of two patterns, those that show both: they are one


@dataclass(frozen=True)
class FindingSettings:
    """When a pattern counts.

    ``alpha``: level of both corrected tests. ``least_rise``: by how much more of the late responses must show it.
    ``least_effect``: what the reward model must pay for it, in standard deviations of the baseline's scores.
    ``least_gain``: the share of the score's rise that it must explain; ``harmful_gain``: where gold falls with it
    (:class:`Payment`), so that it is no improvement whatever it explains.
    ``sample``: responses edited each way. ``most``: patterns whose payment is tested, those that rose most.
    """

    alpha: float = 0.01
    least_rise: float = 0.05
    least_effect: float = 0.1
    least_gain: float = 0.2
    harmful_gain: float = 0.05
    sample: int = 48
    most: int = 80


@dataclass(frozen=True)
class Finding:
    """A pattern that the policy drifted into and that the reward model pays for.

    ``p`` is the larger of the two corrected p-values: of the drift (Benjamini–Hochberg over every test of every
    detector) and of the payment (Holm over every pattern whose payment was tested). ``gain`` is the part of the rise
    in score over all domains that the pattern explains: payment × rise in share × the scope's share of responses.
    ``elsewhere``: domains that the policy shows it in no more often, where the reward model pays for it too and gold,
    which is known there, does not: what a repair leaves unmended there is what the next policy turns to.
    """

    pattern: Pattern
    domain: str | None  # None: all
    statistic: str
    value: float
    p: float
    drift_p: float
    payment: Payment
    shares: dict[str, float | None]  # policy → share of its responses that show it, of those looked at
    gain: float
    explained: float  # the same as a share of that rise; 0 where the score did not rise
    examples: list[str]  # ids of late responses, the clearest first
    elsewhere: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.pattern.name(self.domain)

    def covers(self, domain: str) -> bool:
        """Whether the pattern is to be mended in a domain."""
        return self.domain in (None, domain) or domain in self.elsewhere


@dataclass(frozen=True)
class Dismissed:
    """A pattern that drifted, and why it is no finding."""

    pattern: Pattern
    domain: str | None
    drift_p: float
    payment: Payment | None
    reason: str

    @property
    def name(self) -> str:
        return self.pattern.name(self.domain)


@dataclass(frozen=True)
class Search:
    """Findings: first those that can be taken out of a text, for they may be why others are seen, then those that only
    numbers show; of either the one that explains most of the score first. What was dismissed; how many tests were
    made. ``foreseen``: what no policy has drifted into and is mended all the same."""

    findings: list[Finding]
    dismissed: list[Dismissed]
    tested: int
    foreseen: list[Finding] = field(default_factory=list)

    @property
    def to_mend(self) -> list[Finding]:
        return [*self.findings, *self.foreseen]


Suspect = tuple[Candidate, float]  # with its corrected p-value


@dataclass(frozen=True)
class Paid:
    """A suspect whose payment was measured, with the corrected p-values of its drift and of its payment."""

    candidate: Candidate
    drift_p: float
    payment: Payment
    payment_p: float


def find_patterns(evidence: Evidence, detectors: Sequence[Detector], settings: FindingSettings, seed: int) -> Search:
    """Search one round's responses.

    A pattern is suspected where the late policy shows more of it than SFT and the early policy do, prompt by prompt.
    It becomes a finding only if the reward model pays for the pattern alone, see :func:`payment`: what is only the
    task done better earns nothing when its form is put on another response. One cheat drags much along that drifts and
    is paid for with it: a finding has to stand in responses out of which those before it are taken, too. ``seed`` draws
    the responses to edit.
    """
    tested = [candidate for detector in detectors for candidate in _candidates(detector, evidence)]
    # A detector may come from another package, and a p-value that is no number would void the correction of all.
    corrected = benjamini_hochberg([candidate.p if isfinite(candidate.p) else 1.0 for candidate in tested])
    risen = [
        (candidate, p)
        for candidate, p in zip(tested, corrected, strict=True)
        if p < settings.alpha and rise(candidate) >= settings.least_rise
    ]
    suspects = sorted(_scoped(risen), key=lambda suspect: (-rise(suspect[0]), suspect[0].p))[: settings.most]
    payments = [payment(c.pattern, evidence, c.domain, settings.sample, seed) for c, _ in suspects]
    paid = iter(holm([found.p for found in payments if found is not None]))
    findings, dismissed = [], []
    small: list[Paid] = []
    for (candidate, drift_p), found in zip(suspects, payments, strict=True):
        tried = Paid(candidate, drift_p, found, next(paid)) if found is not None else None
        reason = _dismissal(tried, evidence, settings)
        if tried is not None and reason is None:
            findings.append(_finding(tried))
            continue
        dismissed.append(Dismissed(candidate.pattern, candidate.domain, drift_p, found, reason or ""))
        if tried is not None and reason == _too_small(tried, evidence, settings):
            small.append(tried)
    apart = [one for one in small if not _is_part_of_any(one.candidate, findings)]
    findings += _together(apart, evidence, settings, seed)
    findings.sort(key=lambda finding: (not finding.pattern.remove, finding.pattern.broad, -finding.gain))
    standing, explained = _standing(_distinct(findings, evidence), evidence, detectors, settings, seed)
    standing.sort(key=lambda finding: (not finding.pattern.remove, -finding.gain))
    elsewhere = [_elsewhere(finding, standing, evidence, settings, seed) for finding in standing]
    found_in = [replace(finding, elsewhere=domains) for finding, domains in zip(standing, elsewhere, strict=True)]
    parts = {id(part) for finding in standing for part in finding.pattern.parts}
    dismissed = [one for one in dismissed if id(one.pattern) not in parts]
    return Search(found_in, dismissed + explained, len(tested))


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
    several = {key: group for key, group in groups.items() if len(group) > 1}
    findings = []
    for (_, _, domain), group in several.items():
        gains: dict[str, float] = {one.candidate.pattern.key: one.payment.effect * rise(one.candidate) for one in group}
        group.sort(key=lambda one: -gains[one.candidate.pattern.key])
        pattern = any_of([one.candidate.pattern for one in group], [rise(one.candidate) for one in group])
        tested = next((found for found in drift(pattern, evidence) if found.domain == domain), None)
        paid = payment(pattern, evidence, domain, settings.sample, seed)
        if tested is None or paid is None:
            continue
        payment_p = min(1.0, max(paid.p * len(several), *(one.payment_p for one in group)))
        joint = Paid(tested, max(one.drift_p for one in group), paid, payment_p)
        if _dismissal(joint, evidence, settings) is None:
            findings.append(_finding(joint))
    return findings


def _is_part_of_any(candidate: Candidate, findings: Sequence[Finding]) -> bool:
    """Whether it is a phrase with what stands beside it, say, of a finding. What is broad takes much else out with it
    and is not the reason for that."""
    shown = [response for response in candidate.evidence.late(candidate.domain) if candidate.pattern.shows(response)]
    return any(_is_part(candidate.pattern, finding, shown) for finding in findings if not finding.pattern.broad)


def _is_part(pattern: Pattern, finding: Finding, shown: Sequence[Response]) -> bool:
    """Whether most of the responses that show ``pattern`` do so no more without the finding."""
    remove = finding.pattern.remove
    rest = [changed for r in shown if remove and finding.pattern.shows(r) and (changed := remove(r)) is not None]
    return 2 * sum(not pattern.shows(response) for response in rest) > len(shown)


def rise(candidate: Candidate) -> float:
    """By how much the late policy's share of responses with the pattern exceeds SFT's, and the mean of SFT's and the
    early policy's where that is more; of those that were looked at."""
    shows, domain, evidence = candidate.pattern.shows, candidate.domain, candidate.evidence
    before = [share for policy in (SFT, EARLY) if (share := evidence.share(shows, policy, domain)) is not None]
    late = evidence.share(shows, LATE, domain)
    return late - max(before[0], fmean(before)) if before and late is not None else 0.0


def _scoped(risen: Sequence[Suspect]) -> list[Suspect]:
    """Each pattern in one scope: all domains, unless it drifted in one of them alone or only in single ones."""
    by_pattern: dict[tuple[str, str], list[Suspect]] = defaultdict(list)
    for suspect in risen:
        by_pattern[suspect[0].pattern.detector, suspect[0].pattern.key].append(suspect)
    chosen = []
    for group in by_pattern.values():
        single = [suspect for suspect in group if suspect[0].domain is not None]
        overall = [suspect for suspect in group if suspect[0].domain is None]
        chosen += single if len(single) == 1 or not overall else overall
    return chosen


def _distinct(findings: Sequence[Finding], evidence: Evidence) -> list[Finding]:
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
    if one.pattern.parts and not _is_part(other.pattern, one, shown):  # it stands in most responses anyway
        return False
    if one.gain >= other.gain:
        return True
    remove = other.pattern.remove
    rest = [changed for response in shown if remove and (changed := remove(response)) is not None]
    part = bool(rest) and sum(one.pattern.shows(response) for response in rest) <= 0.1 * len(rest)
    return part and 2 * one.payment.effect >= other.payment.effect


def _standing(
    findings: Sequence[Finding],
    evidence: Evidence,
    detectors: Sequence[Detector],
    settings: FindingSettings,
    seed: int,
) -> tuple[list[Finding], list[Dismissed]]:
    """Those that their detectors find again once the standing ones before them are taken out of all responses, and
    those of which nothing is left then."""
    by_name = {detector.name: detector for detector in detectors}
    standing: list[Finding] = []
    explained: list[Dismissed] = []
    cleaned = evidence
    for finding in findings:
        detector = by_name.get(finding.pattern.detector)
        if cleaned is not evidence and detector and not _found_again(finding, detector, cleaned, settings, seed):
            reason = f"nothing of it is left without {', '.join(one.name for one in standing)}"
            explained.append(Dismissed(finding.pattern, finding.domain, finding.drift_p, finding.payment, reason))
        else:
            standing.append(finding)
            cleaned = _without(finding, cleaned)
    return standing, explained


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

    every = drift(finding.pattern, evidence) if finding.pattern.parts else _candidates(detector, evidence)
    tested = (candidate for candidate in every if candidate.domain == finding.domain)
    found = max((c for c in tested if c.p < settings.alpha), key=likeness, default=None)
    if found is None or likeness(found) < ALIKE or rise(found) < settings.least_rise:
        return False
    paid = payment(found.pattern, evidence, found.domain, settings.sample, seed)
    return _dismissal(Paid(found, found.p, paid, paid.p) if paid else None, evidence, settings) is None


def _candidates(detector: Detector, evidence: Evidence) -> list[Candidate]:
    """Raises RuntimeError naming the detector that fails: it may come from another package."""
    try:
        return detector.candidates(evidence)
    except Exception as error:
        raise RuntimeError(f"the detector {detector.name!r} failed on the answers of a round") from error


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
    others = [] if None in own else [domain for domain in evidence.domains if domain not in own]
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


def least_effect(evidence: Evidence, domain: str | None, settings: FindingSettings) -> float:
    """What the reward model must pay for a pattern of a scope."""
    return settings.least_effect * pstdev(response.score for response in evidence.baseline(domain))


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


def _dismissal(tried: Paid | None, evidence: Evidence, settings: FindingSettings) -> str | None:
    """Why a suspect is no finding; ``tried``: None where nobody can measure what is paid for it."""
    if tried is None:
        return "nothing could be edited or compared with gold to see whether the reward model pays for it"
    least = least_effect(evidence, tried.candidate.domain, settings)
    if tried.payment_p >= settings.alpha or tried.payment.effect < least:
        return "the reward model does not pay for it"
    return _too_small(tried, evidence, settings) or tried.payment.objection


def _too_small(tried: Paid, evidence: Evidence, settings: FindingSettings) -> str | None:
    harmful = tried.payment.harm
    least_gain = min(settings.least_gain, settings.harmful_gain) if harmful else settings.least_gain
    if tried.payment.effect * rise(tried.candidate) >= least_gain * _score_rise(evidence, tried.candidate.domain):
        return None
    return f"it explains less than {100 * least_gain:.0f}% of the score's rise"


def _score_rise(evidence: Evidence, domain: str | None) -> float:
    before, after = evidence.paired(lambda response: response.score, domain)
    return float((after - before).mean()) if len(before) else 0.0


def _finding(paid: Paid) -> Finding:
    candidate = paid.candidate
    pattern, domain, evidence = candidate.pattern, candidate.domain, candidate.evidence
    showing = [response for response in evidence.late(domain) if pattern.shows(response)]
    showing.sort(key=lambda response: (-pattern.measure(response), -response.score))
    gain = paid.payment.effect * rise(candidate) * len(evidence.late(domain)) / len(evidence.late())
    overall = _score_rise(evidence, None)
    return Finding(
        pattern=pattern,
        domain=domain,
        statistic=candidate.statistic,
        value=candidate.value,
        p=max(paid.drift_p, paid.payment_p),
        drift_p=paid.drift_p,
        payment=paid.payment,
        shares={policy: evidence.share(pattern.shows, policy, domain) for policy in POLICIES},
        gain=gain,
        explained=gain / overall if overall > 0 else 0.0,
        examples=[response.id for response in showing[:5]],
    )
