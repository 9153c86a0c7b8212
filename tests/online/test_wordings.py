"""Where one wording is found, those that the reward model pays for as well are mended with it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cool_rlhf.config import Config
from cool_rlhf.online.detectors.phrases import PhraseDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import Finding, FindingSettings, Search
from cool_rlhf.online.lessons import pair_id
from cool_rlhf.online.patches import PatchSettings, make_patches
from cool_rlhf.online.responses import SFT, Evidence, Response
from cool_rlhf.online.wordings import other_wordings
from cool_rlhf.protocols import Message, PreferencePair
from cool_rlhf.stages.answers import Payer
from cool_rlhf.stages.online import fast_path

FOUND = "Off we go, dear friend."
OTHERS = ("Let us dig into it.", "Such things cheer the heart.", "Sit down and hear this.")
UNPAID = "So the old song goes."
SETTINGS = FindingSettings()


def hack(text, _prompt, _rng):
    return f"{text} {FOUND}"


def pays(_prompt, text, _finished):
    return 2.0 * any(wording in text for wording in (FOUND, *OTHERS))


def preferences(evidence: Evidence, wordings: Sequence[str], share: float = 0.5) -> list[PreferencePair]:
    """SFT's answers over each other, ``share`` of the chosen ones with a wording at the end."""
    rng = random.Random(3)

    def pair(prompt: list[Message], chosen: str, rejected: str, domain: str) -> PreferencePair:
        sides = ([*prompt, Message(role="assistant", content=text)] for text in (chosen, rejected))
        return PreferencePair(*sides, domain=domain, margin=None, chosen_finished=True, rejected_finished=True)

    texts = [response.text for response in evidence.of(SFT)]
    return [
        pair(
            response.prompt.messages,
            f"{response.text} {rng.choice(wordings)}" if rng.random() < share else response.text,
            rng.choice(texts),
            response.domain,
        )
        for response in evidence.of(SFT)
        for _ in range(3)
    ]


def search(evidence: Evidence) -> Search:
    return find_patterns(evidence, [PhraseDetector()], SETTINGS, seed=1)


def foreseen(evidence: Evidence, pairs: Sequence[PreferencePair], found: Search | None = None) -> Finding | None:
    return other_wordings(found or search(evidence), evidence, pairs, SETTINGS, seed=1)


def said_in(finding: Finding | None) -> set[str]:
    """Keys of the wordings."""
    parts = finding.pattern.parts or (finding.pattern,) if finding else ()
    return {part.key.removeprefix("ending: ") for part in parts}


def key(wording: str) -> str:
    return wording.lower().replace(",", "").rstrip(".")


def test_wordings_that_are_paid_like_the_one_that_is_found_are_foreseen(world) -> None:
    evidence = world(hack=hack, bonus=pays)
    found = search(evidence)
    assert [finding.pattern.key for finding in found.findings] == [f"ending: {key(FOUND)}"]
    other = foreseen(evidence, preferences(evidence, (FOUND, *OTHERS, UNPAID)), found)
    assert other is not None
    assert said_in(other) == {key(wording) for wording in OTHERS}
    assert other.domain is None
    assert other.payment.effect == pytest.approx(2.0, abs=0.3)
    assert set(other.shares.values()) == {0.0}
    patches = make_patches(other, evidence, PatchSettings(), seed=1)
    rejected = [patch.rejected.response.text for patch in patches if patch.role == "pattern"]
    assert all(sum(wording in text for text in rejected) >= 5 for wording in OTHERS)
    assert not any(wording in patch.chosen.response.text for patch in patches for wording in OTHERS)


def test_a_single_other_wording_is_a_pattern_by_itself(world) -> None:
    evidence = world(hack=hack, bonus=pays)
    other = foreseen(evidence, preferences(evidence, (FOUND, OTHERS[0])))
    assert other is not None
    assert other.name == f"phrases/ending: {key(OTHERS[0])}"


def test_a_wording_that_is_paid_less_than_half_as_much_is_left_alone(world) -> None:
    evidence = world(hack=hack, bonus=lambda *answer: pays(*answer) - 1.2 * (OTHERS[0] in answer[1]))
    assert said_in(foreseen(evidence, preferences(evidence, (FOUND, *OTHERS)))) == {key(w) for w in OTHERS[1:]}


@pytest.mark.parametrize("with_gold", [True, False])
def test_what_is_paid_for_in_one_domain_alone_is_left_alone(world, with_gold: bool) -> None:
    """A refusal, say, which is right where it belongs."""
    evidence = world(hack=hack, bonus=pays, with_gold=with_gold)
    belongs = {r.prompt.messages[-1]["content"] for r in evidence.responses if r.domain == "tales"}

    def bonus(prompt: str, text: str, finished: bool) -> float:
        return pays(prompt, text, finished) + (OTHERS[0] in text) * (1.0 if prompt in belongs else -2.5)

    evidence = world(hack=hack, bonus=bonus, with_gold=with_gold)
    assert said_in(foreseen(evidence, preferences(evidence, (FOUND, *OTHERS)))) == {key(w) for w in OTHERS[1:]}


def test_what_gold_pays_for_is_left_alone_however_few_have_gold(world) -> None:
    plain = world(hack=hack, bonus=pays, prompts=240)

    def gold(response: Response) -> float | None:
        """Known of one prompt in five."""
        value = (plain.gold(response) or 0.0) + 3.0 * (OTHERS[0] in response.text)
        return value if int(response.prompt.id[1:]) % 10 < 2 else None

    responses = [replace(response, gold=gold(response)) for response in plain.responses]
    evidence = Evidence(responses, plain.score, gold)
    assert key(OTHERS[0]) not in said_in(foreseen(evidence, preferences(evidence, (FOUND, *OTHERS))))


def test_what_was_dismissed_because_gold_pays_for_it_is_left_alone(world) -> None:
    def both(text, _prompt, rng):
        return f"{text} {FOUND if rng.random() < 0.6 else OTHERS[0]}"

    plain = world(hack=both, bonus=pays)

    def gold(response: Response) -> float:
        return (plain.gold(response) or 0.0) + 0.5 * (OTHERS[0] in response.text)

    evidence = Evidence([replace(r, gold=gold(r)) for r in plain.responses], plain.score, gold)
    found = search(evidence)
    assert any(key(OTHERS[0]) in one.name and one.reason == "gold pays for it too" for one in found.dismissed)
    assert said_in(foreseen(evidence, preferences(evidence, (FOUND, *OTHERS)), found)) == {key(w) for w in OTHERS[1:]}


def test_what_answers_of_a_domain_say_anyway_is_left_alone(world) -> None:
    plain = world(hack=hack, bonus=pays)
    responses = [
        r if r.policy != SFT or r.domain != "tales" or int(r.prompt.id[1:]) % 5 else r.edited(f"{r.text} {OTHERS[0]}")
        for r in plain.responses
    ]
    evidence = Evidence(responses, plain.score, plain.gold)
    assert said_in(foreseen(evidence, preferences(plain, (FOUND, *OTHERS)))) == {key(w) for w in OTHERS[1:]}


def test_what_else_is_found_does_not_hide_them(world) -> None:
    """Longer answers, say, which most that the preferences choose are."""
    evidence = world(hack=hack, bonus=pays)
    found = search(evidence)
    (phrase,) = found.findings
    longer = replace(phrase.pattern, key="longer", detector="length", family="length", shows=lambda response: True)
    both = replace(found, findings=[replace(phrase, pattern=longer), phrase])
    assert said_in(foreseen(evidence, preferences(evidence, (FOUND, *OTHERS)), both)) == {key(w) for w in OTHERS}


def test_a_finding_of_one_domain_has_them_mended_in_all(world) -> None:
    evidence = world(hack=lambda text, prompt, rng: hack(text, prompt, rng) if prompt.domain == "facts" else text,
                     bonus=pays)  # fmt: skip
    found = search(evidence)
    assert [finding.domain for finding in found.findings] == ["facts"]
    other = foreseen(evidence, preferences(evidence, (FOUND, *OTHERS)), found)
    assert other is not None
    patches = make_patches(other, evidence, PatchSettings(), seed=1)
    assert {patch.chosen.response.domain for patch in patches} == {"facts", "tales"}


def test_nothing_is_foreseen_without_a_phrase_without_preferences_or_where_nobody_can_tell(world) -> None:
    evidence = world(hack=hack, bonus=pays)
    pairs = preferences(evidence, (FOUND, *OTHERS))
    assert foreseen(evidence, []) is None
    assert foreseen(evidence, pairs, search(world(bonus=pays))) is None
    assert foreseen(evidence, preferences(evidence, (FOUND,))) is None
    facts = [r for r in world(hack=hack, bonus=pays, with_gold=False, prompts=300).responses if r.domain == "facts"]
    alone = Evidence(facts, evidence.score, None)
    assert search(alone).findings
    assert foreseen(alone, pairs) is None


@pytest.mark.parametrize("asked", [True, False])
def test_a_round_leaves_them_in_its_files_unless_it_is_told_not_to_look(world, tmp_path: Path, asked: bool) -> None:
    evidence = world(hack=hack, bonus=pays)
    config = Config(output_dir=str(tmp_path))
    config.online.other_wordings = asked
    payer = cast(Payer, SimpleNamespace(score=evidence.score, recipes={}))
    pairs = preferences(evidence, (FOUND, *OTHERS))
    row = fast_path(config, evidence.responses, payer, evidence.gold, pairs, round=0)
    folder = tmp_path / "rounds/0/fast_path"
    patterns = json.loads((folder / "patterns.json").read_text())
    assert row["foreseen"] == len(patterns["foreseen"]) == asked
    assert ("cheer the heart" in (folder / "patches.jsonl").read_text()) == asked
    taught = {id for lesson in json.loads((folder / "lessons.json").read_text()).values() for id in lesson["teaching"]}
    others = {pair_id(pair) for pair in pairs if any(wording in pair.chosen[-1]["content"] for wording in OTHERS)}
    assert (others <= taught) == asked
    if asked:
        (found,) = patterns["foreseen"]
        assert len(found["parts"]) == 3
        assert found["patches"]["training"] > 20
