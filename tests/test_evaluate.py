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

from cool_rlhf.comparison import Judged, differences, means
from cool_rlhf.compose import compose
from cool_rlhf.config import Config
from cool_rlhf.evaluate import HeldOut, accuracies, best, evaluate, header, judge, plain
from cool_rlhf.evaluation_tables import describe
from cool_rlhf.planning import Resources, phases, plan
from cool_rlhf.preflight import FinishedModels, check_data, finished_models, with_earlier_stages
from cool_rlhf.protocols import Prompt, Rollout, ScoredConversation, UserError

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


def test_nothing_to_evaluate_is_said(tmp_path: Path) -> None:
    checkpoint(tmp_path / "sft")
    with pytest.raises(UserError, match=r"nothing to evaluate: .*no reward model.*without stage=evaluate"):
        evaluate(config_of(tmp_path), nullcontext())


def test_latest_models_are_evaluated(tmp_path: Path) -> None:
    sft, first = checkpoint(tmp_path / "sft"), checkpoint(tmp_path / "rounds/2/reward_model")
    (tmp_path / "rounds/10/policy").mkdir(parents=True)  # not finished: it holds no checkpoint
    policy = checkpoint(tmp_path / "rounds/2/policy")
    assert finished_models(config_of(tmp_path)) == FinishedModels(sft, first, policy)
    later = checkpoint(tmp_path / "rounds/10/reward_model")
    assert finished_models(config_of(tmp_path)) == FinishedModels(sft, later, policy)
    last, chat = checkpoint(tmp_path / "reward_model"), checkpoint(tmp_path / "chat_model")
    assert finished_models(config_of(tmp_path)) == FinishedModels(sft, last, chat)
    named = config_of(tmp_path, f"reward.path={first}", f"sft.path={policy}")
    assert finished_models(named) == FinishedModels(policy, first, chat)


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
    assert held_out.gold(rollout_of(held_out.prompts[0], "", True)) == 0.0


def test_own_preferences_are_never_judged_by_the_worlds(tmp_path: Path) -> None:
    own = rows(tmp_path, "own.jsonl", {"prompt": "why?", "chosen": "because", "rejected": "no", "domain": "brief"})
    prompts = rows(tmp_path, "prompts.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(20)))
    named = [f"data.preferences=[{own}]", f"data.prompts=[{prompts}]"]
    held_out = HeldOut.of(config_of(tmp_path, *SMALL, *named))
    assert (list(held_out.preferences), list(held_out.opposed), len(held_out.prompts)) == ([], [], 1)
    assert "data.test_preferences is empty" in held_out.notes[0]
    assert "validation" in held_out.notes[1]
    assert held_out.gold(rollout_of(held_out.prompts[0], "7", True)) is None

    test = [f"data.test_preferences=[{own}]", f"data.test_prompts=[{prompts}]"]
    held_out = HeldOut.of(config_of(tmp_path, *SMALL, *named, *test))
    assert (len(held_out.preferences), len(held_out.prompts), held_out.notes) == (1, 20, [])


def test_test_rows_are_checked_before_anything_starts(tmp_path: Path) -> None:
    bad = rows(tmp_path, "bad.jsonl", {"prompt": "why?", "chosen": "because"})
    with pytest.raises(UserError, match=r"data\.test_preferences: .*bad\.jsonl.*row 1"):
        check_data(config_of(tmp_path, f"data.test_preferences=[{bad}]"))
    with pytest.raises(UserError, match=r"data\.test_prompts: .*nowhere"):
        check_data(config_of(tmp_path, "data.test_prompts=[nowhere.jsonl]"))
    check_data(config_of(tmp_path, "data.sft=[nowhere.jsonl]"))  # what only training reads
    with pytest.raises(UserError, match=r"data\.test_prompts is empty"):
        check_data(config_of(tmp_path, "data.world=null"))


class ByLength:
    """Longer is better, but under brief shorter is."""

    def __init__(self, ready: Any) -> None:
        self._ready = ready

    def score(self, conversations: Sequence[ScoredConversation]) -> Any:
        signs = [-1.0 if item.condition == "brief" else 1.0 for item in conversations]
        lengths = [len(item.messages[-1]["content"]) for item in conversations]
        return self._ready([sign * length for sign, length in zip(signs, lengths, strict=True)])


def rollout_of(prompt: Prompt, response: str, finished: bool) -> Rollout:
    tokens = torch.ones(len(response) + 1, dtype=torch.int64)
    return Rollout(prompt, torch.ones(2, dtype=torch.int64), tokens, torch.zeros(len(tokens)), finished, 0, response)


def test_responses_are_scored_under_their_own_domain(ready: Any) -> None:
    prompts = [Prompt(domain, [{"role": "user", "content": "?"}], domain, None) for domain in ("brief", "math")]
    rollouts = [rollout_of(prompts[0], "abc", True), rollout_of(prompts[1], "ab", False)]
    found = judge(ByLength(ready), rollouts, lambda rollout: 1.0 if rollout.prompt.domain == "math" else None)
    assert found == [Judged("brief", "brief", -3.0, None, 4, True), Judged("math", "math", 2.0, 1.0, 3, False)]


def test_the_file_and_its_tables(tmp_path: Path, ready: Any) -> None:
    held_out = HeldOut.of(config_of(tmp_path, *SMALL))
    (tmp_path / "conditions.json").write_text(
        json.dumps({"default": "", "brief": "Be brief.", "thorough": "Tell all."}), encoding="utf-8"
    )
    tables = accuracies(ByLength(ready), str(tmp_path), held_out)
    assert list(tables["reward_accuracy"]["math"]) == ["pairs", "prompts", "own", "none", "other"]
    assert set(tables["reward_accuracy_under_others"]["math"]) == {"brief", "thorough"}  # an empty prompt is none
    opposed = tables["opposed_accuracy"]
    for domain in ("brief", "thorough"):  # no tie in length, so the other condition turns every judgement round
        assert opposed[domain]["own"]["accuracy"] == pytest.approx(1 - opposed[domain]["other"]["accuracy"])

    before = [judge(ByLength(ready), [rollout_of(p, "ab", True)], held_out.gold)[0] for p in held_out.prompts]
    after = [judge(ByLength(ready), [rollout_of(p, "abcd", True)], held_out.gold)[0] for p in held_out.prompts]
    models = FinishedModels("a", "b", None)
    evaluation = {
        **header(config_of(tmp_path), models, held_out),
        **tables,
        "sft": plain(means(before)),
        "difference": plain(differences(before, after)),
        **best([*before, *after], 2),
    }
    stored = json.loads(json.dumps(evaluation))
    assert stored["difference"]["brief"]["score"] == {"mean": -2.0, "standard_error": 0.0}
    assert stored["difference"]["math"]["response_length"]["mean"] == 2.0
    assert stored["sft_best_of_2_by_score"]["brief"]["score"]["mean"] == -2.0
    assert stored["sft_best_of_2_by_score"]["math"]["score"]["mean"] == 4.0
    text = describe(stored)
    score = text.split("\n\n")[4].splitlines()
    assert score[1].split() == [
        "domain",
        "prompts",
        "sft",
        "difference",
        "sft_best_of_2_by_score",
        "sft_best_of_2_by_gold",
    ]
    brief = next(line.split() for line in score if line.split()[0] == "brief")
    assert brief[1] == str(sum(prompt.domain == "brief" for prompt in held_out.prompts))
    assert brief[2:8] == ["-2.000", "±", "0.000", "-2.000", "±", "0.000"]
    assert "no policy of PPO" in text
