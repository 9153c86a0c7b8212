"""Preference pairs that mend a finding: clean over hacked, as many longer as shorter ones chosen, unless length is it.

A row of ``patches.jsonl`` is a preference row of TRL's conversational kind (``prompt``, ``chosen``, ``rejected``,
``domain``, ``chosen_finished``, ``rejected_finished``) with ``id``, ``pattern`` (the finding's name), ``role``
(``pattern``, or ``balance`` for pairs that only balance lengths), ``split`` (``training`` or ``held_out``),
``chosen_source`` and ``rejected_source`` (a response's id, with ``+removed``, ``+added``, ``+cut`` or ``+padded``
for an edited one).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from cool_rlhf.data.identity import JUDGING_SHARE, judges_repairs
from cool_rlhf.online.counterfactual import Payment
from cool_rlhf.online.detectors.donors import donor_sentences, grown
from cool_rlhf.online.found import Finding
from cool_rlhf.online.responses import Evidence, Response
from cool_rlhf.online.text import sentence_spans, word_spans
from cool_rlhf.protocols import PreferencePair
from cool_rlhf.schedule import derive_seed

_LARGEST_CUT = 2 / 3  # of an answer's words


@dataclass(frozen=True)
class PatchSettings:
    """``most``: pairs of a finding, held-out ones among them. ``by_prompt``: pairs that may share a prompt.
    ``conditions``: how many each pair is learnt under; a finding has as many times fewer pairs to learn from."""

    most: int = 100
    by_prompt: int = 2
    conditions: int = 1


@dataclass(frozen=True)
class Version:
    """A response as it was sampled, or edited: its source says which. ``worth`` is its score without the pattern, or
    less what is paid for the pattern, None where neither can be told; ``gold`` its own gold reward."""

    response: Response
    source: str
    worth: float | None
    gold: float | None


@dataclass(frozen=True)
class Patch:
    """``condition``: the one that the pair is judged under; its domain's own, where no other is named."""

    pattern: str
    role: str
    held_out: bool
    chosen: Version
    rejected: Version
    condition: str | None = None

    @property
    def id(self) -> str:
        under = "" if self.condition in (None, self.chosen.response.domain) else f" under {self.condition}"
        return f"{self.pattern}: {self.chosen.source} > {self.rejected.source}{under}"

    @property
    def of_one_response(self) -> bool:
        """Whether its sides are versions of one response."""
        return self.chosen.response.id == self.rejected.response.id

    @property
    def length_difference(self) -> int:
        """Words of the chosen response less those of the rejected one."""
        return _length(self.chosen.response) - _length(self.rejected.response)

    @property
    def pair(self) -> PreferencePair:
        chosen, rejected = self.chosen.response.conversation(), self.rejected.response.conversation()
        return PreferencePair(
            chosen=chosen.messages,
            rejected=rejected.messages,
            domain=self.chosen.response.domain if self.condition is None else self.condition,
            margin=None,
            chosen_finished=chosen.finished,
            rejected_finished=rejected.finished,
        )


def patches_under(
    paying: Mapping[str, Sequence[str]], finding: Finding, evidence: Evidence, settings: PatchSettings, seed: int
) -> list[Patch]:
    """As :func:`make_patches`, each under every condition that its domain pays by; those to train on no more in all."""
    conditions = max(1, *(len(paying[domain]) for domain in evidence.domains if finding.covers(domain)))
    return [
        replace(patch, condition=condition)
        for patch in make_patches(finding, evidence, replace(settings, conditions=conditions), seed)
        for condition in paying[patch.chosen.response.domain]
    ]


def make_patches(finding: Finding, evidence: Evidence, settings: PatchSettings, seed: int) -> list[Patch]:
    """Up to ``settings.most`` pairs for one finding; those of prompts that judge repairs are held out.

    Chosen are SFT's and early responses without the pattern, and late ones it was taken out of; rejected are late
    responses with it, and SFT's and early ones it was put into. The clean side has to be at least as good apart from
    the pattern: by gold where both have it and it tells them apart, else by the reward model's scores without the
    pattern where both have one. Pairs that choose the shorter side are matched with pairs that choose the longer one by
    as many words; where those run out, pairs are made that only balance: a clean response over itself cut short, or
    padded with sentences of other answers. A rejected side that is too long for that is cut short as well, if it shows
    the pattern still; else several clean responses are. What cannot be balanced is left out. Where length itself is the
    pattern nothing is balanced. Held-out pairs teach nothing, so those are of the pattern alone. Fewer than 20 come
    back where the responses hold no more.
    """
    pairs = _candidates(finding, evidence)
    if finding.pattern.of_length:
        pairs = _of_one_direction(pairs)
    training, judging = (
        _spread([pair for pair in pairs if pair.held_out == held_out], settings.by_prompt, seed)
        for held_out in (False, True)
    )
    most_judging = round(JUDGING_SHARE * settings.most)
    most = (settings.most - most_judging) // settings.conditions
    taught = training[:most] if finding.pattern.of_length else _balanced(training, finding, evidence, most)
    return [*taught, *judging[:most_judging]]


def _candidates(finding: Finding, evidence: Evidence) -> list[Patch]:
    clean, hacked = _versions(finding, evidence)
    return [
        Patch(finding.name, "pattern", judges_repairs(chosen.response.prompt.messages), chosen, rejected)
        for prompt, goods in clean.items()
        for chosen in goods
        for rejected in hacked.get(prompt, [])
        if _at_least_as_good(chosen, rejected)
    ]


def _versions(finding: Finding, evidence: Evidence) -> tuple[dict[str, list[Version]], dict[str, list[Version]]]:
    """Clean and hacked versions by prompt. What is left without a word once the pattern is out is no answer."""
    pattern = finding.pattern
    clean: dict[str, list[Version]] = {}
    hacked: dict[str, list[Version]] = {}
    for original in evidence.baseline():
        if not finding.covers(original.domain) or pattern.shows(original):
            continue
        version = Version(original, original.id, original.score, original.gold)
        clean.setdefault(original.prompt.id, []).append(version)
        changed = pattern.add(original) if pattern.add and _is_paid_for_added(finding.payment) else None
        if changed is not None:
            spoiled = Version(changed, f"{original.id}+added", original.score, _gold(evidence, changed))
            hacked.setdefault(original.prompt.id, []).append(spoiled)
    late = [response for response in evidence.late() if finding.covers(response.domain) and pattern.shows(response)]
    cleaned = [pattern.remove(response) if pattern.remove else None for response in late]
    scores = iter(evidence.score([response.conversation() for response in cleaned if response is not None]))
    for response, without in zip(late, cleaned, strict=True):
        worth = next(scores) if without is not None else _unpaid(response, finding)
        hacked.setdefault(response.prompt.id, []).append(Version(response, response.id, worth, response.gold))
        if without is not None and word_spans(without.text) and not pattern.shows(without):
            version = Version(without, f"{response.id}+removed", worth, _gold(evidence, without))
            clean.setdefault(response.prompt.id, []).append(version)
    return clean, hacked


def _is_paid_for_added(payment: Payment) -> bool:
    """Whether what adding puts in is what is paid for. Where taking out shows it, adding may do something else, such as
    putting it in another place: such a pair would teach, and judge, what needs no mending."""
    return payment.shown_by != "removed" or (payment.added is not None and payment.added >= payment.effect / 2)


def _unpaid(response: Response, finding: Finding) -> float | None:
    """The score of a response that the pattern cannot be taken out of, less what is paid for the pattern."""
    return response.score - finding.payment.effect if finding.payment.shown_by != "gold" else None


def _gold(evidence: Evidence, response: Response) -> float | None:
    return evidence.gold(response) if evidence.gold else None


def _at_least_as_good(chosen: Version, rejected: Version) -> bool:
    if chosen.response.text == rejected.response.text and chosen.response.finished == rejected.response.finished:
        return False
    if chosen.gold is not None and rejected.gold is not None and chosen.gold != rejected.gold:
        return chosen.gold > rejected.gold
    return chosen.worth is None or rejected.worth is None or chosen.worth >= rejected.worth


def _of_one_direction(patches: Sequence[Patch]) -> list[Patch]:
    """Those that choose the shorter side in words, or the longer one, as most do: of a finding that is about length in
    tokens a few pairs differ the other way in words."""
    signs = Counter(map(_sign, patches)).most_common(1)
    return [patch for patch in patches if signs and _sign(patch) == signs[0][0]]


def _spread(patches: Sequence[Patch], by_prompt: int, seed: int) -> list[Patch]:
    """At most ``by_prompt`` of a prompt: in turn one of two versions of one response, which differ by the pattern
    alone, the best response first, and one of two responses, at random. Of either first those that choose the side,
    longer or shorter, that fewer choose: they are the others' counterweight. One of every prompt comes before a
    second of any: many questions teach more than many answers."""
    drawn = sorted(patches, key=lambda patch: derive_seed("patches", seed, patch.id))
    signs = Counter(_sign(patch) for patch in drawn)
    of_prompt: dict[str, tuple[list[Patch], list[Patch]]] = defaultdict(lambda: ([], []))
    for patch in sorted(drawn, key=lambda patch: signs[_sign(patch)]):
        of_prompt[patch.chosen.response.prompt.id][not patch.of_one_response].append(patch)
    turns: list[tuple[int, Patch]] = []
    for place, (same, different) in enumerate(of_prompt.values()):
        same.sort(key=lambda patch: (signs[_sign(patch)], -(patch.chosen.gold or 0.0), -(patch.chosen.worth or 0.0)))
        first, second = (same, different) if place % 2 else (different, same)
        in_turn = [patch for turn in zip_longest(first, second) for patch in turn if patch is not None]
        turns += enumerate(in_turn[:by_prompt])
    return [patch for _, patch in sorted(turns, key=lambda turn: (turn[0], derive_seed("patches", seed, turn[1].id)))]


def _sign(patch: Patch) -> int:
    return (patch.length_difference > 0) - (patch.length_difference < 0)


def _balanced(patches: Sequence[Patch], finding: Finding, evidence: Evidence, most: int) -> list[Patch]:
    """Couples of nearly opposite length differences, then pairs of one length, then pairs with one that balances them,
    and at last, those of the least difference first, pairs with several."""
    longer, shorter = ([p for p in patches if _sign(p) == sign] for sign in (1, -1))
    chosen: list[Patch] = []
    for patch in longer:
        if not shorter or len(chosen) + 2 > most:
            break
        match = min(shorter, key=lambda other: abs(other.length_difference + patch.length_difference))
        if _near(patch.length_difference, -match.length_difference):
            shorter.remove(match)
            chosen += [patch, match]
    chosen += [patch for patch in patches if _sign(patch) == 0][: most - len(chosen)]
    taken = {patch.id for patch in chosen}
    rest = [_nearer(patch, finding, evidence) for patch in [*longer, *shorter] if patch.id not in taken]
    least_first = sorted(rest, key=lambda patch: abs(patch.length_difference))
    cleans = {patch.chosen.source: patch.chosen for patch in patches}.values()
    longest_first = sorted(cleans, key=lambda clean: _length(clean.response), reverse=True)
    for waiting, others in ((rest, []), (least_first, longest_first)):
        for patch in waiting:
            if patch.id in taken or len(chosen) + 2 > most:
                continue
            counterweights = _counterweights(patch, others, taken, evidence)
            if counterweights and len(chosen) + 1 + len(counterweights) <= most:
                chosen += [patch, *counterweights]
                taken |= {patch.id, *(counterweight.id for counterweight in counterweights)}
    return chosen


def _near(one: int, other: int) -> bool:
    """Whether two differences in words are as good as the same."""
    return abs(one - other) <= max(1, abs(one) // 5)


def _nearer(patch: Patch, finding: Finding, evidence: Evidence) -> Patch:
    """``patch``; where its rejected side is longer than its chosen one, cut short, can balance, without the last
    sentences of that, if it shows the pattern without them."""
    rejected = patch.rejected.response
    beyond = word_spans(rejected.text)[_length(patch.chosen.response) + _most_cut(patch.chosen.response) :]
    ends = [end for _, end in sentence_spans(rejected.text) if beyond and end <= beyond[0][0]]
    cut = rejected.edited(rejected.text[: ends[-1]]) if ends else None
    if cut is None or not finding.pattern.shows(cut):
        return patch
    version = Version(cut, f"{patch.rejected.source}+cut", patch.rejected.worth, _gold(evidence, cut))
    return replace(patch, rejected=version) if _at_least_as_good(patch.chosen, version) else patch


def _counterweights(patch: Patch, others: Sequence[Version], taken: Collection[str], evidence: Evidence) -> list[Patch]:
    """The chosen side of ``patch`` over itself, shorter by nearly what it chooses the shorter side by, or longer; where
    it cannot be by as much, ``others`` over themselves for the rest. Empty where that does not balance ``patch``."""
    wanted = -patch.length_difference
    found: dict[str, Patch] = {}
    for clean in [patch.chosen, *others]:
        missing = wanted - sum(one.length_difference for one in found.values())
        over = (
            _over_cut(patch, clean, missing, evidence) if wanted > 0 else _over_padded(patch, clean, missing, evidence)
        )
        if over is None or over.id in taken:
            continue
        found.setdefault(over.id, over)
        if _near(wanted, sum(one.length_difference for one in found.values())):
            return list(found.values())
    return []


def _over_cut(patch: Patch, clean: Version, words: int, evidence: Evidence) -> Patch | None:
    """``clean`` over itself without its last ``words``, or as many of them as may go."""
    spans, cut = word_spans(clean.response.text), min(words, _most_cut(clean.response))
    other = clean.response.edited(clean.response.text[: spans[-1 - cut][1]]) if cut else None
    return _balancing(patch, clean, other, f"{clean.source}+cut", evidence)


def _over_padded(patch: Patch, clean: Version, words: int, evidence: Evidence) -> Patch | None:
    """``clean`` over itself with -``words`` of other answers behind it, or as many as these have."""
    response, length = clean.response, _length(clean.response)
    tokens = response.tokens * (1 - words / max(1, length))
    padded = grown(response, donor_sentences(evidence, response), tokens)
    ends = [end for _, end in word_spans(padded.text)][: length - words] if padded else []
    other = response.edited(f"{padded.text[: ends[-1]]}.") if padded and ends else None
    return _balancing(patch, clean, other, f"{clean.source}+padded", evidence)


def _balancing(patch: Patch, clean: Version, other: Response | None, source: str, evidence: Evidence) -> Patch | None:
    """A pair that only balances; None where ``other`` is the better one."""
    if other is None:
        return None
    version = Version(other, source, None, _gold(evidence, other))
    good = version.gold is None or clean.gold is None or clean.gold >= version.gold
    return Patch(patch.pattern, "balance", patch.held_out, clean, version) if good else None


def _most_cut(response: Response) -> int:
    """How many words may go where a response is cut short: of a word or two nobody learns what is better."""
    return int(_LARGEST_CUT * _length(response))


def _length(response: Response) -> int:
    return len(word_spans(response.text))
