from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cool_rlhf.online.responses import EARLY, LATE, SFT, Response
from cool_rlhf.ppo.rewards import Recipe
from cool_rlhf.protocols import Message, Prompt
from cool_rlhf.stages.answers import beside_start, evidence_of, gold_rises, means, read_responses, write_responses


def response(policy: str, round: int, score: float, gold: float | None = None, kl: float | None = None) -> Response:
    prompt = Prompt("p-0", [Message(role="user", content="What is 2 + 3?")], "math", "5")
    return Response(f"{policy}-{round}", prompt, "It is 5.", True, 4, policy, round, score, gold, kl, None)


ANSWERS = [
    response(SFT, 0, 0.0, gold=0.25),
    response(EARLY, 0, 0.5, gold=0.5),
    response(LATE, 0, 1.0, gold=0.5, kl=0.5),
    response(EARLY, 1, 2.0, gold=0.75),
    response(LATE, 1, 3.0, gold=1.0, kl=1.5),
]


def test_what_is_written_is_read_again_but_for_hidden_states(tmp_path: Path):
    write_responses(tmp_path / "responses.jsonl", ANSWERS)
    assert read_responses(tmp_path / "responses.jsonl") == ANSWERS


def test_means_are_those_of_the_round_and_of_sft():
    found = means(ANSWERS, 1)
    assert found["score/sft"] == 0.0
    assert found["score/early"] == 2.0
    assert found["score/late"] == 3.0
    assert found["gold/late"] == 1.0
    assert found["kl"] == pytest.approx(1.5)
    assert means(ANSWERS, 0)["kl"] == pytest.approx(0.5)


def test_a_round_without_an_early_policy_has_no_mean_of_one():
    found = means([answer for answer in ANSWERS if answer.id != "early-1"], 1)
    assert found["score/late"] == 3.0
    assert not [name for name in found if name.endswith("/early")]


def test_detectors_compare_sft_with_the_rounds_own_policies():
    evidence = evidence_of(ANSWERS, 1, lambda asked: [0.0] * len(asked), lambda r: 0.5)
    assert [r.id for r in evidence.responses] == ["sft-0", "early-1", "late-1"]
    assert evidence.gold is not None


def test_without_a_rule_no_edit_is_judged_by_gold():
    blind = [response(SFT, 0, 0.0), response(LATE, 0, 1.0)]
    assert evidence_of(blind, 0, lambda asked: [0.0] * len(asked), lambda r: None).gold is None


def test_a_policy_s_answers_stand_beside_those_of_what_it_started_from():
    twice = [*ANSWERS, replace(ANSWERS[4], id="late-1b", text="It is five.")]
    recipes = {"math": Recipe({"math": 1.0, "brief": 0.5}, {})}
    from_sft = beside_start(twice, recipes, 1, None)
    assert [(pair.domain, weight) for pair, weight in from_sft] == [("math", 0.5), ("brief", 0.25)] * 2
    assert [pair.chosen[-1]["content"] for pair, _ in from_sft[::2]] == ["It is 5.", "It is five."]
    other = [replace(answer, text="Five.") if answer.id == "late-0" else answer for answer in ANSWERS]
    (from_policy,) = beside_start(other, {}, 1, 0)
    assert (from_policy[0].rejected[-1]["content"], from_policy[1]) == ("Five.", 1.0)
    assert beside_start(ANSWERS, {"math": Recipe({}, {})}, 1, None) == [], "rules alone pay there"
    assert beside_start([], {}, 0, None) == []


def test_whether_a_policy_is_better_by_gold_than_what_it_started_from():
    def answers(policy: str, round: int, golds: list[float | None]) -> list[Response]:
        made = response(policy, round, 0.0)
        prompts = [replace(made.prompt, id=f"p{n}") for n in range(len(golds))]
        return [replace(made, id=f"{policy}-{n}", prompt=prompt, gold=golds[n]) for n, prompt in enumerate(prompts)]

    start = answers(SFT, 0, [0.1, 0.2, 0.3, None])
    assert gold_rises([*start, *answers(LATE, 0, [0.5, 0.7, 0.8, 0.0])], 0, None) < 0.01
    assert gold_rises([*start, *answers(LATE, 0, [0.0, 0.1, 0.3, 0.9])], 0, None) > 0.5
    assert gold_rises([*start, *answers(LATE, 0, [None] * 4)], 0, None) == 1.0
