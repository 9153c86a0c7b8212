"""What stage=evaluate looks at, and what it makes of scores; the stage itself runs in end_to_end."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cool_rlhf.checkpoint import RunState
from cool_rlhf.compose import compose
from cool_rlhf.config import Config
from cool_rlhf.data.messages import with_system_turn
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.evaluation.comparison import Judged
from cool_rlhf.evaluation.evaluate import Measured, evaluate, header, judge, tables, with_own_bound
from cool_rlhf.evaluation.held_out import HeldOut
from cool_rlhf.evaluation.reward_model import Judge, judge_pairs
from cool_rlhf.evaluation.tables import describe
from cool_rlhf.planning import Resources, phases, plan
from cool_rlhf.preflight import FinishedModels, check_data, finished_models, with_earlier_stages
from cool_rlhf.protocols import PreferencePair, Prompt, Rollout, ScoredConversation, UserError
from cool_rlhf.provenance import made_from
from cool_rlhf.stages.inputs import Inputs
from reward.conditions import Conditions

SMALL = ["data.world.preferences=1", "data.world.prompts=1", "data.world.sft=1", "data.world.test=12"]


def config_of(folder: Path, *overrides: str) -> Config:
    return compose(["+experiment=demo", "stage=evaluate", f"output_dir={folder}", *overrides])


def checkpoint(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return str(folder)


def rows(folder: Path, name: str, *content: dict[str, Any]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


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
def test_missing_models_are_made_first(tmp_path: Path, there: list[str], given: list[str], stages: list[str]) -> None:
    for name in there:
        checkpoint(tmp_path / name)
    config = config_of(tmp_path, "seed=4", *given)
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
def test_a_reward_model_is_evaluated_alone(tmp_path: Path, there: list[str], given: list[str]) -> None:
    for name in there:
        checkpoint(tmp_path / name)
    (leg,) = with_earlier_stages(config_of(tmp_path, *given))
    assert (leg.stage, leg.evaluate.samples_per_prompt, leg.evaluate.best_of) == ("evaluate", 0, 0)
    assert [place.role for place in plan(leg, Resources.of_machine(cpus=1, gpus=0))] == ["scorer"]


def test_alone_without_an_experiment(tmp_path: Path) -> None:
    own = rows(tmp_path, "own.jsonl", {"prompt": "why?", "chosen": "because", "rejected": "no", "domain": "law"})
    named = [f"reward.path={checkpoint(tmp_path / 'rm')}", f"data.test_preferences=[{own}]", f"output_dir={tmp_path}"]
    checkpoint(tmp_path / "sft")  # which would have nothing to answer
    (leg,) = with_earlier_stages(compose(["stage=evaluate", *named]))
    check_data(leg)  # a reward model without conditions knows no domains, and takes any
    held_out = HeldOut.of(leg)
    assert ([pair.domain for pair in held_out.preferences], list(held_out.prompts)) == (["law"], [])
    assert [note.split(":")[0] for note in held_out.notes] == ["no n-gram baseline", "no responses"]
    (tmp_path / "rm" / "conditions.json").write_text(json.dumps({"default": "", "lay": "As a layman."}))
    with pytest.raises(UserError, match=r"own\.jsonl.*'law'.*is `lay` meant"):
        check_data(leg)
    (tmp_path / "rm" / "conditions.json").write_text(json.dumps({"default": "", "law": "As a lawyer."}))
    check_data(leg)


def test_doubtful_test_pairs_are_noted(tmp_path: Path) -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    test = rows(
        tmp_path, "test.jsonl", pair("why?", "so", "no"), pair("why?", "so", "no"), pair("who?", "I", "you"),
        pair("who?", "you", "I"), pair("when?", "now", "never"),
    )  # fmt: skip
    train = rows(tmp_path, "train.jsonl", pair("Why?", "perhaps", "no"), pair("where?", "here", "there"))
    named = [f"reward.path={checkpoint(tmp_path / 'rm')}", f"output_dir={tmp_path}", "evaluate.samples_per_prompt=0"]
    config = compose(["stage=evaluate", *named, f"data.test_preferences=[{test}]", f"data.preferences=[{train}]"])
    held_out = HeldOut.of(replace(config, reward=replace(config.reward, validation_share=0.0)))
    assert [note.split(":")[0] for note in held_out.notes][:3] == [
        "1 of the test pairs stand there more than once",
        "1 test pairs are labelled both ways in their domain",
        "1 of 3 test prompts stand in the training pairs",
    ]
    assert [pair.chosen[0]["content"] for pair in held_out.training] == ["where?"]
    RunState(tmp_path).begin("reward_0", {"data": {"test_preferences": [str(test)]}})
    told = HeldOut.of(replace(config, reward=replace(config.reward, validation_share=0.0)))
    assert not [note for note in told.notes if "stand in the training pairs" in note], "it was kept apart by the run"
    assert told.training == held_out.training


def test_test_rows_that_are_left_out_are_noted(tmp_path: Path) -> None:
    pairs = [{"prompt": "why?", "chosen": "so", "rejected": rejected} for rejected in ("no", "so", "so", "")]
    test = rows(tmp_path, "test.jsonl", *pairs)
    asked = rows(tmp_path, "asked.jsonl", {"prompt": "why?"}, {"prompt": ""})
    named = [f"data.test_preferences=[{test}]", f"data.test_prompts=[{asked}]", "data.bad_rows=drop"]
    held_out = HeldOut.of(config_of(tmp_path, *SMALL, *named))
    assert (len(held_out.preferences), len(held_out.prompts)) == (1, 1)
    assert [note for note in held_out.notes if "left out" in note] == [
        "3 rows of data.test_preferences are left out: 2 equal responses, 1 malformed",
        "1 rows of data.test_prompts are left out: 1 malformed",
    ]


def test_a_prompt_that_is_listed_twice_is_asked_once(tmp_path: Path) -> None:
    """Else the best of its answers would be chosen among twice as many."""
    asked = rows(tmp_path, "asked.jsonl", {"prompt": "why?"}, {"prompt": "who?"}, {"prompt": "why?"})
    held_out = HeldOut.of(config_of(tmp_path, *SMALL, f"data.test_prompts=[{asked}]"))
    assert [prompt.messages[-1]["content"] for prompt in held_out.prompts] == ["why?", "who?"]
    assert "1 prompts that are listed again are asked once" in held_out.notes


@pytest.mark.parametrize("positions", ["max_position_embeddings", "n_positions"])  # as GPT-2 calls them
def test_test_pairs_that_the_reward_model_reads_the_end_of_are_noted(tmp_path: Path, positions: str) -> None:
    train_tokenizer(["why is it so? " * 9], 640).save_pretrained(tmp_path / "rm")
    (tmp_path / "rm" / "config.json").write_text(json.dumps({positions: 256}))
    pairs = [
        {"prompt": "why? " * words, "chosen": f"so {'x' * characters}", "rejected": "no"}
        for words, characters in ((1, 0), (250, 0), (60, 0), (1, 300))  # the third is long in letters only
    ]
    test = rows(tmp_path, "test.jsonl", *pairs)
    config = config_of(tmp_path, *SMALL, f"reward.path={tmp_path / 'rm'}", f"data.test_preferences=[{test}]")
    notes = header(config, FinishedModels(None, str(tmp_path / "rm"), None), HeldOut.of(config))["notes"]
    told = (
        "3 of the 8 dialogues of test pairs are longer than the reward model has positions: it reads their ends alone"
    )
    assert told in notes


def test_scores_are_held_against_the_bound_that_the_reward_model_was_trained_with(tmp_path: Path) -> None:
    config, model = config_of(tmp_path, "reward.bound=7"), Path(checkpoint(tmp_path / "reward_model"))
    assert with_own_bound(config, str(model)) == config
    (model / "config.json").write_text('{"score_bound": 4}')
    assert with_own_bound(config, str(model)) == replace(config, reward=replace(config.reward, bound=4.0))


def test_nothing_to_evaluate_is_said(tmp_path: Path) -> None:
    checkpoint(tmp_path / "sft")
    with pytest.raises(UserError, match=r"nothing to evaluate: .*no reward model.*without stage=evaluate"):
        evaluate(config_of(tmp_path), nullcontext())


def test_latest_models_are_evaluated(tmp_path: Path) -> None:
    sft, first = checkpoint(tmp_path / "sft"), checkpoint(tmp_path / "rounds/2/reward_model")
    (tmp_path / "rounds/10/policy").mkdir(parents=True)  # not finished: it holds no checkpoint
    policy = checkpoint(tmp_path / "rounds/2/policy")
    checkpoint(tmp_path / "rounds/3.bak/policy")
    assert finished_models(config_of(tmp_path)) == FinishedModels(sft, first, policy)
    later = checkpoint(tmp_path / "rounds/10/reward_model")
    assert finished_models(config_of(tmp_path)) == FinishedModels(sft, later, policy)
    last, chat = checkpoint(tmp_path / "reward_model"), checkpoint(tmp_path / "chat_model")
    assert finished_models(config_of(tmp_path)) == FinishedModels(sft, last, chat)
    named = config_of(tmp_path, f"reward.path={first}", f"sft.path={policy}")
    assert finished_models(named) == FinishedModels(policy, first, chat)


def test_of_a_run_that_goes_on_what_it_had_ended_with_is_not_evaluated(tmp_path: Path) -> None:
    """A run of one round is asked for three; then its second round is made again with more iterations."""
    sft = checkpoint(tmp_path / "sft")
    state, config = RunState(tmp_path), config_of(tmp_path)

    def made(*stages: str) -> None:
        for stage in stages:
            state.begin(stage, {})
            state.finish(stage)

    def found() -> tuple[str, str | None]:
        models = finished_models(config)
        assert models is not None
        assert models.sft == sft
        return models.reward_model, models.chat_model

    first, policy = checkpoint(tmp_path / "rounds/0/reward_model"), checkpoint(tmp_path / "rounds/0/policy")
    made("sft", "reward_0")
    state.begin("ppo_0", {})
    assert found() == (first, policy), "the best of a round under way"
    made("ppo_0", "reward_1")
    ended, chat = checkpoint(tmp_path / "reward_model"), checkpoint(tmp_path / "chat_model")
    assert found() == (ended, policy)
    made("export_1")
    assert found() == (ended, chat)

    state.discard_from("reward_1")  # which is to be that of a middle round now
    assert found() == (first, policy)
    made("reward_1")
    second = checkpoint(tmp_path / "rounds/1/reward_model")
    assert found() == (second, policy)
    state.begin("ppo_1", {})
    assert found() == (second, policy)
    later = checkpoint(tmp_path / "rounds/1/policy")
    made("ppo_1", "reward_2")
    third = checkpoint(tmp_path / "rounds/2/reward_model")
    assert found() == (third, later)

    state.reopen_from("ppo_0")
    assert found() == (first, policy)


def test_evaluation_needs_scorer_and_engines_only(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert phases(config) == ("evaluate",)
    assert [place.role for place in plan(config, Resources.of_machine(cpus=1, gpus=0))] == ["scorer", "rollout"]


def test_world_supplies_what_no_stage_has_seen(tmp_path: Path) -> None:
    held_out = HeldOut.of(config_of(tmp_path, *SMALL))
    assert {len(held_out.prompts), len({prompt.id for prompt in held_out.prompts})} == {12}
    assert {pair.domain for pair in held_out.opposed} == {"brief", "thorough"}
    assert len(held_out.preferences) > 100
    assert held_out.notes == []
    assert held_out.gold(held_out.prompts[0], "", True) == 0.0


def test_own_preferences_are_never_judged_by_the_worlds(tmp_path: Path) -> None:
    own = rows(tmp_path, "own.jsonl", {"prompt": "why?", "chosen": "because", "rejected": "no", "domain": "brief"})
    prompts = rows(tmp_path, "prompts.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(20)))
    named = [f"data.preferences=[{own}]", f"data.prompts=[{prompts}]"]
    checkpoint(tmp_path / "sft")
    held_out = HeldOut.of(config_of(tmp_path, *SMALL, *named))
    assert (list(held_out.preferences), list(held_out.opposed), len(held_out.prompts)) == ([], [], 1)
    assert "data.test_preferences is empty" in held_out.notes[0]
    assert "validation" in held_out.notes[1]
    assert held_out.gold(held_out.prompts[0], "7", True) is None

    test = [f"data.test_preferences=[{own}]", f"data.test_prompts=[{prompts}]"]
    held_out = HeldOut.of(config_of(tmp_path, *SMALL, *named, *test))
    assert (len(held_out.preferences), len(held_out.prompts)) == (1, 20)
    assert held_out.notes == ["1 of 1 test prompts stand in the training pairs: the model has learnt from them"]
    assert held_out.training == []


def trained(folder: Path, *overrides: str) -> Config:
    """The config of a run in ``folder`` that has begun with PPO."""
    config = compose(["+experiment=demo", f"output_dir={folder}", *SMALL, *overrides])
    state = RunState(folder)
    for stage in ("collect", "reward_0", "ppo_0"):
        state.begin(stage, made_from(config)[stage])
    return config


def texts(prompts: Sequence[Prompt]) -> set[str]:
    return {prompt.messages[-1]["content"] for prompt in prompts}


def test_whatever_the_settings_the_prompts_that_the_run_held_out_are_asked(tmp_path: Path) -> None:
    """Others PPO has trained on."""
    asked = rows(tmp_path, "asked.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(400)))
    others = rows(tmp_path, "others.jsonl", *({"prompt": f"who {k}?", "domain": "math"} for k in range(40)))
    named = f"data.prompts=[{asked}]"
    run = trained(tmp_path, named, "sampling.system_prompt=Short.", "conditions.math='Be exact.'")
    checkpoint(tmp_path / "sft")
    held = Inputs(run).validation
    assert len(held) == 20
    tested = rows(
        tmp_path, "tested.jsonl", *({"prompt": text, "chosen": "so", "rejected": "no", "domain": "math"}
        for text in [*sorted(texts(held))[:3], *(f"why {k}?" for k in range(5))]),
    )  # fmt: skip
    tests = texts(held) & ({*sorted(texts(held))[:3]} | {f"why {k}?" for k in range(5)})

    def found(*overrides: str) -> HeldOut:
        config = config_of(tmp_path, *SMALL, *overrides)
        check_data(config)
        return HeldOut.of(config)

    for changed in ([named, "seed=2"], [], [named, "sampling.system_prompt=Long."], ["conditions=default", named]):
        again = found(*changed)
        assert [prompt.id for prompt in again.prompts] == [prompt.id for prompt in held]
        assert again.prompts_from == "validation prompts"
        assert not [note for note in again.notes if "not those" in note]
    system = found("sampling.system_prompt=Long.").prompts[0].messages
    assert system == with_system_turn([held[0].messages[-1]], "Long."), "as it is to be asked now"
    other = found(f"data.prompts=[{others}]")
    assert texts(other.prompts) == texts(held)
    assert [note for note in other.notes if "are not those that the run was trained with" in note]
    fewer = found(named, f"data.test_preferences=[{tested}]", "evaluate.baseline_pairs=0")
    assert texts(fewer.prompts) == texts(held) - tests
    assert f"{len(tests)} of the prompts that the run held out are not asked, since test rows have them" in fewer.notes

    asked.unlink()
    with pytest.raises(UserError, match=rf"data\.prompts of the run in {tmp_path}: there is no file .*asked\.jsonl"):
        found()


def test_test_prompts_that_the_run_was_asked_are_noted(tmp_path: Path) -> None:
    asked = rows(tmp_path, "asked.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(100)))
    named = f"data.prompts=[{asked}]"
    run = trained(tmp_path, named, "sampling.system_prompt=Short.")
    tested = rows(
        tmp_path, "tested.jsonl", {"prompt": "Why  7?"}, {"prompt": "who?"},
        *({"prompt": text} for text in sorted(texts(Inputs(run).prompts))[:4]),
    )  # fmt: skip
    count = len({"why 7?", *sorted(texts(Inputs(run).prompts))[:4]} & texts(Inputs(run).prompts))
    config = config_of(tmp_path, *SMALL, f"data.test_prompts=[{tested}]")
    told = [note for note in HeldOut.of(config).notes if "test prompts" in note]
    assert told == [f"{count} of 6 test prompts were asked in training: the policy has learnt from them"]
    asked.unlink()
    told = [note for note in HeldOut.of(config).notes if "test prompts" in note]
    assert len(told) == 1
    assert re.match(r"whether the run was asked test prompts in training cannot be told: .*asked\.jsonl", told[0])


def test_test_prompts_that_the_run_knew_of_need_no_note(tmp_path: Path) -> None:
    asked = rows(tmp_path, "asked.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(30)))
    named = [f"data.prompts=[{asked}]", f"data.test_prompts=[{asked.rename(tmp_path / 'tested.jsonl')}]"]
    rows(tmp_path, "asked.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(20, 60)))
    trained(tmp_path, *named)
    for seed in ("seed=1", "seed=2"):
        held_out = HeldOut.of(config_of(tmp_path, *SMALL, *named, seed))
        assert len(held_out.prompts) == 30
        assert not [note for note in held_out.notes if "test prompts" in note]


def test_a_sampled_pair_is_known_again_behind_the_policys_system_turn(tmp_path: Path) -> None:
    trained(tmp_path, "sampling.system_prompt=Short.")
    asked = [{"role": "system", "content": "Short."}, {"role": "user", "content": "why?"}]
    (tmp_path / "rounds" / "0").mkdir(parents=True)
    sampled = rows(
        tmp_path / "rounds" / "0", "collected.jsonl",
        {"prompt": asked, "chosen": "so", "rejected": "no", "domain": "math"},
    )  # fmt: skip
    tested = rows(tmp_path, "tested.jsonl", {"prompt": "Why?", "chosen": "so", "rejected": "no", "domain": "math"})
    assert sampled.exists()
    held_out = HeldOut.of(config_of(tmp_path, *SMALL, f"data.test_preferences=[{tested}]"))
    told = "1 of 1 test prompts stand in the training pairs: the model has learnt from them"
    assert told in held_out.notes
    assert "why?" not in {pair.chosen[-2]["content"] for pair in held_out.training}


def test_test_rows_are_checked_before_anything_starts(tmp_path: Path) -> None:
    bad = rows(tmp_path, "bad.jsonl", {"prompt": "why?", "chosen": "because"})
    with pytest.raises(UserError, match=r"data\.test_preferences: .*bad\.jsonl.*row 1"):
        check_data(config_of(tmp_path, f"data.test_preferences=[{bad}]"))
    with pytest.raises(UserError, match=r"data\.test_prompts: .*nowhere"):
        check_data(config_of(tmp_path, "data.test_prompts=[nowhere.jsonl]"))
    check_data(config_of(tmp_path, "data.sft=[nowhere.jsonl]"))  # what only training reads
    with pytest.raises(UserError, match=r"data\.test_preferences: .*nowhere"):
        check_data(config_of(tmp_path, "data.test_preferences=[nowhere.jsonl]"))
    with pytest.raises(UserError, match=r"data\.test_preferences is empty, and there is nothing else"):
        check_data(config_of(tmp_path, "data.world=null"))


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
        Judged("brief", "brief", -3.0, None, 4, True),
        Judged("thorough", "thorough", 2.0, 1.0, 3, False),
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


def test_the_file_and_its_tables(tmp_path: Path, ready: Any) -> None:
    config = config_of(tmp_path, *SMALL, "evaluate.best_of=2", "data.world.preferences=2")
    held_out = HeldOut.of(config)
    (tmp_path / "conditions.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    judged = judge_of(ByLength(ready))

    def answers(text: str) -> list[Judged]:
        return judge(judged, [rollout_of(prompt, text, True) for prompt in held_out.prompts], held_out.gold)

    before, after = answers("ab"), answers("abcd")
    preferences, opposed = (judge_pairs(judged, pairs) for pairs in (held_out.preferences, held_out.opposed))
    measured = Measured(preferences, opposed, before, after, [*before, *after])
    models = FinishedModels("a", str(tmp_path), None)
    stored = json.loads(json.dumps({**header(config, models, held_out), **tables(config, held_out, measured)}))

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


def test_a_reward_model_alone_has_tables_too(tmp_path: Path, ready: Any) -> None:
    bench = [
        {"prompt": f"{k}?", "chosen": "a long one", "rejected": "short", "subset": subset, "id": k}
        for k, subset in enumerate(["alpacaeval-easy", "donotanswer", "math-prm", "hep-go"])
    ]
    model = checkpoint(tmp_path / "rm")
    config = compose(
        ["stage=evaluate", f"reward.path={model}", f"data.test_preferences=[{rows(tmp_path, 'b.jsonl', *bench)}]",
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
