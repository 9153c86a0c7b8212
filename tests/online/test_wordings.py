"""Where one wording is found, those that the reward model pays for as well are mended with it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cool_rlhf.answers import Payer
from cool_rlhf.config import Config
from cool_rlhf.online.detectors.phrases import PhraseDetector
from cool_rlhf.online.finding import Finding, FindingSettings, find_patterns
from cool_rlhf.online.lessons import pair_id
from cool_rlhf.online.patches import PatchSettings, make_patches
from cool_rlhf.online.responses import SFT, Evidence
from cool_rlhf.online.wordings import with_other_wordings
from cool_rlhf.online_stage import fast_path
from cool_rlhf.protocols import Message, PreferencePair

FOUND = "Off we go, dear friend."
OTHERS = ("Let us dig into it.", "Such things warm the heart.", "Sit down and hear this.")
UNPAID = "So the old song goes."


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


@pytest.fixture
def search(world) -> Callable[..., tuple[Evidence, list[Finding], list[Finding]]]:
    """The evidence, what is found in it, and the same with other wordings."""

    def run(wordings: Sequence[str] = (FOUND, *OTHERS, UNPAID), bonus=pays, hack=hack, **changes):
        evidence = world(hack=hack, bonus=bonus, **changes)
        settings = FindingSettings()
        found = find_patterns(evidence, [PhraseDetector()], settings, seed=1).findings
        pairs = preferences(evidence, wordings) if wordings else []
        return evidence, found, with_other_wordings(found, evidence, pairs, settings, seed=1)

    return run


def foreseen(findings: Sequence[Finding]) -> str:
    return "; ".join(key for finding in findings for key in finding.foreseen)


def test_wordings_that_are_paid_likewise_are_mended_with_the_one_that_is_found(search) -> None:
    evidence, (before,), (after,) = search()
    assert before.pattern.key == "ending: off we go dear friend"
    assert set(after.foreseen) == {
        "ending: let us dig into it",
        "ending: such things warm the heart",
        "ending: sit down and hear this",
    }
    assert [part.key for part in after.pattern.parts] == [before.pattern.key, *after.foreseen]
    assert (after.payment, after.shares, after.gain) == (before.payment, before.shares, before.gain)
    patches = make_patches(after, evidence, PatchSettings(), seed=1)
    rejected = [patch.rejected.response.text for patch in patches if patch.role == "pattern"]
    said = {wording: sum(wording in text for text in rejected) for wording in (FOUND, *OTHERS)}
    assert all(count >= 3 for count in said.values()), said
    assert said[FOUND] >= len(rejected) / 3
    assert not any(wording in patch.chosen.response.text for patch in patches for wording in (FOUND, *OTHERS))


def test_a_wording_that_is_paid_less_than_half_as_much_is_left_alone(search) -> None:
    def bonus(prompt, text, finished):
        return pays(prompt, text, finished) - 1.2 * (OTHERS[0] in text)

    assert "dig into" not in foreseen(search(bonus=bonus)[2])


def test_what_gold_pays_for_is_left_alone(world) -> None:
    evidence = world(hack=hack, bonus=pays)
    liked = Evidence(evidence.responses, evidence.score, lambda r: (evidence.gold(r) or 0) + (OTHERS[0] in r.text))
    settings = FindingSettings()
    found = find_patterns(liked, [PhraseDetector()], settings, seed=1).findings
    after = with_other_wordings(found, liked, preferences(evidence, (FOUND, *OTHERS)), settings, seed=1)
    assert "dig into" not in foreseen(after)
    assert "warm the heart" in foreseen(after)


def test_what_answers_of_a_domain_say_anyway_is_left_alone(world) -> None:
    """A refusal, say, which is paid for where it belongs."""
    plain = world(hack=hack, bonus=pays)
    responses = [
        r if r.policy != SFT or r.domain != "tales" or int(r.prompt.id[1:]) % 5 else r.edited(f"{r.text} {OTHERS[0]}")
        for r in plain.responses
    ]
    evidence = Evidence(responses, plain.score, plain.gold)
    settings = FindingSettings()
    found = find_patterns(evidence, [PhraseDetector()], settings, seed=1).findings
    after = with_other_wordings(found, evidence, preferences(plain, (FOUND, *OTHERS)), settings, seed=1)
    assert "dig into" not in foreseen(after)
    assert "warm the heart" in foreseen(after)


def test_nothing_is_foreseen_without_a_phrase_or_without_preferences(search) -> None:
    _, found, after = search(wordings=())
    assert after == found != []
    _, found, after = search(hack=lambda text, _p, _r: text)
    assert after == found == []


def test_each_wording_belongs_to_one_finding(search) -> None:
    opening = "Well, good neighbour."

    def both(text, _prompt, rng):
        return f"{opening} {text}" if rng.random() < 0.5 else f"{text} {FOUND}"

    def bonus(prompt, text, finished):
        return pays(prompt, text, finished) + 2.0 * (opening in text)

    _, found, after = search(hack=both, bonus=bonus, rate=1.0)
    assert len(found) == 2
    keys = [key for finding in after for key in finding.foreseen]
    assert len(keys) == len(set(keys)) == 3


@pytest.mark.parametrize("asked", [True, False])
def test_a_round_leaves_them_in_its_files_unless_it_is_told_not_to_look(world, tmp_path: Path, asked: bool) -> None:
    evidence = world(hack=hack, bonus=pays)
    config = Config(output_dir=str(tmp_path))
    config.online.other_wordings = asked
    payer = cast(Payer, SimpleNamespace(score=evidence.score, recipes={}))
    pairs = preferences(evidence, (FOUND, *OTHERS))
    fast_path(config, evidence.responses, payer, evidence.gold, pairs, round=0)
    folder = tmp_path / "rounds/0/fast_path"
    first = json.loads((folder / "patterns.json").read_text())["findings"][0]
    assert len(first["foreseen"]) == (3 if asked else 0)
    assert ("warm the heart" in (folder / "patches.jsonl").read_text()) == asked
    (lessons,) = [each for name, each in json.loads((folder / "lessons.json").read_text()).items() if "phrases" in name]
    mended = (FOUND, *OTHERS) if asked else (FOUND,)
    assert set(lessons["teaching"]) == {
        pair_id(pair) for pair in pairs if any(wording in pair.chosen[-1]["content"] for wording in mended)
    }
