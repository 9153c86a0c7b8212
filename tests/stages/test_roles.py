from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cool_rlhf.checkpoint import RunState
from cool_rlhf.compose import compose
from cool_rlhf.folders import RoundFolder
from cool_rlhf.ppo.state import PPOState
from cool_rlhf.roles import sampler
from cool_rlhf.roles.group import WorkerGroup
from cool_rlhf.roles.worker import TrainSpec
from cool_rlhf.stages import roles as stage_roles
from cool_rlhf.stages.observers import PPOObserver
from cool_rlhf.stages.roles import Checkpoints, PPORoles, StageRoles


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stage does, in order; without processes."""
    order: list[str] = []

    def build(groups: Sequence[Any]) -> Sequence[Any]:
        order.append("the others load")
        return groups

    monkeypatch.setattr(sampler, "fetch", lambda waited: waited and order.append("the engine is up"))
    monkeypatch.setattr(stage_roles, "build_all", build)
    monkeypatch.setattr(stage_roles, "start_group", lambda actors, model, train: model)
    monkeypatch.setattr(
        stage_roles, "check_same_tokens", lambda critic, policy: order.append(f"{critic} reads {policy}")
    )
    return order


def start(happened: list[str], cluster: str, *overrides: str) -> None:
    serve = SimpleNamespace(remote=lambda *_: happened.append("the engine is told to start"))
    roles = StageRoles(compose(["+experiment=demo", f"cluster={cluster}", "sft.path=x", "reward.path=y", *overrides]))
    roles.standby.take = lambda worker: [SimpleNamespace(serve=serve)]  # type: ignore[method-assign]
    roles.ppo(0)


@pytest.mark.parametrize("cluster", ["cpu", "gpu_4"])
def test_roles_load_side_by_side(cluster: str, happened: list[str]) -> None:
    start(happened, cluster)
    assert happened == ["the engine is told to start", "y reads x", "the others load", "the engine is up"]


def test_an_engine_that_shares_its_gpu_is_up_before_others_load(happened: list[str]) -> None:
    start(happened, "gpu_1")
    assert happened == ["the engine is told to start", "y reads x", "the engine is up", "the others load"]


def test_but_not_where_it_is_told_how_much_is_its_own(happened: list[str]) -> None:
    start(happened, "gpu_1", "cluster.rollout.cache_gib=0.5")
    assert happened == ["the engine is told to start", "y reads x", "the others load", "the engine is up"]


@pytest.mark.parametrize(
    ("cluster", "starts"),
    [(["cluster=gpu_1"], False), (["cluster=gpu_1", "cluster.rollout.cache_gib=0.5"], True), (["cluster=gpu_4"], True)],
)
def test_an_engine_that_measures_its_gpu_waits_until_nobody_trains_on_it(
    happened: list[str], cluster: list[str], starts: bool
) -> None:
    serve = SimpleNamespace(remote=lambda *_: happened.append("the engine is told to start"))
    roles = StageRoles(compose(["+experiment=demo", *cluster]))
    roles.standby.holds = lambda worker: True  # type: ignore[method-assign]
    roles.standby.take = lambda worker: [SimpleNamespace(serve=serve)]  # type: ignore[method-assign]
    roles.start_rollouts("x")
    assert happened == (["the engine is told to start"] if starts else [])


def test_the_scorer_packs_by_ppos_budget(happened: list[str]) -> None:
    roles = StageRoles(compose(["+experiment=demo", "sft.path=x", "reward.path=y", "ppo.micro_batch_tokens=777"]))
    roles.standby.take = lambda worker: []  # type: ignore[method-assign]
    reference, scorer = roles._frozen(0)
    assert (reference.path, scorer.path) == ("x", "y")  # type: ignore[attr-defined]
    assert scorer.micro_batch_tokens == 777  # type: ignore[attr-defined]


def test_policy_and_critic_train_as_their_section_says(happened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    monkeypatch.setattr(stage_roles, "start_group", lambda actors, model, train: train and trained.append(train))
    set_apart = ("ppo.adam_betas=[0.8,0.9]", "ppo.weight_decay=0.2", "ppo.gradient_clip=3", "reward.adam_betas=[0,0]")
    start(happened, "cpu", *set_apart, "cluster.policy.zero_stage=3", "cluster.critic.zero_stage=1")
    assert trained == [TrainSpec(stage, 0.2, 3.0, (0.8, 0.9)) for stage in (3, 1)]


def group_of(role: str, order: list[str], ranks: int) -> WorkerGroup:
    """Ranks that note what they are asked and answer with their role."""

    def ask(method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *given: order.append(f"{method} {given}") or role)

    return WorkerGroup([SimpleNamespace(save=ask("save"), load=ask("load")) for _ in range(ranks)])  # type: ignore[list-item]


@pytest.mark.parametrize("method", ["save", "load"])
def test_policy_and_critic_are_saved_and_loaded_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    order: list[str] = []
    monkeypatch.setattr(stage_roles, "fetch", lambda waited: order.append(f"all of {waited} are done"))
    policy, critic = group_of("policy", order, 2), group_of("critic", order, 1)
    if method == "load":
        PPORoles(None, policy, critic, None).load(tmp_path)  # type: ignore[arg-type]
        folder = tmp_path
    else:
        state, quiet = RunState(tmp_path), SimpleNamespace(phase=lambda name: None, sync=lambda: None)
        state.begin("ppo_0", {})
        groups = {"policy": policy, "critic": critic}
        PPOObserver(quiet, quiet, state, "ppo_0", groups, Path.mkdir, RoundFolder(tmp_path, 0)).save(PPOState(step=1))  # type: ignore[arg-type]
        folder = state.folder / "ppo_0" / ".part"
    asked = [f"{method} ({str(folder / role)!r},)" for role in ("policy", "policy", "critic")]
    assert order == [*asked, "all of ['policy', 'policy', 'critic'] are done"]


def told(folder: Path, round: int, *explained: float) -> None:
    file = folder / f"rounds/{round}/fast_path/patterns.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"findings": [{"explained": share} for share in explained]}))


def start_of(folder: Path, round: int, policy_from: str) -> str:
    config = compose(
        ["+experiment=demo", "online.rounds=4", f"output_dir={folder}", f"online.policy_from={policy_from}"]
    )
    return str(Path(Checkpoints(config).policy_start(round)).relative_to(folder))


def test_a_policy_goes_on_from_the_last_one_that_does_not_live_off_a_cheat(tmp_path: Path) -> None:
    told(tmp_path, 0, 0.3, 0.2)
    told(tmp_path, 1, 0.2, 0.7)  # round 2 has no fast path
    starts = [start_of(tmp_path, round, "clean") for round in range(4)]
    assert starts == ["sft", "rounds/0/policy", "rounds/0/policy", "rounds/2/policy"]
    assert start_of(tmp_path, 2, "last") == "rounds/1/policy"
    assert start_of(tmp_path, 1, "sft") == "sft"


def test_a_first_policy_that_cheats_sends_the_next_back_to_sft(tmp_path: Path) -> None:
    told(tmp_path, 0, 0.5)
    assert start_of(tmp_path, 1, "clean") == "sft"


@pytest.mark.parametrize(
    ("kept", "before", "after", "p", "gold_p", "start"),
    [
        (["a/b"], 2.0, 0.9, 1e-9, 1.0, "sft"),  # under half of its rise is left
        (["a/b"], 2.0, -0.1, 1e-9, 0.02, "sft"),
        (["a/b"], 2.0, 1.1, 1e-9, 1.0, "rounds/0/policy"),
        ([], 2.0, 0.9, 1e-9, 1.0, "rounds/0/policy"),  # labels alone: nothing was mended
        (["a/b"], 0.1, -0.2, 0.2, 1.0, "rounds/0/policy"),  # it hardly rose
        (["a/b"], 2.0, 0.9, 1e-9, 1e-3, "rounds/0/policy"),  # it is better by gold
    ],
)
def test_a_policy_that_the_mended_reward_model_does_not_pay_for_is_left_behind(
    tmp_path: Path, kept: list[str], before: float, after: float, p: float, gold_p: float, start: str
) -> None:
    told(tmp_path, 0, 0.3)
    repair = {"kept": kept, "rise": {"before": before, "after": after, "p": p, "gold_p": gold_p}}
    (tmp_path / "rounds/0/fast_path/repair.json").write_text(json.dumps(repair))
    assert start_of(tmp_path, 1, "clean") == start
    assert start_of(tmp_path, 1, "last") == "rounds/0/policy"


@pytest.mark.parametrize(("p", "start"), [(0.5, "rounds/0/policy"), (1e-4, "sft")])
def test_shares_of_a_rise_that_may_be_chance_leave_no_policy_behind(tmp_path: Path, p: float, start: str) -> None:
    told(tmp_path, 0, 28.9)
    repair = {"kept": [], "rise": {"before": 0.05, "after": 0.05, "p": p, "gold_p": 1.0}}
    (tmp_path / "rounds/0/fast_path/repair.json").write_text(json.dumps(repair))
    assert start_of(tmp_path, 1, "clean") == start


def test_how_much_is_a_cheat_can_be_set_and_what_is_left_behind_is_told(tmp_path: Path) -> None:
    told(tmp_path, 0, 0.1)
    told(tmp_path, 1, 0.4)
    overrides = ["+experiment=demo", "online.rounds=4", f"output_dir={tmp_path}"]
    checkpoints = Checkpoints(compose([*overrides, "online.cheating=0.4"]))
    assert checkpoints.policy_start(2) == str(tmp_path / "rounds/0/policy")
    assert checkpoints.described_start(2).startswith(
        "The policy of round 2 starts over from the policy of round 0, and"
    )
    assert Checkpoints(compose(overrides)).policy_start(2) == str(tmp_path / "rounds/1/policy")
