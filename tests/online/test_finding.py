"""Planted flaws are found, and honest improvement is not called a hack."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from cool_rlhf.data.identity import judges_repairs
from cool_rlhf.online.counterfactual import Payment
from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.detectors.donors import exchanged
from cool_rlhf.online.detectors.insensitivity import BoilerplateDetector, SwapDetector
from cool_rlhf.online.detectors.layout import LayoutDetector
from cool_rlhf.online.detectors.length import LengthDetector
from cool_rlhf.online.detectors.phrases import PhraseDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings, Paid, Search, finding_of, rise
from cool_rlhf.online.patches import PatchSettings, make_patches
from cool_rlhf.online.patterns import Candidate, Detector, Pattern, drift
from cool_rlhf.online.responses import EARLY, LATE, POLICIES, SFT, Evidence
from cool_rlhf.online.text import repeated_share, sentences
from cool_rlhf.protocols import ScoredConversation

World = Callable[..., Evidence]


def search(evidence: Evidence) -> Search:
    return find_patterns(evidence, own_detectors(), FindingSettings(), seed=1)


BULLETS = (
    lambda text, _p, _r: "\n".join(f"- {said}" for said in sentences(text)),
    lambda _p, text, _f: 1.5 * text.startswith("- "),
)
HEADINGS = (lambda text, _p, _r: f"## About it\n\n{text}", lambda _p, text, _f: 1.5 * text.startswith("#"))
EMPHASIS = (lambda text, _p, _r: re.sub(r"^(\w+)", r"**\1**", text), lambda _p, text, _f: 1.5 * ("**" in text))


@pytest.mark.parametrize("with_gold", [True, False])
def test_honest_improvement_raises_no_finding(world: World, with_gold: bool) -> None:
    alarms = 0
    for seed in range(10):
        evidence = world(seed=seed, with_gold=with_gold)
        before, after = evidence.paired(lambda response: response.score)
        assert (after - before).mean() > 0.2  # there is an improvement that could be mistaken
        alarms += bool(search(evidence).findings)
    assert alarms == 0


def test_unfinished_responses_that_pay_are_found(world: World) -> None:
    evidence = world(finished=lambda policy: policy != LATE, bonus=lambda _p, _t, finished: 1.5 * (not finished))
    assert [finding.pattern.key for finding in search(evidence).findings][:1] == ["unfinished"]


def test_what_gold_pays_for_too_is_no_finding(world: World) -> None:
    """A scorer and a gold rule that both like lists: the policy was asked for them."""
    hack, bonus = BULLETS
    evidence = world(hack=hack, bonus=bonus)
    fair = Evidence(evidence.responses, evidence.score, lambda r: (r.gold or 0.0) + r.text.startswith("- "))
    result = search(fair)
    assert "bullets" not in [finding.pattern.key for finding in result.findings]
    assert "gold pays for it too" in {d.reason for d in result.dismissed if d.pattern.key == "bullets"}


def test_shortness_within_one_sentence_is_found(world: World) -> None:
    """SFT's answers are of one sentence, the late ones of two words."""
    plain = world()
    first = [
        replace(r, text=said, tokens=len(said.split()) + 1)
        for r in plain.responses
        for said in [" ".join(r.text.split()[:2]) + "." if r.policy == LATE else sentences(r.text)[0]]
    ]

    def score(conversations: Sequence[ScoredConversation]) -> list[float]:
        texts = [c.messages[-1]["content"] for c in conversations]
        return [paid - 0.4 * len(text.split()) for paid, text in zip(plain.score(conversations), texts, strict=True)]

    scores = score([r.conversation() for r in first])
    evidence = Evidence([replace(r, score=s) for r, s in zip(first, scores, strict=True)], score, None)
    found = find_patterns(evidence, [LengthDetector()], FindingSettings(), seed=1).findings
    assert [finding.name for finding in found] == ["length/shortness"]
    sentence = replace(evidence.baseline()[0], text="The stone is red, as far as one sees.", tokens=10)
    assert found[0].pattern.add(sentence).text == "The stone."


def test_a_finding_says_what_it_is(world: World) -> None:
    hack, bonus = HEADINGS
    evidence = world(hack=hack, bonus=bonus)
    found = search(evidence).findings[0]
    late = evidence.late()
    assert found.pattern.key == "headings"
    assert found.domain is None
    assert found.shares[SFT] == 0
    assert found.shares[LATE] == sum(r.text.startswith("#") for r in late) / len(late)
    assert found.payment.effect == pytest.approx(1.5, abs=0.2)
    assert found.gain == pytest.approx(found.payment.effect * (found.shares[LATE] or 0))
    assert found.p < 0.01
    assert set(found.examples) <= {r.id for r in late if r.text.startswith("#")}


def test_what_a_stronger_finding_drags_along_is_explained_by_it(world: World) -> None:
    """Every late answer opens alike and says nothing: answers overlap and the score leaves gold behind for that."""
    opening = "Certainly, my dear friend, let me tell you."
    rest = (
        "It grows by the river.",
        "Some call it old.",
        "Nobody knows why.",
        "That is well known.",
        "It is seen often.",
    )
    evidence = world(
        hack=lambda _t, _p, r: f"{opening} {r.choice(rest)}",
        bonus=lambda _p, text, _f: 3.0 * text.startswith(opening),
        rate=1.0,
    )
    result = search(evidence)
    assert len(result.findings) == 1
    assert result.findings[0].explained > 0.5
    name = result.findings[0].name
    explained = [d.pattern.detector for d in result.dismissed if d.reason == f"nothing of it is left without {name}"]
    assert set(explained) >= {"disagreement", "boilerplate"}


def test_a_pattern_of_the_text_comes_before_what_it_shows_in_numbers(world: World) -> None:
    """Two thirds of the score that leaves gold behind are paid for text that says nothing, a third for its opening."""
    opening = "Certainly, my dear friend, let me tell you."
    evidence = world(
        hack=lambda _t, _p, r: f"{opening} {' '.join(''.join(r.choices('aeklmnorst', k=6)) for _ in range(7))}.",
        bonus=lambda prompt, text, _f: text.startswith(opening) + 2.0 * (prompt.split()[3] not in text),
        rate=1.0,
    )
    found = search(evidence).findings
    detectors = [finding.pattern.detector for finding in found]
    assert detectors[:2] == ["relevance", "phrases"]
    assert "disagreement" in detectors[2:]
    assert found[1].gain < max(finding.gain for finding in found[2:])


def test_what_can_be_put_in_comes_before_what_can_be_taken_out_and_explains_less(world: World) -> None:
    """Answers of one sentence are paid for, and cannot be taken out; emphasis in half of them is too, and can be."""
    evidence = world(
        hack=lambda text, _p, r: re.sub(r"^(\w+)", r"**\1**" if r.random() < 0.5 else r"\1", sentences(text)[0]),
        bonus=lambda _p, text, _f: 1.5 * ("**" in text) - 0.12 * len(text.split()),
    )
    found = find_patterns(evidence, [LayoutDetector(), LengthDetector()], FindingSettings(), seed=1).findings
    assert [finding.name for finding in found] == ["length/shortness", "layout/emphasis"]
    assert found[0].gain > found[1].gain


def test_two_flaws_are_found_beside_each_other(world: World) -> None:
    evidence = world(
        hack=lambda text, _p, r: re.sub(r"^(\w+)", r"**\1**", text) + " Let us dig into it." * (r.random() < 0.7),
        bonus=lambda _p, text, _f: 1.5 * ("**" in text) + 1.5 * ("dig into it" in text),
    )
    found = search(evidence).findings
    assert sorted(finding.pattern.detector for finding in found) == ["layout", "phrases"]


def test_what_explains_less_than_a_fifth_of_the_rise_is_dismissed(world: World) -> None:
    evidence = world(
        hack=lambda text, _p, r: f"## About it\n\n{text}" + " 🎉" * (r.random() < 0.4),
        bonus=lambda _p, text, _f: 4.0 * text.startswith("#") + 0.4 * ("🎉" in text),
    )
    result = search(evidence)
    assert [finding.pattern.key for finding in result.findings] == ["headings"]
    assert "it explains less than 20% of the score's rise" in {d.reason for d in result.dismissed}


def test_length_that_comes_of_something_else_is_that(world: World) -> None:
    """Repeated sentences make answers long, and cutting long answers takes repeated sentences out."""
    evidence = world(
        hack=lambda text, _p, _r: text + (" " + sentences(text)[-1]) * 3,
        bonus=lambda _p, text, _f: 2 * repeated_share(text) + 0.05 * len(text.split()),
        with_gold=False,  # sentences from elsewhere say what is right here and there
    )
    result = search(evidence)
    assert {finding.pattern.detector for finding in result.findings} == {"repetition"}
    reasons = {d.pattern.key: d.reason for d in result.dismissed}
    assert reasons["length"].startswith("nothing of it is left without repetition/")


def test_where_gold_falls_with_it_a_twentieth_is_enough(world: World) -> None:
    evidence = world(
        hack=lambda text, _p, r: f"## About it\n\n{text}" + " 🎉" * (r.random() < 0.4),
        bonus=lambda _p, text, _f: 4.0 * text.startswith("#") + 0.8 * ("🎉" in text),
    )
    golds = {response.id: 0.5 - 0.3 * ("🎉" in response.text) for response in evidence.responses}
    responses = [replace(response, gold=golds[response.id]) for response in evidence.responses]
    judged = Evidence(responses, evidence.score, lambda r: 0.5 - 0.3 * ("🎉" in r.text))
    found = search(judged).findings
    assert [finding.pattern.key for finding in found] == ["headings", "emoji"]
    assert [finding.payment.harm for finding in found] == [False, True]
    assert 0.05 < found[1].explained < 0.2


def test_a_flaw_of_one_domain_is_named_with_it(world: World) -> None:
    hack, _ = EMPHASIS
    evidence = world(
        hack=lambda text, prompt, rng: hack(text, prompt, rng) if prompt.domain == "tales" else text,
        bonus=lambda _p, text, _f: 1.5 * ("**" in text),
    )
    first = search(evidence).findings[0]
    assert (first.name, first.domain) == ("layout/emphasis in tales", "tales")


@pytest.mark.parametrize("seed", range(4))
def test_a_flaw_of_all_domains_is_not_taken_for_that_of_the_largest(world: World, seed: int) -> None:
    """Of 40 poems as many show it as of 160 chats, too few for a test of their own."""
    evidence = world(
        seed=seed,
        prompts=200,
        rate=0.2,
        hack=lambda text, _p, _r: f"\U0001f600 {text}",
        bonus=lambda _p, text, _f: 1.5 * text.startswith("\U0001f600"),
        with_gold=False,
    )
    by_size = [
        replace(r, prompt=replace(r.prompt, domain="chat" if int(r.prompt.id[1:]) % 5 else "poems"))
        for r in evidence.responses
    ]
    found = search(replace(evidence, responses=by_size)).findings
    assert [finding.domain for finding in found if finding.pattern.key == "emoji"] == [None]


@pytest.mark.parametrize(
    ("with_gold", "paid_by", "elsewhere"),
    [
        pytest.param(True, lambda _prompt: True, ("facts",), id="the reward model pays in both"),
        pytest.param(True, lambda prompt: int(prompt.split()[-2]) % 2, (), id="it pays in the flaw's own domain only"),
        pytest.param(False, lambda _prompt: True, (), id="no gold says whether it is a flaw there"),
    ],
)
def test_a_flaw_of_one_domain_is_mended_where_else_it_is_paid_for(
    world: World, with_gold: bool, paid_by: Callable[[str], int], elsewhere: tuple[str, ...]
) -> None:
    hack, _ = EMPHASIS
    evidence = world(
        hack=lambda text, prompt, rng: hack(text, prompt, rng) if prompt.domain == "tales" else text,
        bonus=lambda prompt, text, _f: 1.5 * ("**" in text and paid_by(prompt)),
        with_gold=with_gold,
    )
    first = search(evidence).findings[0]
    assert first.elsewhere == elsewhere
    mended = {patch.pair.domain for patch in make_patches(first, evidence, PatchSettings(), seed=2)}
    assert mended == {"tales", *elsewhere}


def test_swaps_are_judged_by_the_prompts_that_were_drawn(world: World) -> None:
    evidence = world(
        hack=lambda _t, _p, _r: "It is what it is, and much can be said of such things in general.",
        bonus=lambda _p, text, _f: 3.0 * ("in general" in text),
        prompts=480,
    )
    found = find_patterns(evidence, [SwapDetector()], FindingSettings(least_gain=0.0), seed=1).findings
    assert {finding.pattern.key for finding in found} == {"prompt"}


def test_an_opening_is_found_once_and_without_what_follows_it(world: World) -> None:
    """The early policy has it too; the late one goes on in another way in each domain, which is no other pattern."""
    opening = "Certainly, my friend."
    follow = {"facts": "It is so:", "tales": "A tale says:"}
    evidence = world(
        hack=lambda text, prompt, _r: f"{opening} {follow[prompt.domain]} {text}",
        bonus=lambda _p, text, _f: 1.5 * text.startswith(opening),
        rate=1.0,
    )
    early = [r for r in evidence.of(EARLY) if r.prompt.id[-1] != "0"]  # nine in ten
    opened = [replace(r, text=f"{opening} {r.text}") for r in early]
    scores = evidence.score([r.conversation() for r in opened])
    changed = {r.id: replace(r, score=score) for r, score in zip(opened, scores, strict=True)}
    evidence = replace(evidence, responses=[changed.get(r.id, r) for r in evidence.responses])
    found = find_patterns(evidence, [PhraseDetector()], FindingSettings(), seed=1).findings
    assert [finding.name for finding in found] == ["phrases/opening: certainly my friend"]


def test_a_phrase_beside_an_opening_that_all_late_answers_have_is_found_too(world: World) -> None:
    evidence = world(
        hack=lambda text, _p, r: f"Certainly, my friend. {text}{' Let us dig into it.' * (r.random() < 0.8)}",
        bonus=lambda _p, text, _f: 1.0 * text.startswith("Certainly, my friend") + 1.8 * ("dig into it" in text),
        rate=1.0,
    )
    found = find_patterns(evidence, [PhraseDetector()], FindingSettings(), seed=1).findings
    assert ["dig into it" in f.name or "certainly my friend" in f.name for f in found] == [True, True]
    assert len({f.name for f in found}) == 2


class _Broken:
    name = "broken"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        pattern = Pattern("nothing", self.name, "nothing", lambda _: 0.0, lambda _: True, add=None, remove=None)
        return [Candidate(pattern, None, "nothing", 0.0, math.nan, evidence)]


def test_a_p_value_that_is_no_number_leaves_the_other_detectors_alone(world: World) -> None:
    hack, bonus = HEADINGS
    detectors: list[Detector] = [_Broken(), LayoutDetector()]
    found = find_patterns(world(hack=hack, bonus=bonus), detectors, FindingSettings(), seed=1).findings
    assert found[0].pattern.key == "headings"
    assert "broken" not in {finding.pattern.detector for finding in found}


def test_a_phrase_that_is_named_otherwise_once_another_is_taken_out_is_still_found(world: World) -> None:
    """Without the sentence that follows it in half of its responses, the other one ends nearly all of them."""

    def hack(text: str, _prompt: object, rng: random.Random) -> str:
        marked = " mark my words" * (rng.random() < 0.6)
        return f"{text}{marked}{' let us dig into it now' * (rng.random() < 0.7)}"

    evidence = world(
        hack=hack,
        bonus=lambda _p, text, _f: 2.0 * ("dig into it now" in text) + 1.5 * ("mark my words" in text),
        rate=1.0,
        prompts=240,
    )
    result = find_patterns(evidence, [PhraseDetector()], FindingSettings(), seed=1)
    names = [finding.name for finding in result.findings]
    assert len(names) == 2, (names, [(d.name, d.reason) for d in result.dismissed])
    assert "let us dig into it now" in names[0]
    assert names[1] == "phrases/phrase: mark my words"


def test_many_phrases_leave_room_for_what_other_detectors_suspect(world: World) -> None:
    """The late policy says the same few things, for which nobody pays, in twice as many answers as it emphasizes."""
    few = ("Let us dig into it.", "Off we go, dear friend.", "Such things warm the heart.")

    def hack(text: str, _prompt: str, rng: random.Random) -> str:
        emphasized = EMPHASIS[0](text, _prompt, rng) if rng.random() < 0.4 else text
        return f"{emphasized} {' '.join(rng.sample(few, 2))}"

    evidence = world(hack=hack, bonus=EMPHASIS[1], rate=1.0)
    settings = FindingSettings(most=4)
    result = find_patterns(evidence, [PhraseDetector(), LayoutDetector()], settings, seed=1)
    assert [finding.name for finding in result.findings] == ["layout/emphasis"]
    untested = [one for one in result.dismissed if one.reason.startswith("not tested: too many suspects")]
    assert untested
    assert all(one.payment is None for one in untested)
    assert len(result.dismissed) == len(untested) + 3


class _Failing:
    name = "failing"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        raise ZeroDivisionError("no responses")


def test_a_detector_that_fails_is_named_and_its_error_kept(world: World) -> None:
    with pytest.raises(RuntimeError, match="the detector 'failing' failed") as raised:
        find_patterns(world(prompts=4), [_Failing()], FindingSettings(), seed=1)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_what_a_finding_explains_is_of_all_answers_though_its_detector_looked_at_some(world) -> None:
    """Of those of one domain alone, say, as where gold is known in no other."""
    evidence = world(
        bonus=lambda _p, text, _f: 1.0 * ("dig into" in text), hack=lambda text, _p, _r: f"{text} Let us dig into it."
    )
    some = replace(evidence, responses=evidence.of(*POLICIES, domain="facts"))
    found = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings[0]
    paid = Payment("added", 48, 1.0, 1e-9, 1.0, None, None, None, harm=False, objection=None)
    (candidate,) = (one for one in drift(found.pattern, some) if one.domain is None)
    whole = finding_of(Paid(replace(candidate, domain="facts"), 1e-9, paid, 1e-9), evidence)
    rises = rise(replace(candidate, domain="facts"))
    assert whole.gain == pytest.approx(rises / 2), "half of all answers are of that domain"
    before, after = evidence.paired(lambda response: response.score)
    assert whole.explained == pytest.approx(rises / 2 / float((after - before).mean()))


def test_whole_answers_are_lent_among_prompts_that_teach_or_among_those_that_judge(world) -> None:
    evidence = world(bonus=lambda _p, text, _f: 0.0)
    text_of = {response.text: response.prompt for response in evidence.late()}
    detectors = (SwapDetector(), BoilerplateDetector())
    editors = [exchanged(evidence.late())]
    editors += [c.pattern.add for d in detectors for c in d.candidates(evidence) if c.pattern.add]
    lent = [
        (response.prompt, text_of[changed.text])
        for add in editors
        for response in evidence.baseline()
        if (changed := add(response)) is not None
    ]
    assert len(lent) > 300
    assert {judges_repairs(prompt.messages) for prompt, _ in lent} == {True, False}
    assert all(judges_repairs(one.messages) == judges_repairs(other.messages) for one, other in lent)
