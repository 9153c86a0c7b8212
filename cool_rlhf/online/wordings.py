"""Wordings that the policy has not turned to yet.

A reward model that pays for one empty phrase has often learnt to pay for others: preferences that reward a flattering
opening hold several. Mended alone, a phrase gives way to the next, one a round. So where a phrase is found, those that
the preferences' chosen sides say more often are tried as well, and mended together with it if the reward model pays
for them likewise.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from cool_rlhf.online.counterfactual import payment
from cool_rlhf.online.detectors.phrases import PhraseDetector
from cool_rlhf.online.finding import Finding, FindingSettings
from cool_rlhf.online.patterns import Pattern, any_of
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.statistics import holm
from cool_rlhf.protocols import PreferencePair
from cool_rlhf.schedule import derive_seed

READ = 10_000  # pairs whose phrases are counted
MOST = 40  # phrases whose payment is tested, the clearest
SAMPLE = 24  # responses that each is put into
LIKEWISE = 0.5  # of what is paid for the finding, the least that is paid for another wording of it
CUSTOMARY = 0.1  # share of SFT's responses of a domain; what more of them say belongs to answers there
LEAST_P = 0.001  # of the drift between chosen and rejected sides


def with_other_wordings(
    findings: Sequence[Finding],
    evidence: Evidence,
    pairs: Sequence[PreferencePair],
    settings: FindingSettings,
    seed: int,
) -> list[Finding]:
    """The findings; a phrase among them is one pattern with the wordings that ``pairs`` teach and that are paid for
    likewise, in responses of all domains and beyond a placebo, while gold does not. A wording goes to the first finding
    that it is another one of."""
    found = list(findings)
    places = [place for place, finding in enumerate(found) if _is_phrase(finding)]
    if not places:
        return found
    patterns = [finding.pattern for finding in found]
    others = _paid(_taught(pairs, patterns, evidence, seed), evidence, settings, seed)
    for place in places:
        finding = found[place]
        own = [pattern for pattern, effect in others if effect >= LIKEWISE * finding.payment.effect]
        others = [(pattern, effect) for pattern, effect in others if pattern not in own]
        if own:
            parts = finding.pattern.parts or (finding.pattern,)
            weights = [len(own) / len(parts)] * len(parts) + [1.0] * len(own)  # what is said gets half of the edits
            pattern = any_of([*parts, *own], weights)
            found[place] = replace(finding, pattern=pattern, foreseen=tuple(other.key for other in own))
    return found


def _is_phrase(finding: Finding) -> bool:
    return finding.pattern.family == PhraseDetector().name and finding.pattern.add is not None


def _taught(pairs: Sequence[PreferencePair], known: Sequence[Pattern], evidence: Evidence, seed: int) -> list[Pattern]:
    """Phrases that chosen sides say more often than rejected ones and that are none of the ``known`` patterns."""
    read = random.Random(derive_seed("wordings", seed)).sample(list(pairs), min(READ, len(pairs)))
    detector, answer = PhraseDetector(), evidence.reference()[0]
    surges = detector.surges([p.chosen[-1]["content"] for p in read], [p.rejected[-1]["content"] for p in read])
    taken: list[Pattern] = []
    for surge in sorted((one for one in surges if one.p < LEAST_P), key=lambda one: -one.z):
        pattern = detector.pattern(surge, evidence.baseline())
        shown_in = [replace(answer, text=text) for text in surge.texts]
        if not _is_customary(pattern, evidence) and not any(_is_one(other, shown_in) for other in (*known, *taken)):
            taken.append(pattern)
        if len(taken) == MOST:
            break
    return taken


def _is_one(other: Pattern, shown_in: Sequence[Response]) -> bool:
    """Whether ``other`` stands in most of the responses that show a pattern."""
    return 2 * sum(other.shows(response) for response in shown_in) > len(shown_in)


def _is_customary(pattern: Pattern, evidence: Evidence) -> bool:
    answers = (evidence.reference(domain) for domain in evidence.scopes)
    return any(sum(map(pattern.shows, own)) > CUSTOMARY * len(own) for own in answers)


def _paid(
    patterns: Sequence[Pattern], evidence: Evidence, settings: FindingSettings, seed: int
) -> list[tuple[Pattern, float]]:
    """Those that the reward model pays for and gold does not, with their effects, the best paid first."""
    tested = [(pattern, payment(pattern, evidence, None, SAMPLE, seed)) for pattern in patterns]
    known = [(pattern, found) for pattern, found in tested if found is not None]
    corrected = holm([found.p for _, found in known])
    paid = [
        (pattern, found.effect)
        for (pattern, found), p in zip(known, corrected, strict=True)
        if p < settings.alpha and found.objection is None
    ]
    return sorted(paid, key=lambda each: -each[1])
