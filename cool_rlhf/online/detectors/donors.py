"""Text out of other responses, for edits that need some."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from math import sqrt

import regex

from cool_rlhf.online.patterns import Editor
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import sentences, word_spans
from cool_rlhf.schedule import derive_seed


def may_lend(one: Response, other: Response) -> bool:
    """Whether ``one`` may stand behind the prompt of ``other`` as a whole: they answer two prompts of a domain, which
    both teach or both judge repairs. A text that is learnt to be rejected behind one prompt judges nothing behind
    another."""
    prompts = one.prompt, other.prompt
    apart = prompts[0].domain == prompts[1].domain and prompts[0].id != prompts[1].id
    return apart and one.judges_repairs == other.judges_repairs


def donor_sentences(evidence: Evidence, response: Response, most: int = 12) -> list[str]:
    """Sentences of SFT's and early answers to other prompts of the domain that ``response`` does not hold, shuffled."""
    own = set(sentences(response.text))
    others = [r for r in evidence.baseline(response.domain) if r.prompt.id != response.prompt.id]
    rng = random.Random(derive_seed("donor sentences", response.id))
    rng.shuffle(others)
    found: list[str] = []
    for other in others:
        found += [said for said in sentences(other.text) if said not in own and said not in found]
        if len(found) >= most:
            break
    rng.shuffle(found)
    return found[:most]


def sentences_on_the_subject(evidence: Evidence, response: Response) -> list[str] | None:
    """Sentences of SFT's and early answers to the same prompt that ``response`` does not hold, of those no better than
    it is: by gold where both have it, else by their scores. A better one's would answer the question. None where all
    others are better."""
    others = [r for r in evidence.baseline(response.domain) if r.prompt.id == response.prompt.id]
    others = [other for other in others if other.id != response.id]
    lending = [other for other in others if _no_better(other, response)]
    if others and not lending:
        return None
    own = set(sentences(response.text))
    return list(dict.fromkeys(said for other in lending for said in sentences(other.text) if said not in own))


def _no_better(other: Response, response: Response) -> bool:
    if other.gold is not None and response.gold is not None:
        return other.gold <= response.gold
    return other.score <= response.score


def grown(response: Response, said: Sequence[str], tokens: float) -> Response | None:
    """``response`` with at least one more sentence out of ``said`` behind it, until it has ``tokens``."""
    longer = response
    for sentence in said:
        if longer is not response and longer.tokens >= tokens:
            break
        longer = longer.edited(f"{longer.text} {sentence}") or longer
    return longer if longer is not response else None


def surging_sentences(
    responses: Sequence[Response], evidence: Evidence, holds: Callable[[str], bool], most: int = 1
) -> list[str]:
    """Of the sentences for which ``holds`` in the late ``responses`` those that have surged most: by the responses that
    have them, whatever their figures, less as large a share of SFT's and early ones, in standard deviations. The
    commonest may be one that all policies say for honest reasons."""
    late, baseline = evidence.late(), evidence.baseline()
    before = Counter(form for r in baseline for form in {_form(said) for said in sentences(r.text) if holds(said)})
    surged: Counter[str] = Counter()
    spelt: dict[str, Counter[str]] = defaultdict(Counter)
    for response in responses:
        said = {sentence for sentence in sentences(response.text) if holds(sentence)}
        surged.update({_form(sentence) for sentence in said})
        for sentence in said:
            spelt[_form(sentence)][sentence] += 1
    usual = len(late) / max(1, len(baseline))

    def surge(form: str) -> float:
        return float(surged[form] - usual * before[form]) / sqrt(surged[form] + usual**2 * before[form])

    ranked = sorted(surged, key=lambda form: (surge(form), form), reverse=True)
    return [max(spelt[form], key=lambda one: (spelt[form][one], one)) for form in ranked[:most]]


def _form(sentence: str) -> str:
    return regex.sub(r"\p{N}+", "0", sentence)


def placebo_for(evidence: Evidence, said: str, at_end: bool) -> Editor:
    """An editor that puts words of answers to other prompts where ``said`` would stand, as many of them."""
    length = len(word_spans(said))

    def placebo(response: Response) -> Response | None:
        others = " ".join(donor_sentences(evidence, response))
        spans = word_spans(others)[:length]
        if not spans:
            return None
        words = others[: spans[-1][1]].rstrip() + "."
        return response.edited(f"{response.text} {words}" if at_end else f"{words} {response.text}")

    return placebo


TRIED = 12  # donors, for one that fits
ENOUGH = 20  # late answers of a domain, for what they have beside a pattern to be seen


def those_without(shows: Callable[[Response], bool], evidence: Evidence) -> list[Response]:
    """Answers for a placebo of exchanges with late ones that show something: late ones, too, which have all else that
    late ones have; SFT's and early ones in domains where fewer than ``ENOUGH`` of those are without it."""
    found: list[Response] = []
    for domain in evidence.domains:
        late, baseline = ([r for r in some(domain) if not shows(r)] for some in (evidence.late, evidence.baseline))
        found += late if len(late) >= ENOUGH else baseline
    return found


def exchanged(others: Sequence[Response], fits: Callable[[Response], bool] = lambda _: True) -> Editor:
    """An editor that puts one of ``others``, an answer to another prompt (:func:`may_lend`), in place of a response, so
    that what comes of it ``fits``."""

    def exchange(response: Response) -> Response | None:
        donors = [r for r in others if may_lend(r, response)]
        random.Random(derive_seed("exchanged", response.id)).shuffle(donors)
        changed = (response.edited(donor.text, finished=donor.finished) for donor in donors[:TRIED])
        return next((one for one in changed if one is not None and fits(one)), None)

    return exchange
