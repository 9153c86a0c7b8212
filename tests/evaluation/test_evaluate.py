"""What stage=evaluate looks at, and what it makes of scores; the stage itself runs in end_to_end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cool_rlhf.checkpoint import RunState
from cool_rlhf.compose import compose
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.evaluation.comparison import JudgedResponse
from cool_rlhf.evaluation.evaluate import Measured, evaluate, header, judge, tables, with_own_bound
from cool_rlhf.evaluation.held_out import HeldOut
from cool_rlhf.evaluation.reward_model import Judge, judge_pairs
from cool_rlhf.evaluation.tables import describe
from cool_rlhf.planning import Resources, phases, plan
from cool_rlhf.preflight import FinishedModels, finished_models, with_earlier_stages
from cool_rlhf.protocols import PreferencePair, Prompt, Rollout, ScoredConversation, UserError
from reward.conditions import Conditions


@pytest.mark.parametrize(
    ("there", "given", "stages"),
    [
        ([], [], ["pipeline", "evaluate"]),
        (["sft"], [], ["pipeline", "evaluate"]),
        (["reward_model", "chat_model"], [], ["pipeline", "evaluate"]),
        (["reward_model"], ["evaluate.samples_per_prompt=1"], ["pipeline", "evaluate"]),
        (["sft"], ["reward.path=elsewhere"], ["evaluate"]),
        (["rounds/0/reward_model"], ["sft.path=elsewhere"], ["evaluate"]),
        (["sft", "rounds/0/reward_model"], [], ["evaluate"]),
    ],
)
def test_missing_models_are_made_first(
    there: list[str], given: list[str], stages: list[str], config_of: Any, checkpoint: Any
) -> None:
    for name in there:
        checkpoint(name)
    config = config_of("seed=4", *given)
    legs = with_earlier_stages(config)
    assert [leg.stage for leg in legs] == stages
    assert [replace(leg, stage="evaluate") for leg in legs] == [config] * len(stages)


@pytest.mark.parametrize(
    ("there", "given"),
    [
        ([], ["reward.path=elsewhere"]),  # no SFT model, and none is trained for it
        (["reward_model"], ["evaluate.samples_per_prompt=0"]),
        (["sft", "reward_model"], ["evaluate.samples_per_prompt=0"]),
    ],
)
def test_a_reward_model_is_evaluated_alone(there: list[str], given: list[str], config_of: Any, checkpoint: Any) -> None:
    for name in there:
        checkpoint(name)
    (leg,) = with_earlier_stages(config_of(*given))
    assert (leg.stage, leg.evaluate.samples_per_prompt, leg.evaluate.best_of) == ("evaluate", 0, 0)
    assert [place.role for place in plan(leg, Resources.of_machine(cpus=1, gpus=0))] == ["scorer"]


@pytest.mark.parametrize("positions", ["max_position_embeddings", "n_positions"])  # as GPT-2 calls them
def test_test_pairs_that_the_reward_model_reads_the_end_of_are_noted(
    tmp_path: Path, positions: str, config_of: Any, rows: Any
) -> None:
    train_tokenizer(["why is it so? " * 9], 640).save_pretrained(tmp_path / "rm")
    (tmp_path / "rm" / "config.json").write_text(json.dumps({positions: 256}))
    pairs = [
        {"prompt": "why? " * words, "chosen": f"so {'x' * characters}", "rejected": "no"}
        for words, characters in ((1, 0), (250, 0), (60, 0), (1, 300))  # the third is long in letters only
    ]
    test = rows("test.jsonl", *pairs)
    config = config_of(f"reward.path={tmp_path / 'rm'}", f"data.test_preferences=[{test}]")
    notes = header(config, FinishedModels(None, str(tmp_path / "rm"), None), HeldOut.of(config))["notes"]
    told = (
        "3 of the 8 dialogues of test pairs are longer than the reward model has positions: it reads their ends alone"
    )
    assert told in notes


def test_scores_are_held_against_the_bound_that_the_reward_model_was_trained_with(
    config_of: Any, checkpoint: Any
) -> None:
    config, model = config_of("reward.bound=7"), Path(checkpoint("reward_model"))
    assert with_own_bound(config, str(model)) == config
    (model / "config.json").write_text('{"score_bound": 4}')
    assert with_own_bound(config, str(model)) == replace(config, reward=replace(config.reward, bound=4.0))


def test_nothing_to_evaluate_is_said(config_of: Any, checkpoint: Any) -> None:
    checkpoint("sft")
    with pytest.raises(UserError, match=r"nothing to evaluate: .*no reward model.*without stage=evaluate"):
        evaluate(config_of(), nullcontext())


def test_latest_models_are_evaluated(tmp_path: Path, config_of: Any, checkpoint: Any) -> None:
    sft, first = checkpoint("sft"), checkpoint("rounds/2/reward_model")
    (tmp_path / "rounds/10/policy").mkdir(parents=True)  # not finished: it holds no checkpoint
    policy = checkpoint("rounds/2/policy")
    checkpoint("rounds/3.bak/policy")
    assert finished_models(config_of()) == FinishedModels(sft, first, policy)
    later = checkpoint("rounds/10/reward_model")
    assert finished_models(config_of()) == FinishedModels(sft, later, policy)
    last, chat = checkpoint("reward_model"), checkpoint("chat_model")
    assert finished_models(config_of()) == FinishedModels(sft, last, chat)
    named = config_of(f"reward.path={first}", f"sft.path={policy}")
    assert finished_models(named) == FinishedModels(policy, first, chat)


def test_of_a_run_that_goes_on_what_it_had_ended_with_is_not_evaluated(
    tmp_path: Path, config_of: Any, checkpoint: Any
) -> None:
    """A run of one round is asked for three; then its second round is made again with more iterations."""
    sft = checkpoint("sft")
    state, config = RunState(tmp_path), config_of()

    def made(*stages: str) -> None:
        for stage in stages:
            state.begin(stage, {})
            state.finish(stage)

    def found() -> tuple[str, str | None]:
        models = finished_models(config)
        assert models is not None
        assert models.sft == sft
        return models.reward_model, models.chat_model

    first, policy = checkpoint("rounds/0/reward_model"), checkpoint("rounds/0/policy")
    made("sft", "reward_0")
    state.begin("ppo_0", {})
    assert found() == (first, policy), "the best of a round under way"
    made("ppo_0", "reward_1")
    ended, chat = checkpoint("reward_model"), checkpoint("chat_model")
    assert found() == (ended, policy)
    made("export_1")
    assert found() == (ended, chat)

    state.discard_from("reward_1")  # which is to be that of a middle round now
    assert found() == (first, policy)
    made("reward_1")
    second = checkpoint("rounds/1/reward_model")
    assert found() == (second, policy)
    state.begin("ppo_1", {})
    assert found() == (second, policy)
    later = checkpoint("rounds/1/policy")
    made("ppo_1", "reward_2")
    third = checkpoint("rounds/2/reward_model")
    assert found() == (third, later)

    state.reopen_from("ppo_0")
    assert found() == (first, policy)


def test_evaluation_needs_scorer_and_engines_only(config_of: Any) -> None:
    config = config_of()
    assert phases(config) == ("evaluate",)
    assert [place.role for place in plan(config, Resources.of_machine(cpus=1, gpus=0))] == ["scorer", "rollout"]


class ByLength:
    """Longer is better, but under brief shorter is. Keeps what it was asked."""

    def __init__(self, ready: Any) -> None:
        self._ready = ready
        self.asked: list[ScoredConversation] = []

    def score(self, conversations: Sequence[ScoredConversation]) -> Any:
        self.asked += conversations
        signs = [-1.0 if item.condition == "brief" else 1.0 for item in conversations]
        lengths = [len(item.messages[-1]["content"]) for item in conversations]
        return self._ready([sign * length for sign, length in zip(signs, lengths, strict=True)])


PROMPTS = {"default": "", "brief": "Be brief.", "thorough": "Tell all."}


def judge_of(scorer: ByLength) -> Judge:
    return Judge(scorer, Conditions(PROMPTS), progress=False)


def rollout_of(prompt: Prompt, response: str, finished: bool) -> Rollout:
    tokens = torch.ones(len(response) + 1, dtype=torch.int64)
    return Rollout(prompt, torch.ones(2, dtype=torch.int64), tokens, torch.zeros(len(tokens)), finished, 0, response)


def test_responses_are_scored_under_their_own_domain(ready: Any) -> None:
    prompts = [Prompt(domain, [{"role": "user", "content": "?"}], domain, None) for domain in ("brief", "thorough")]
    rollouts = [rollout_of(prompts[0], "abc", True), rollout_of(prompts[1], "ab", False)]
    gold = lambda prompt, response, finished: 1.0 if prompt.domain == "thorough" else None  # noqa: E731
    assert judge(judge_of(ByLength(ready)), rollouts, gold) == [
        JudgedResponse("brief", "brief", -3.0, None, 4, True),
        JudgedResponse("thorough", "thorough", 2.0, 1.0, 3, False),
    ]


def test_every_distinct_conversation_is_scored_once_in_order(ready: Any) -> None:
    scorer = ByLength(ready)
    texts = [f"{'x' * (k % 3000)}" for k in range(5000)]
    asked = [
        ScoredConversation([{"role": "assistant", "content": text}], domain, True)
        for text in texts
        for domain in ("brief", "math", None)
    ]
    scores = judge_of(scorer)(asked)
    assert scores == [sign * len(text) for text in texts for sign in (-1.0, 1.0, 1.0)]
    assert len(scorer.asked) == 2 * 3000  # math has no condition, which is to be judged by none
    assert {item.condition for item in scorer.asked} == {"brief", None}
    assert judge_of(scorer)([]) == []


def test_conditions_that_are_tried(ready: Any) -> None:
    question = {"role": "user", "content": "?"}
    pairs = [
        PreferencePair([question, {"role": "assistant", "content": "yes"}],
                       [question, {"role": "assistant", "content": "no"}], domain, None, True, True)
        for domain in ("brief", "math", "thorough")
    ]  # fmt: skip
    conditions = Conditions({**PROMPTS, "unused": "Whatever."})
    judge = Judge(ByLength(ready), conditions, progress=False)
    assert set(judge_pairs(judge, pairs).scores) == {None, "brief", "thorough"}
    assert set(judge_pairs(judge, pairs[:2]).scores) == {None, "brief", "thorough", "unused"}


def test_the_file_and_its_tables(tmp_path: Path, ready: Any, config_of: Any) -> None:
    config = config_of("evaluate.best_of=2", "data.world.preferences=2")
    held_out = HeldOut.of(config)
    (tmp_path / "conditions.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    judged = judge_of(ByLength(ready))

    def answers(text: str) -> list[JudgedResponse]:
        return judge(judged, [rollout_of(prompt, text, True) for prompt in held_out.prompts], held_out.gold)

    before, after = answers("ab"), answers("abcd")
    preferences, opposed = (judge_pairs(judged, pairs) for pairs in (held_out.preferences, held_out.opposed))
    measured = Measured(preferences, opposed, before, after, [*before, *after])
    models = FinishedModels("a", str(tmp_path), None)
    stored = json.loads(json.dumps({**header(config, models, held_out), **tables(config, held_out, measured)}))
    assert stored["measured"]["after"] is None, "no step is recorded here"

    assert list(stored["reward_accuracy"]["brief"]) == ["pairs", "prompts", "own", "none", "other"]
    assert set(stored["reward_accuracy_under_others"]["math"]) == {"brief", "thorough"}  # an empty prompt is none
    for domain in ("brief", "thorough"):  # no tie in length, so the other condition turns every judgement round
        row = stored["opposed_accuracy"][domain]
        assert row["own"]["accuracy"] == pytest.approx(1 - row["other"]["accuracy"])
    longer = stored["baselines"]["longer_wins"]["thorough"]  # which is what this scorer goes by
    assert longer["accuracy"] == stored["reward_accuracy"]["thorough"]["own"]["accuracy"]
    assert longer["reward_model_ahead"] == {"mean": 0.0, "standard_error": 0.0, "interval": [0.0, 0.0]}
    assert stored["reward_length"]["thorough"]["correlation"] == pytest.approx(1.0)
    pairs = sum(row["pairs"] for row in stored["reward_calibration"]["overall"]["bins"])
    assert pairs == stored["reward_accuracy"]["overall"]["pairs"] == len(held_out.preferences)
    assert sum(stored["reward_scores"]["domains"]["brief"]["counts"][0]) == stored["reward_accuracy"]["brief"]["pairs"]

    assert stored["difference"]["brief"]["score"] == {"mean": -2.0, "standard_error": 0.0}
    assert stored["difference"]["math"]["response_length"]["mean"] == 2.0
    assert stored["sft_best_of_2_by_score"]["brief"]["score"]["mean"] == -2.0
    assert stored["sft_best_of_2_by_score"]["math"]["score"]["mean"] == 4.0
    curve = stored["best_of_n"]["by_score"]
    assert list(curve) == ["1", "2"]
    assert [row["domains"]["math"]["score"]["mean"] for row in curve.values()] == [3.0, 4.0]
    assert curve["2"]["domains"]["overall"]["score"] == stored["sft_best_of_2_by_score"]["overall"]["score"]
    note = stored["notes"][-1]
    assert "reward model has none for them" in note
    assert "math" in note
    assert "brief" not in note

    parts = describe(stored).split("\n\n")
    score = next(part for part in parts if part.startswith("Reward score")).splitlines()
    columns = ["sft", "chat_model", "difference", "sft_best_of_2_by_score", "sft_best_of_2_by_gold"]
    assert score[1].split() == ["domain", "prompts", *columns]
    brief = next(line.split() for line in score if line.split()[0] == "brief")
    assert brief[1] == str(sum(prompt.domain == "brief" for prompt in held_out.prompts))
    assert brief[2:8] == ["-2.000", "±", "0.000", "-4.000", "±", "0.000"]
    assert "no policy of PPO" in parts[-2]
    titles = [part.splitlines()[0].split(":")[0] for part in parts]
    assert titles.count("Reward model") == 4
    assert {"Reward model under its own condition beside baselines"} < set(titles)


def test_a_reward_model_alone_has_tables_too(tmp_path: Path, ready: Any, checkpoint: Any, rows: Any) -> None:
    bench = [
        {"prompt": f"{k}?", "chosen": "a long one", "rejected": "short", "subset": subset, "id": k}
        for k, subset in enumerate(["alpacaeval-easy", "donotanswer", "math-prm", "hep-go"])
    ]
    model = checkpoint("rm")
    config = compose(
        ["stage=evaluate", f"reward.path={model}", f"data.test_preferences=[{rows('b.jsonl', *bench)}]",
         f"output_dir={tmp_path}"]
    )  # fmt: skip
    (config,) = with_earlier_stages(config)
    held_out = HeldOut.of(config)
    scored = judge_pairs(Judge(ByLength(ready), Conditions({}), progress=False), held_out.preferences)
    models = FinishedModels(None, model, None)
    found = {**header(config, models, held_out), **tables(config, held_out, Measured(scored, None, [], [], []))}
    assert found["rewardbench"]["score"] is None  # no rows of Chat Hard
    assert found["rewardbench"]["sections"]["Reasoning"]["pairs"] == 2
    assert found["reward_subsets"]["hep-go"]["accuracy"] == 1.0
    assert "ngram" not in found["baselines"]
    text = describe(json.loads(json.dumps(found)))
    assert "RewardBench" in text
    assert "Gold" not in text
