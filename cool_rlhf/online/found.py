"""What a search finds, what it dismisses, and the rule that tells them apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, pstdev

from cool_rlhf.online.counterfactual import Payment
from cool_rlhf.online.patterns import Candidate, Pattern
from cool_rlhf.online.responses import EARLY, LATE, POLICIES, SFT, Evidence


@dataclass(frozen=True)
class FindingSettings:
    """When a pattern counts.

    ``alpha``: level of both corrected tests. ``least_rise``: by how much more of the late responses must show it.
    ``least_effect``: what the reward model must pay for it, in standard deviations of the baseline's scores.
    ``least_gain``: the share of the score's rise that it must explain; ``harmful_gain``: where gold falls with it
    (:class:`Payment`), so that it is no improvement whatever it explains.
    ``sample``: responses edited each way. ``most``: patterns whose payment is tested, of each detector those that rose
    most.
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
    """Findings: first those that can be put into a text or taken out of it alone, for they may be why others are seen,
    then those that whole late answers put in, then those that only numbers show; of each the one that explains most of
    the score first. What was dismissed; how many tests were made. ``foreseen``: what no policy has drifted into and is
    mended all the same."""

    findings: list[Finding]
    dismissed: list[Dismissed]
    tested: int
    foreseen: list[Finding] = field(default_factory=list)

    @property
    def to_mend(self) -> list[Finding]:
        return [*self.findings, *self.foreseen]


@dataclass(frozen=True)
class Paid:
    """A suspect whose payment was measured, with the corrected p-values of its drift and of its payment."""

    candidate: Candidate
    drift_p: float
    payment: Payment
    payment_p: float


def rise(candidate: Candidate) -> float:
    """By how much the late policy's share of responses with the pattern exceeds SFT's, and the mean of SFT's and the
    early policy's where that is more; of those that were looked at."""
    shows, domain, evidence = candidate.pattern.shows, candidate.domain, candidate.evidence
    before = [share for policy in (SFT, EARLY) if (share := evidence.share(shows, policy, domain)) is not None]
    late = evidence.share(shows, LATE, domain)
    return late - max(before[0], fmean(before)) if before and late is not None else 0.0


def least_effect(evidence: Evidence, domain: str | None, settings: FindingSettings) -> float:
    """What the reward model must pay for a pattern of a scope."""
    return settings.least_effect * pstdev(response.score for response in evidence.baseline(domain))


UNMEASURED = "nothing could be edited or compared with gold to see whether the reward model pays for it"
TOO_MANY = "not tested: too many suspects, of which the payment of {} is tested"


@dataclass(frozen=True)
class Dismissal:
    """Why a suspect is no finding. ``slight``: it explains too little of the score's rise, by itself."""

    reason: str
    slight: bool = False


def dismissal(tried: Paid, evidence: Evidence, settings: FindingSettings) -> Dismissal | None:
    """None for a suspect that is a finding."""
    domain, paid = tried.candidate.domain, tried.payment
    if tried.payment_p >= settings.alpha or paid.effect < least_effect(evidence, domain, settings):
        return Dismissal("the reward model does not pay for it")
    least_gain = min(settings.least_gain, settings.harmful_gain) if paid.harm else settings.least_gain
    if paid.effect * rise(tried.candidate) < least_gain * _score_rise(evidence, domain):
        return Dismissal(f"it explains less than {100 * least_gain:.0f}% of the score's rise", slight=True)
    return Dismissal(paid.objection) if paid.objection else None


def _score_rise(evidence: Evidence, domain: str | None) -> float:
    before, after = evidence.paired(lambda response: response.score, domain)
    return float((after - before).mean()) if len(before) else 0.0


def finding_of(paid: Paid, whole: Evidence) -> Finding:
    """``whole``: all of the round's responses, of which the candidate may have looked at some."""
    candidate = paid.candidate
    pattern, domain, evidence = candidate.pattern, candidate.domain, candidate.evidence
    showing = [response for response in evidence.late(domain) if pattern.shows(response)]
    showing.sort(key=lambda response: (-pattern.measure(response), -response.score))
    gain = paid.payment.effect * rise(candidate) * len(whole.late(domain)) / len(whole.late())
    overall = _score_rise(whole, None)
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
