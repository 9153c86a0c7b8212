"""Pairs out of sampled responses."""

import pytest

from cool_rlhf.data.labelling import Answer, collect_pairs
from cool_rlhf.demo import gold
from cool_rlhf.protocols import Prompt

BANANA = "banana|yellow|fruit|trees|sweet"
SHORT = Answer("Yellow.", True)
FULL = Answer("A banana is yellow. It is a kind of fruit. You find it on trees. It is very sweet.", True)
ASKED = Prompt("q", [{"role": "user", "content": "Quick: what colour is a banana?"}], "brief", BANANA)
SUM = Prompt("s", [{"role": "user", "content": "What is 4 + 5?"}], "math", "4|5|9")


def test_shared_questions_are_judged_under_both_conditions_oppositely() -> None:
    both = {"brief": ["brief", "thorough"]}
    asked = {"noise": 0.0, "pairs_per_prompt": 3, "seed": 1}
    brief, thorough = collect_pairs([ASKED], [[SHORT, FULL]], gold.score, **asked, judged_as=both)
    assert (brief.domain, thorough.domain) == ("brief", "thorough")
    assert brief.chosen[-1]["content"] == thorough.rejected[-1]["content"] == SHORT.text
    assert brief.rejected[-1]["content"] == thorough.chosen[-1]["content"] == FULL.text
    assert [pair.domain for pair in collect_pairs([ASKED], [[SHORT, FULL]], gold.score, **asked)] == ["brief"]


def test_ties_and_repeats_are_skipped_and_the_number_is_bounded() -> None:
    right, same, wrong = Answer("That is 4 + 5 = 9.", True), Answer("That is 4 + 5 = 9.", True), Answer("8.", True)
    also_right = Answer("That is 4 + 5 = 9. The answer is 9.", True)
    asked = {"noise": 0.0, "pairs_per_prompt": 3, "seed": 1}
    assert collect_pairs([SUM], [[right, same, also_right]], gold.score, **asked, least_gap=0.15) == []
    values = {right.text: 0.5, also_right.text: 0.6}

    def close(_messages: list, response: str, _domain: str, _answer: str | None, _finished: bool) -> float:
        return values[response]

    for gap, count in ((0.0, 1), (0.05, 1), (0.15, 0)):
        assert len(collect_pairs([SUM], [[right, same, also_right]], close, **asked, least_gap=gap)) == count
    pairs = collect_pairs([SUM], [[right, same, also_right, wrong]], gold.score, noise=0.0, pairs_per_prompt=1, seed=1)
    assert len(pairs) == 1
    assert pairs[0].rejected[-1]["content"] == "8."
    assert pairs[0].chosen[:-1] == SUM.messages


def test_an_unfinished_answer_loses_to_the_same_finished() -> None:
    cut = Answer("That is 4 + 5 = 9.", False)
    (pair,) = collect_pairs([SUM], [[cut, Answer(cut.text, True)]], gold.score, noise=0.0, pairs_per_prompt=1, seed=1)
    assert pair.chosen_finished
    assert not pair.rejected_finished


def test_noise_flips_its_share_and_is_seeded() -> None:
    samples = [[Answer("That is 4 + 5 = 9.", True), Answer("8.", True)]] * 2000
    pairs = collect_pairs([SUM] * 2000, samples, gold.score, noise=0.1, pairs_per_prompt=1, seed=2)
    assert sum(pair.chosen[-1]["content"] == "8." for pair in pairs) / 2000 == pytest.approx(0.1, abs=0.03)
    assert pairs == collect_pairs([SUM] * 2000, samples, gold.score, noise=0.1, pairs_per_prompt=1, seed=2)
    assert pairs != collect_pairs([SUM] * 2000, samples, gold.score, noise=0.1, pairs_per_prompt=1, seed=3)


def test_another_labeller_and_domain_need_no_registered_domain() -> None:
    prompt = Prompt("p", [{"role": "user", "content": "hi"}], "poetry", None)

    def longer(messages: list, response: str, domain: str, answer: str | None, finished: bool) -> float:
        return len(response) / 100

    (pair,) = collect_pairs(
        [prompt], [[Answer("a" * 5, True), Answer("b" * 50, True)]], longer, noise=0.0, pairs_per_prompt=2, seed=1
    )
    assert pair.domain == "poetry"
    assert pair.chosen[-1]["content"] == "b" * 50
