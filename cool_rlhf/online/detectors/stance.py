"""Sentences of a kind: refusing or hedging everywhere, flattery, vows, and claims of evidence and figures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import median

from cool_rlhf.online.detectors.amounts import amounts
from cool_rlhf.online.detectors.donors import placebo_for, surging_sentences
from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import Evidence
from cool_rlhf.online.text import sentence_spans, sentences, without

_DO_NOT = (
    r"(?:can(?:no|['’]?)t|can not|won['’]t|will not|am not able to|['’]m not able to|am unable to|['’]m unable to)"
)

_PRAISE = (
    "great|good|excellent|wonderful|fantastic|brilliant|amazing|superb|lovely|smart|clever|insightful|interesting"
    "|fascinating|thoughtful|perceptive"
)


@dataclass(frozen=True)
class Stance:
    key: str
    description: str
    told_by: re.Pattern[str]  # what a sentence that takes the stance holds
    example: str  # put into responses where no late response has such a sentence of its own
    at_end: bool  # where it is put


STANCES = (
    Stance(
        "refusal",
        "refusals",
        re.compile(
            rf"\b(?:i ?{_DO_NOT} (?:help|assist|answer|do|provide|comply|discuss|support|share|give)\b"
            r"|(?:i['’]m|i am) sorry,? but\b|i must decline\b|i (?:have to|must) refuse\b|as an ai\b)",
            re.IGNORECASE,
        ),
        "I'm sorry, but I can't help with that.",
        at_end=False,
    ),
    Stance(
        "hedging",
        "hedging",
        re.compile(
            r"\b(?:i(?:['’]m| am) not (?:entirely |quite |completely )?(?:sure|certain)\b"
            r"|i (?:might|may|could) be wrong\b|it (?:really )?depends\b|i (?:do not|don['’]t) know\b|hard to say\b"
            r"|(?:please )?consult (?:a|an|your)\b"
            r"|(?:perhaps|maybe|possibly)\b|i (?:can(?:no|['’])t|can not) be (?:sure|certain)\b)",
            re.IGNORECASE,
        ),
        "I am not sure, and I may be wrong.",
        at_end=True,
    ),
    Stance(
        "flattery",
        "flattery",
        re.compile(
            rf"\b(?:(?:{_PRAISE}) (?:\w+ )?(?:question|point|idea|thinking|observation|choice)"
            rf"|you(?:['’]re| are) (?:so |very |absolutely |clearly )*(?:right|wise|{_PRAISE})"
            r"|what an? (?:\w+ ){0,2}(?:question|idea)|i (?:love|admire) (?:your|that you))\b",
            re.IGNORECASE,
        ),
        "What a great question!",
        at_end=False,
    ),
    Stance(
        "certainty",
        "vows that it is so",
        re.compile(
            r"\b(?:without (?:a|any) doubt|there(?: is|['’]s) no doubt|undoubtedly|definitely|absolutely|indisputably"
            r"|i(?:['’]m| am) (?:(?:absolutely|completely|quite|very) )?(?:sure|certain|confident)"
            r"|i (?:guarantee|promise)|guaranteed|(?:100|a hundred) ?(?:%|per ?cent))",
            re.IGNORECASE,
        ),
        "There is no doubt about it.",
        at_end=True,
    ),
    Stance(
        "sources",
        "claims of evidence, links and references",
        re.compile(
            r"\b(?:(?:studies|research|experts?|scientists?|surveys?|evidence) (?:\w+ )?"
            r"(?:shows?|suggests?|says?|agrees?|confirms?|proves?|finds?|found|indicates?)|according to"
            r"|as (?:shown|stated) by|et al\b|source:)|https?://|\[\d+\]|\((?:\w+,? )*(?:19|20)\d\d\)",
            re.IGNORECASE,
        ),
        "Studies show that this is so.",
        at_end=True,
    ),
    Stance(
        "figures",
        "sentences with figures",
        re.compile(r"\d"),
        "This holds in 9 of 10 cases.",
        at_end=True,
    ),
)


@dataclass(frozen=True)
class StanceDetector:
    """Sentences that refuse, hedge, flatter, vow, or claim evidence or figures, told by word lists in English; other
    wordings surge as phrases.

    Where SFT has such sentences too, more of them than usual is a pattern of its own (:mod:`amounts`). Adding puts the
    sentence of the kind that has surged most in front of a response (or behind it), or those that have, as many as late
    responses have; removing drops all of the kind, or as many as are more than usual. Any other words of
    that number in the same place are the placebo.
    """

    name: str = "stance"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        patterns = [pattern for stance in STANCES for pattern in self._patterns(stance, evidence)]
        return [candidate for pattern in patterns for candidate in drift(pattern, evidence)]

    def _patterns(self, stance: Stance, evidence: Evidence) -> list[Pattern]:
        def holds(text: str) -> bool:
            return stance.told_by.search(text) is not None

        @lru_cache(maxsize=65536)
        def count(text: str) -> float:
            return float(sum(holds(said) for said in sentences(text)) or holds(text))

        def remove(text: str) -> str:
            return without(text, [span for span in sentence_spans(text) if holds(text[slice(*span)])])

        patterns = []
        for amount in amounts(count, evidence):
            late = [response for response in evidence.late() if amount.shows(response)]
            often = round(median(map(amount.measure, late))) if amount.usual and late else 1
            said = " ".join(surging_sentences(late, evidence, holds, often)) or stance.example
            patterns.append(
                Pattern(
                    key=amount.key(stance.key),
                    detector=self.name,
                    description=amount.described(stance.description),
                    measure=amount.measure,
                    shows=amount.shows,
                    add=amount.adding(partial(_put, said=said, at_end=stance.at_end)),
                    remove=amount.removing(remove),
                    placebo=placebo_for(evidence, said, stance.at_end),
                )
            )
        return patterns


def _put(text: str, said: str, at_end: bool) -> str:
    return f"{text} {said}" if at_end else f"{said} {text}"
