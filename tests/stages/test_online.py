"""Rounds of answers from an engine that says which policy it holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cool_rlhf.config import Config
from cool_rlhf.data.identity import judges_repairs
from cool_rlhf.files import read_json_lines
from cool_rlhf.online.responses import EARLY, LATE, SFT, Response
from cool_rlhf.ppo.rewards import Recipe
from cool_rlhf.protocols import Message, Prompt, Rollout, ScoredConversation, UserError
from cool_rlhf.stages import online
from cool_rlhf.stages.answers import Payer, read_responses
from cool_rlhf.stages.online import answer_prompts, slow_path

PROMPTS = [Prompt(f"p-{n}", [Message(role="user", content=f"question {n}")], "math", None) for n in range(2)]


def no_gold(response: object) -> None:
    return None


class Engine:
    """All of the roles. Responses name the policy, scores are the number of the round that asks."""

    def __init__(self, ready: type, round: int) -> None:
        self.ready, self.round = ready, round
        self.sampler = self
        self.holds, self.version = "", 0

    def load(self, path: str, version: int) -> None:
        self.holds, self.version = path, version

    def sample(self, prompts: Sequence[Prompt], *, seed: int, version: int) -> Any:
        assert version == self.version
        two = torch.zeros(2, dtype=torch.long)
        return self.ready([Rollout(p, two[:1], two[1:], torch.zeros(1), True, version, self.holds) for p in prompts])

    def logprobs(self, sequences: Sequence[Tensor], *, begins: Sequence[int], temperature: float) -> Any:
        return self.ready([torch.zeros(len(sequence)) for sequence in sequences])

    def scores_and_states(self, conversations: Sequence[object]) -> Any:
        return self.ready([(float(self.round), torch.zeros(3))] * len(conversations))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of a run on the user's own prompts, which no gold rule judges."""
    made = Config(output_dir=str(tmp_path))
    made.data.prompts = ["mine.jsonl"]
    made.online.samples_per_prompt = 3
    return made


def test_every_policy_answers_once_in_however_many_rounds(config: Config, ready: type, tmp_path: Path) -> None:
    for round in range(4):
        engine = Engine(ready, round)
        checkpoints = {SFT: "sft", EARLY: f"early {round}", LATE: f"late {round}"}
        roles: Any = SimpleNamespace(rollouts=engine, reference=engine, scorer=engine)
        payer = Payer(engine, {})  # type: ignore[arg-type]
        answered = answer_prompts(config, roles, PROMPTS, checkpoints, payer, no_gold, round, resumed=False)
        each = Counter(response.text for response in read_responses(tmp_path / f"rounds/{round}/responses.jsonl"))
        policies = ["sft", *(f"{policy} {past}" for past in range(round + 1) for policy in (EARLY, LATE))]
        assert each == dict.fromkeys(policies, 6)
        assert len({response.id for response in answered}) == len(answered)
        assert {response.score for response in answered} == {float(round)}, "all by the round's reward model"


def test_what_was_answered_before_a_round_was_interrupted_is_not_asked_again(
    config: Config, ready: type, tmp_path: Path
) -> None:
    engine, other = Engine(ready, 0), Engine(ready, 7)
    roles: Any = SimpleNamespace(rollouts=engine, reference=engine, scorer=engine)
    payer, checkpoints = Payer(engine, {}), {SFT: "sft", LATE: "late"}  # type: ignore[arg-type]
    first = answer_prompts(config, roles, PROMPTS, checkpoints, payer, no_gold, 0, resumed=False)
    assert read_responses(tmp_path / "rounds/0/responses.jsonl") == first
    again: Any = SimpleNamespace(rollouts=None, reference=None, scorer=other)
    payer = Payer(other, {})  # type: ignore[arg-type]
    resumed: Sequence[Any] = answer_prompts(config, again, PROMPTS, checkpoints, payer, no_gold, 0, resumed=True)
    assert [(r.id, r.text, r.kl) for r in resumed] == [(r.id, r.text, r.kl) for r in first]
    assert all(r.hidden is not None and r.score == 7.0 for r in resumed), "the detectors look at hidden states too"
    checkpoints[LATE] = "another"
    changed = answer_prompts(config, roles, PROMPTS, checkpoints, payer, no_gold, 0, resumed=False)
    assert {r.text for r in changed} == {"sft", "another"}, "a round that is made anew asks anew"


class Scorer:
    """A word is worth 1 under ``helpful``, 0.5 under ``harmless``, and 4 under anything else."""

    def __init__(self, ready: type) -> None:
        self.ready = ready

    def score(self, conversations: Sequence[ScoredConversation]) -> Any:
        worth = {"helpful": 1.0, "harmless": 0.5}
        return self.ready(
            [len(c.messages[-1]["content"].split()) * worth.get(c.condition or "", 4.0) for c in conversations]
        )

    def scores_and_states(self, conversations: Sequence[ScoredConversation]) -> Any:
        return self.ready([(score, torch.tensor([score])) for score in self.score(conversations).result()])


RECIPES = {
    "both": Recipe({"harmless": 0.4, "helpful": 1.0, "curt": -0.1}, {}),
    "ruled": Recipe({}, {"rules:one": (lambda *_: 1.0, 1.0)}),
}


def answers(domain: str, count: int) -> list[Response]:
    prompts = [
        Prompt(f"{domain}-{n}", [Message(role="user", content=f"{domain} {n}")], domain, None) for n in range(count)
    ]
    texts = {SFT: "one two", LATE: "one two three"}
    return [
        Response(f"{policy}-{prompt.id}", prompt, text, True, 3, policy, 0, 0.0, None, None, None)
        for policy, text in texts.items()
        for prompt in prompts
    ]


def test_the_reward_model_pays_by_a_domains_recipe(ready: type) -> None:
    payer = Payer(Scorer(ready), RECIPES)  # type: ignore[arg-type]
    responses = [answers("plain", 1)[0], answers("both", 1)[0], answers("ruled", 1)[0], answers("both", 1)[1]]
    paid = [8.0, 2 * (0.4 * 0.5 + 1.0 - 0.1 * 4), 0.0, 3 * (0.4 * 0.5 + 1.0 - 0.1 * 4)]
    assert payer.score([response.conversation() for response in responses]) == pytest.approx(paid)
    judged = payer.judged(responses, no_gold)
    assert [response.score for response in judged] == pytest.approx(paid)
    states = [float(response.hidden[0]) for response in judged if response.hidden is not None]
    assert states == [8.0, 1.0, 8.0, 1.5], "under the first condition, or under none"
    assert payer.judged([], no_gold) == []


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_a_score_that_is_no_number_is_told(ready: type, score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "score", lambda self, asked: ready([score] * len(asked)))
    payer = Payer(Scorer(ready), {})  # type: ignore[arg-type]
    response = answers("plain", 1)[0]
    with pytest.raises(UserError, match="no number"):
        payer.score([response.conversation()])
    with pytest.raises(UserError, match="no number"):
        payer.judged([response], no_gold)


def test_pairs_are_labelled_where_the_reward_model_pays_and_judges_nothing(
    config: Config, ready: type, tmp_path: Path
) -> None:
    config.conditions = {"helpful": "Help.", "harmless": "No harm.", "both": "", "ruled": "", "plain": ""}
    config.online.pairs = 1000
    responses = [*answers("plain", 40), *answers("both", 40), *answers("ruled", 40)]
    payer = Payer(Scorer(ready), RECIPES)  # type: ignore[arg-type]
    slow_path(config, payer.judged(responses, no_gold), payer, 0)
    rows = list(read_json_lines(tmp_path / "rounds/0/slow_path/pairs.jsonl"))
    assert {row["domain"] for row in rows} == {"plain", "helpful"}
    asked = {response.prompt.messages[0]["content"] for response in responses if response.domain != "ruled"}
    teaching = {text for text in asked if not judges_repairs([Message(role="user", content=text)])}
    assert 40 < len(teaching) < 80
    assert {row["prompt"][0]["content"] for row in rows} == teaching


def test_pairs_that_somebody_has_added_without_an_id_are_not_asked_again(
    config: Config, ready: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.conditions = {"helpful": "Help.", "harmless": "No harm.", "both": "", "ruled": "", "plain": ""}
    config.online.pairs = 1000
    responses = [*answers("plain", 20), *answers("ruled", 20)]
    payer = Payer(Scorer(ready), RECIPES)  # type: ignore[arg-type]
    slow_path(config, payer.judged(responses, no_gold), payer, 0)
    file = tmp_path / "rounds/0/slow_path/pairs.jsonl"
    rows = [{name: value for name, value in row.items() if name != "id"} for row in read_json_lines(file)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    select, asked = online.select_pairs, []

    def selecting(found, score, domains, *arguments, **named):
        asked.append(domains)
        return select(found, score, domains, *arguments, **named)

    monkeypatch.setattr(online, "select_pairs", selecting)
    assert rows
    slow_path(config, payer.judged(responses, no_gold), payer, 1)
    assert read_json_lines(tmp_path / "rounds/1/slow_path/pairs.jsonl") == []
    assert asked == [["plain"]], "where rules alone pay the reward model has no opinion"
