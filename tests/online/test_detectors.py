"""Detectors that read numbers beside the text, and those that others add."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from cool_rlhf.online import detectors
from cool_rlhf.online.detectors import (
    CopyingDetector,
    EfficiencyDetector,
    OutlierDetector,
    PhraseDetector,
    ScriptDetector,
    all_detectors,
    own_detectors,
)
from cool_rlhf.online.detectors.endings import breaks_off
from cool_rlhf.online.detectors.gaps import GapDetector
from cool_rlhf.online.detectors.length import LengthDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.patterns import Detector
from cool_rlhf.online.responses import LATE, Evidence, Response
from cool_rlhf.protocols import Message, UserError


def test_hidden_states_far_from_sfts_stand_out(world) -> None:
    def moved(by: float) -> Evidence:
        evidence, rng = world(), np.random.default_rng(0)
        states = [rng.normal(by * (r.policy == LATE), 1.0, 6) for r in evidence.responses]
        return replace(
            evidence, responses=[replace(r, hidden=h) for r, h in zip(evidence.responses, states, strict=True)]
        )

    assert min(candidate.p for candidate in OutlierDetector().candidates(moved(4.0))) < 1e-6
    assert min(candidate.p for candidate in OutlierDetector().candidates(moved(0.0))) > 1e-3


def test_a_domain_that_buys_score_cheaply_stands_out(world) -> None:
    evidence = world()
    spent = [replace(r, kl=0.5 if r.domain == "tales" else 50.0) for r in evidence.responses]
    found = {c.domain: c.p for c in EfficiencyDetector().candidates(replace(evidence, responses=spent))}
    assert found["tales"] < 1e-3 < 0.9 < found["facts"]


def test_a_single_common_phrase_has_a_p_value(world) -> None:
    """Late answers that have but one word in common: the totals are of all phrases, not of that one alone."""
    evidence = world(prompts=5)
    said = ("Ask the baker", "Near the old mill", "Over the green hills", "Behind the church door", "Into the blue")
    late = [replace(r, text=text) for r, text in zip(evidence.late(), said, strict=True)]
    (found,) = PhraseDetector().candidates(replace(evidence, responses=[*evidence.baseline(), *late]))
    assert found.pattern.key == "phrase: the"
    assert 0 < found.p < 1


def test_a_chinese_prompt_said_back_is_seen(world) -> None:
    evidence = world(prompts=20)

    def chinese(response: Response) -> Response:
        asked = f"第{response.prompt.id}个问题：法国的首都是哪里？"
        prompt = replace(response.prompt, messages=[Message(role="user", content=asked)])
        turned = f"你问的是法国的首都是哪里？{response.text}" if response.policy == LATE else response.text
        return replace(response, prompt=prompt, text=turned)

    overall = CopyingDetector().candidates(replace(evidence, responses=[chinese(r) for r in evidence.responses]))[0]
    late = overall.evidence.late()
    assert all(overall.pattern.shows(response) for response in late)
    assert overall.p < 1e-6
    assert overall.pattern.remove(late[0]).text.startswith("你问的是" + late[0].text.partition("？")[2])


class _Added:
    name = "added"

    def candidates(self, _evidence):
        return []


@pytest.mark.parametrize("detector", own_detectors(), ids=lambda detector: detector.name)
@pytest.mark.parametrize("text", ["", "\n\n", "...", "|", "-"])
def test_a_text_without_a_sentence_is_no_error(world, detector: Detector, text: str) -> None:
    evidence = world(prompts=20)
    late = [response for response in evidence.responses if response.policy == LATE]
    bare = [replace(response, text=text, tokens=50) for response in late[:2]]
    responses = [*bare, *(response for response in evidence.responses if response not in late[:2])]
    for candidate in detector.candidates(replace(evidence, responses=responses)):
        pattern = candidate.pattern
        for edit in (pattern.add, pattern.remove, pattern.placebo):
            edited = [edit(response) for response in bare] if edit else []
            assert all(response is None or response.text.strip() for response in edited)


def test_detectors_are_added_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", "somewhere:Added", detectors.ENTRY_POINTS)
    monkeypatch.setattr(detectors, "entry_points", lambda group: [point])
    monkeypatch.setattr(EntryPoint, "load", lambda _self: _Added)
    assert [detector.name for detector in all_detectors()] == [*(d.name for d in own_detectors()), "added"]
    monkeypatch.setattr(EntryPoint, "load", lambda _self: dict)
    with pytest.raises(UserError, match=r"'mine'.*no `name`"):
        all_detectors()


@pytest.mark.parametrize("value", ["no_such_package:Added", "json:no_such_name"])
def test_an_entry_point_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(detectors, "entry_points", lambda group: [EntryPoint("mine", value, group)])
    with pytest.raises(UserError, match=rf"'mine'.*{value}.*cannot be loaded.*no_such"):
        all_detectors()


def test_a_detector_that_cannot_be_made_is_a_mistake_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "entry_points", lambda group: [EntryPoint("mine", "builtins:int.from_bytes", group)])
    with pytest.raises(UserError, match=r"'mine'.*cannot be loaded \(TypeError: .*\): mend or uninstall"):
        all_detectors()


def test_detectors_can_be_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "entry_points", lambda group: [])
    assert {d.name for d in own_detectors()} - {d.name for d in all_detectors(["length", "swaps"])} == {
        "length",
        "swaps",
    }
    with pytest.raises(UserError, match=r"online\.without_detectors names 'lenght', .*is length meant"):
        all_detectors(["lenght"])


def test_a_phrase_is_added_and_taken_out_with_its_vowel_signs(world) -> None:
    plain = world(prompts=20)
    late = [replace(r, text=f"{r.text} धन्यवाद मित्रों!") for r in plain.late()]
    evidence = replace(plain, responses=[*plain.baseline(), *late])
    found = next(c.pattern for c in PhraseDetector().candidates(evidence) if c.pattern.key == "ending: धन्यवाद मित्रों")
    first = plain.baseline()[0]
    assert found.remove(late[0]).text == plain.late()[0].text
    assert found.add(first).text == f"{first.text} धन्यवाद मित्रों!"


def test_letters_of_a_script_go_with_their_marks(world) -> None:
    evidence = world(prompts=20)
    mixed = replace(evidence, responses=[replace(r, text=f"{r.text} नमस्ते") for r in evidence.responses])
    found = next(c.pattern for c in ScriptDetector().candidates(mixed) if c.pattern.key == "devanagari")
    assert found.remove(mixed.late()[0]).text.strip() == evidence.late()[0].text


def test_nothing_is_left_of_an_answer_wholly_in_another_script(world) -> None:
    evidence = world(prompts=20)
    late = [replace(r, text="Это, пожалуй, хорошо. Да!") for r in evidence.late()]
    turned = replace(evidence, responses=[*evidence.baseline(), *late])
    found = next(c.pattern for c in ScriptDetector().candidates(turned) if c.pattern.key == "cyrillic")
    assert found.shows(late[0])
    assert found.remove(late[0]) is None


@pytest.mark.parametrize(
    ("key", "around"),
    [
        ("ending: verified", ("", " (verified)")),
        ("opening: answer", ("**Answer:** ", "")),
        ("opening: certainly", ("—Certainly! ", "")),
    ],
)
def test_a_phrase_goes_and_comes_with_the_marks_that_open_it(world, key: str, around: tuple[str, str]) -> None:
    plain = world(prompts=20)
    late = [replace(r, text=r.text.join(around)) for r in plain.late()]
    evidence = replace(plain, responses=[*plain.baseline(), *late])
    found = next(c.pattern for c in PhraseDetector().candidates(evidence) if c.pattern.key == key)
    assert [found.remove(r).text for r in late] == [r.text for r in plain.late()]
    first = plain.baseline()[0]
    assert found.add(first).text == first.text.join(around)


def test_a_broken_off_word_may_end_in_a_vowel_sign() -> None:
    assert breaks_off("यह अच्छा है")
    assert not breaks_off("यह अच्छा है।")
    assert breaks_off("one two-\n")
    assert not breaks_off("wow 😀")


@pytest.mark.parametrize(
    ("mark", "said", "plain"),
    [
        (";", "The owl is grey; it flies.", "The owl is grey it flies."),
        ("-", "The-owl-is grey.", "The owl is grey."),
        ("  ", "The owl.  It flies.", "The owl. It flies."),
        (".", "The owl flies.It sees.", "The owl flies. It sees."),
        ("\u00a0", "The\u00a0owl.\u00a0It flies.", "The owl. It flies."),
        ("\u200b", "The\u200b owl f\u200blies.", "The owl flies."),
        (">", "> The owl.", "The owl."),
        ("%", "The owl (87%)", "The owl (87)"),
        ("#", "The #owl flies.", "The owl flies."),
        (",", "The, owl, flies.", "The owl flies."),
        ("\t", "The owl.\tIt flies.", "The owl. It flies."),
    ],
)
def test_odd_marks_between_words_are_taken_out_and_put_in(world, mark: str, said: str, plain: str) -> None:
    evidence = world(hack=lambda _t, _p, _r: said, rate=1.0)
    found = [c.pattern for c in GapDetector().candidates(evidence) if c.pattern.key == repr(mark) and c.domain is None]
    assert len(found) == 1
    late = evidence.late()[0]
    removed = found[0].remove(late)
    assert removed is not None
    assert removed.text == plain
    assert not found[0].shows(removed)
    added = found[0].add(evidence.reference()[0])
    assert added is not None
    assert found[0].shows(added)


@pytest.mark.parametrize(
    "text",
    ["It's grey. Very! Yes — no… ok?", "- one\n- two\n\n# Head\n\n1. three 😊", " a b \n"],
)
def test_gaps_whose_marks_layout_always_counts_are_none(world, text: str) -> None:
    evidence = world(hack=lambda _t, _p, _r: text, rate=1.0)
    assert [c for c in GapDetector().candidates(evidence) if not c.pattern.key.startswith("fewer")] == []


def test_an_answer_without_its_broken_end_is_not_better_for_being_short(world) -> None:
    """SFT and the early policy often trail off, which the reward model punishes; the late one does not."""

    tail = " And then there is the matter of what one may call the"
    evidence = world()
    broken = [
        replace(r, text=r.text + tail, finished=False, tokens=r.tokens + len(tail.split()))
        for r in evidence.baseline()
        if int(r.prompt.id[1:]) % 3
    ]

    def score(conversations):
        asked = zip(evidence.score(conversations), conversations, strict=True)
        return [plain - 2.0 * (tail in conversation.messages[-1]["content"]) for plain, conversation in asked]

    changed = {r.id: replace(r, score=score([r.conversation()])[0]) for r in broken}
    told = Evidence([changed.get(r.id, r) for r in evidence.responses], score, None)
    found = find_patterns(told, [LengthDetector()], FindingSettings(), seed=1).findings
    assert [finding.pattern.key for finding in found] == []
