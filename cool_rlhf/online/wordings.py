"""Wordings that the policy has not turned to yet.

A reward model that pays for one empty phrase has often learnt to pay for others: preferences that reward a flattering
opening hold several. Mended alone, a phrase gives way to the next, one a round. So where a phrase is found, those that
the preferences' chosen sides say more often are tried as well, and those that are paid for likewise, whatever is asked,
are mended in the same round.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cool_rlhf.online.counterfactual import Payment, payment
from cool_rlhf.online.detectors.phrases import PhraseDetector
from cool_rlhf.online.found import Finding, FindingSettings, Search, least_effect
from cool_rlhf.online.patterns import Pattern, any_of
from cool_rlhf.online.responses import POLICIES, Evidence, Response
from cool_rlhf.online.statistics import holm
from cool_rlhf.protocols import PreferencePair
from cool_rlhf.schedule import derive_seed

READ_LETTERS = 3_000_000  # of the pairs, drawn at random, whose phrases are counted
TESTED = 20  # phrases whose payment is tested, the clearest
SAMPLE = 24  # responses of each domain that one is put into
MOST = 8  # that are mended: each needs some of one pattern's pairs
LIKEWISE = 0.5  # of what is paid for the best-paid phrase that was found, the least that is paid for another
CUSTOMARY = 0.1  # share of SFT's responses of a domain; what more of them say belongs to answers there
LEAST_Z = 3.1  # of the difference between chosen and rejected sides: one-sided p < 0.001


def other_wordings(
    search: Search, evidence: Evidence, pairs: Sequence[PreferencePair], settings: FindingSettings, seed: int
) -> Finding | None:
    """The phrases that ``pairs`` teach and that are paid for like a phrase among the findings: one pattern, a finding
    of all domains that no policy has drifted into. None where no phrase was found, or no other is paid for so.

    Each has to be paid for in every domain, beyond a placebo (Holm), while gold, where it is known, does not rise: what
    belongs to the answers of one domain is paid for there alone. In a single domain without gold nobody can tell.
    """
    found = [finding for finding in search.findings if _is_phrase(finding.pattern)]
    judged = any(response.gold is not None for response in evidence.baseline())
    if not found or not pairs or (len(evidence.domains) == 1 and not judged):
        return None
    dismissed = [one.pattern for one in search.dismissed if one.payment and one.payment.objection is not None]
    known = [*(finding.pattern for finding in found), *filter(_is_phrase, dismissed)]
    least = max(LIKEWISE * finding.payment.effect for finding in found)
    paid = _paid(_taught(pairs, known, evidence, seed), least, evidence, settings, seed)[:MOST]
    return _finding(paid, evidence, settings, seed) if paid else None


def _is_phrase(pattern: Pattern) -> bool:
    return pattern.family == PhraseDetector().name and pattern.add is not None


def _taught(pairs: Sequence[PreferencePair], known: Sequence[Pattern], evidence: Evidence, seed: int) -> list[Pattern]:
    """Phrases that chosen sides say more often than rejected ones and that are none of the ``known`` patterns."""
    chosen, rejected = zip(*_texts(pairs, seed), strict=True)
    detector, answer = PhraseDetector(least_z=LEAST_Z), evidence.reference()[0]
    surges = detector.surges(chosen, rejected)
    taken: list[Pattern] = []
    for surge in sorted((one for one in surges if one.z > LEAST_Z), key=lambda one: -one.z):
        pattern = detector.pattern(surge, evidence.baseline())
        shown_in = [replace(answer, text=text) for text in surge.texts]
        if not _is_customary(pattern, evidence) and not any(_is_one(other, shown_in) for other in (*known, *taken)):
            taken.append(pattern)
        if len(taken) == TESTED:
            break
    return taken


def _texts(pairs: Sequence[PreferencePair], seed: int) -> Iterator[tuple[str, str]]:
    """Both sides' responses of pairs drawn at random, one pair at least."""
    letters = 0
    for place in random.Random(derive_seed("wordings", seed)).sample(range(len(pairs)), len(pairs)):
        texts = pairs[place].chosen[-1]["content"], pairs[place].rejected[-1]["content"]
        yield texts
        letters += sum(map(len, texts))
        if letters > READ_LETTERS:
            return


def _is_one(other: Pattern, shown_in: Sequence[Response]) -> bool:
    """Whether ``other`` stands in most of the responses that show a pattern."""
    return 2 * sum(other.shows(response) for response in shown_in) > len(shown_in)


def _is_customary(pattern: Pattern, evidence: Evidence) -> bool:
    answers = (evidence.reference(domain) for domain in evidence.scopes)
    return any(sum(map(pattern.shows, own)) > CUSTOMARY * len(own) for own in answers)


def _paid(
    patterns: Sequence[Pattern], least: float, evidence: Evidence, settings: FindingSettings, seed: int
) -> list[Pattern]:
    """Those that are paid for in every domain, by ``least`` at least, the best paid first. Of a domain with gold those
    responses are edited alone whose gold is known."""
    domains = [domain for domain in evidence.domains if evidence.baseline(domain)]
    least_effects = {domain: max(least, least_effect(evidence, domain, settings)) for domain in domains}
    judged = {response.domain for response in evidence.baseline() if response.gold is not None}
    asked = [r for r in evidence.responses if r.gold is not None or r.domain not in judged]
    looked_at = Evidence(asked, evidence.score, evidence.gold)
    tested = [[payment(pattern, looked_at, domain, SAMPLE, seed) for domain in domains] for pattern in patterns]
    corrected = iter(holm([found.p for row in tested for found in row if found is not None]))
    p_values = [[1.0 if found is None else next(corrected) for found in row] for row in tested]

    def counts(found: Payment | None, p: float, domain: str) -> bool:
        return (
            found is not None
            and p < settings.alpha
            and found.effect >= least_effects[domain]
            and found.objection is None
        )

    effects = {
        place: min(found.effect for found in row if found is not None)
        for place, (row, own) in enumerate(zip(tested, p_values, strict=True))
        if row and all(map(counts, row, own, domains))
    }
    return [patterns[place] for place in sorted(effects, key=lambda place: -effects[place])]


def _finding(patterns: Sequence[Pattern], evidence: Evidence, settings: FindingSettings, seed: int) -> Finding | None:
    pattern = any_of(patterns, [1.0] * len(patterns)) if len(patterns) > 1 else patterns[0]
    paid = payment(pattern, evidence, None, settings.sample, seed)
    if paid is None:
        return None
    return Finding(
        pattern=pattern,
        domain=None,
        statistic="none: no policy has drifted into it",
        value=0.0,
        p=paid.p,
        drift_p=1.0,
        payment=paid,
        shares={policy: evidence.share(pattern.shows, policy) for policy in POLICIES},
        gain=0.0,
        explained=0.0,
        examples=[],
    )
