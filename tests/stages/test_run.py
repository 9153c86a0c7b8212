"""What opening a run does before its first stage, and what a stage leaves beside its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cool_rlhf.compose import compose
from cool_rlhf.config import Config
from cool_rlhf.data.preferences import split_pairs
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.folders import RoundFolder, part_of, replace_whole
from cool_rlhf.online.annotation.items import Item, ShownResponse
from cool_rlhf.online.annotation.store import FILE_NAME, Store
from cool_rlhf.planning import Resources
from cool_rlhf.protocols import Message, PreferencePair
from cool_rlhf.roles import group, standby
from cool_rlhf.roles.group import WorkerGroup
from cool_rlhf.roles.trainer import RewardWorker
from cool_rlhf.stages import run as stages
from cool_rlhf.stages.data import StageData
from cool_rlhf.stages.ledger import Ledger, other_than_whole
from cool_rlhf.stages.new_pairs import NewPairs
from cool_rlhf.stages.repair import Repair, Rise
from cool_rlhf.stages.run import Run, open_run
from cool_rlhf.tracking.metrics import read_metrics
from cool_rlhf.tracking.report import write_report

CPUS = 2.0


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Opens and closes a run, without Ray."""
    monkeypatch.setattr(stages, "cluster", lambda *arguments: nullcontext())

    def open_and_close(*overrides: str) -> None:
        names = ["+experiment=smoke", f"output_dir={tmp_path}", "logging.wandb_mode=disabled", *overrides]
        with open_run(compose(names)):
            pass

    return open_and_close


def test_a_policy_that_was_being_replaced_is_there_again(
    opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "rounds/0/policy"
    for text in ("old", "new"):
        part = part_of(policy)
        part.mkdir()
        (part / "weights").write_text(text)
        if text == "old":
            replace_whole(part, policy)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: replace(old, new) if old == policy else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace_whole(part, policy)
    monkeypatch.setattr(os, "replace", replace)
    assert not policy.exists()
    opened()
    assert (policy / "weights").read_text() == "old"


def test_the_token_of_the_annotation_page_is_kept_out_of_files(opened, tmp_path: Path) -> None:
    token = "a-token-that-is-long-enough"
    opened(f"annotate.token={token}")
    assert "overlap: 1" in (tmp_path / "config.yaml").read_text()
    write_report(tmp_path)
    assert "annotate" in (tmp_path / "report.html").read_text()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token in path.read_text(errors="ignore")]


@pytest.fixture
def after_ppo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run whose first round of PPO is over, with the record of a repair that was made before."""
    monkeypatch.setattr(stages, "cluster", lambda *arguments: nullcontext())
    monkeypatch.setattr(standby, "resources", lambda: Resources.of_machine(cpus=CPUS, gpus=1))
    monkeypatch.setattr(Run, "_prepare_next", lambda run: None)
    names = ["+experiment=smoke", f"output_dir={tmp_path}", "logging.wandb_mode=disabled"]
    (tmp_path / "rounds/0/fast_path").mkdir(parents=True)
    (tmp_path / "rounds/0/fast_path/repair.json").write_text('{"kept": ["a/old"], "rolled_back": []}')
    (tmp_path / "rounds/0/reward_model").mkdir()
    (tmp_path / "rounds/0/responses.jsonl").touch()
    with open_run(compose(names)) as run:
        yield run


def test_a_round_that_is_made_again_and_finds_nothing_leaves_no_record_of_a_repair(
    after_ppo: Run, tmp_path: Path
) -> None:
    after_ppo.next_reward_model(0)
    assert (tmp_path / "reward_model").exists()
    assert not (tmp_path / "rounds/0/fast_path/repair.json").exists()


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_round_without_news_stops_the_trainer_that_waits_for_it_with_a_gpu(
    after_ppo: Run, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    """The next policy may need it."""
    after_ppo.config.cluster.trainer.gpus = gpus
    stopped: list[Any] = []
    monkeypatch.setattr(ray, "kill", stopped.append)
    waiting = after_ppo._roles.standby
    warm = SimpleNamespace(warm_up=SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr(waiting, "_create", lambda worker: [warm])
    waiting.prepare("reward")
    after_ppo.next_reward_model(0)
    assert stopped == ([warm] if gpus else [])
    assert waiting.holds(RewardWorker) is (not gpus)


@pytest.mark.parametrize(("gpus", "cpus"), [(0, 0.5), (1, 0.5), (0, 0.5 + CPUS)])
def test_processes_that_hold_nothing_that_others_wait_for_are_taken_again(
    after_ppo: Run, monkeypatch: pytest.MonkeyPatch, gpus: int, cpus: float
) -> None:
    after_ppo.config.cluster.trainer.gpus, after_ppo.config.cluster.trainer.cpus = gpus, cpus
    kept = (gpus, cpus) == (0, 0.5)
    happened: list[str] = []
    monkeypatch.setattr(ray, "kill", lambda actor: happened.append("killed"))
    waiting = after_ppo._roles.standby
    new = object()
    monkeypatch.setattr(waiting, "_create", lambda worker: [new])
    monkeypatch.setattr(group, "fetch", list)
    used = SimpleNamespace(unload=SimpleNamespace(remote=lambda: happened.append("unloaded")))
    waiting.give_back(RewardWorker, WorkerGroup([used]))  # type: ignore[list-item]
    assert happened == (["unloaded"] if kept else ["killed"])
    assert waiting.take(RewardWorker) == ([used] if kept else [new])
    assert waiting.take(RewardWorker) == [new]


class Repaired:
    """In place of a repair: two steps of two attempts, after which nothing is kept."""

    config: Config

    def __init__(self, config: Config, *_arguments: object, **_named: object) -> None:
        Repaired.config = config

    def steps(self, new: NewPairs) -> int:
        return 1

    def run(self, new: NewPairs, stage: Any) -> tuple[Repair, Any]:
        for step in (1, 2):
            stage.record(step, {"attempt": step})
        trained = SimpleNamespace(all=lambda *arguments: None, actors=[])
        return Repair(2, {}, {}, 0.75, 0.5, {}, [], Rise(0.0, 0.0, 1.0, 1.0)), SimpleNamespace(group=trained)


def test_what_became_of_a_repair_stands_in_the_stages_last_row(
    after_ppo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "Repairing", Repaired)
    monkeypatch.setattr(stages, "new_pairs", lambda config, round: NewPairs({"a/new": []}, [], []))
    monkeypatch.setattr(stages, "load_tokenizer", lambda path: None)
    monkeypatch.setattr(stages, "longest_sequence", lambda path, asked: min(asked, 100))
    monkeypatch.setattr(StageData, "preferences", lambda data: SimpleNamespace(training=[]))
    after_ppo.next_reward_model(0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert (rows[-1]["stage"], rows[-1]["round"], rows[-1]["repair/kept"]) == ("reward", 1, 0)
    assert '"a/old"' not in (tmp_path / "rounds/0/fast_path/repair.json").read_text()
    assert Repaired.config.reward.max_length == 100, "pairs are cut as those of the first round were"


def test_conditions_that_no_pair_teaches_are_told(
    after_ppo: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask, answers = Message(role="user", content="Who?"), ("It is me.", "Nobody.")
    chosen, rejected = ([ask, Message(role="assistant", content=answer)] for answer in answers)
    pairs = [PreferencePair(chosen, rejected, domain, None, True, True) for domain in ("brief", "math")]
    monkeypatch.setattr(stages, "load_tokenizer", lambda path: train_tokenizer(["Who? It is me."], 512))
    monkeypatch.setattr(StageData, "preferences", lambda data: split_pairs(pairs, 0.0))
    monkeypatch.setattr(Run, "_reward_settings", lambda run: run.config.reward)
    after_ppo._prepared_pairs(seed=1)
    assert "no pair teaches the conditions of format, safety, thorough: " in caplog.text


def test_a_round_that_was_interrupted_after_its_answers_goes_on_from_them(
    after_ppo: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on: list[bool] = []

    def answer(*_: object, resumed: bool) -> None:
        went_on.append(resumed)
        raise InterruptedError

    monkeypatch.setattr(stages, "answer_prompts", answer)
    after_ppo._ledger._tracker_placed = True
    after_ppo._answerers = SimpleNamespace(scorer=None)  # type: ignore[assignment]
    for samples in (1, 1, 2):
        after_ppo._ledger._settings = {**after_ppo._ledger._settings, "online_0": {"samples_per_prompt": samples}}
        with pytest.raises(InterruptedError):
            after_ppo.online(0)
        after_ppo._tracker._stage = None  # as in a new process
    assert went_on == [False, True, False], "other settings ask for other answers"


def test_a_policy_that_starts_over_is_told(
    after_ppo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rounds/0/fast_path/patterns.json").write_text('{"findings": [{"explained": 0.9}]}')
    monkeypatch.setattr(Ledger, "begin", lambda self, name: 0)
    monkeypatch.setattr(stages, "load_tokenizer", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        after_ppo.ppo(1)
    told = "The policy of round 1 starts over from the SFT model, and that of round 0 is left behind: one finding"
    assert told in capsys.readouterr().out
    assert told in (tmp_path / "logs/run.log").read_text()


AHEAD = ["ppo.generate_ahead=true", "ppo.old_logprobs=engine", "ppo.stop_kl=0", "sampling.temperature=1.0"]


@pytest.mark.parametrize(
    ("changed", "differing"),
    [
        (["ppo.entropy_schedule=linear"], []),
        (
            ["ppo.entropy_schedule=linear", "ppo.entropy_coefficient=0.1"],
            ["a jump of the weight of entropy to where these are over all ppo.iterations"],
        ),
        ([*AHEAD, "ppo.save_every=2"], ["the responses of step 4 are not sampled ahead (ppo.generate_ahead)"]),
        ([*AHEAD, "ppo.save_every=3"], []),  # no run samples ahead across a saved step
        (["ppo.early_snapshot=0.4"], ["policy_early stays that of iteration 1, not 2 (ppo.early_snapshot)"]),
        (["ppo.validate_every=3"], ["step 3 was validated as the last one, and may be the best (ppo.validate_every)"]),
    ],
)
def test_what_a_round_that_gets_more_iterations_has_otherwise(changed: list[str], differing: list[str]) -> None:
    fixed = ["ppo.learning_rate_schedule=constant", "ppo.validate_every=1", "ppo.critic_warmup=1", "ppo.iterations=5"]
    assert other_than_whole(compose(["+experiment=smoke", *fixed, *changed]).ppo, 3) == differing


@pytest.mark.parametrize(("schedule", "jumps"), [("constant", False), ("cosine", True)])
def test_more_iterations_than_a_finished_round_had_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, schedule: str, jumps: bool
) -> None:
    monkeypatch.setattr(stages, "cluster", lambda *arguments: nullcontext())
    names = ["+experiment=smoke", f"output_dir={tmp_path}", "logging.wandb_mode=disabled", "ppo.iterations=5"]
    with open_run(compose([*names, f"ppo.learning_rate_schedule={schedule}"])) as run:
        (tmp_path / "rounds/0/policy").mkdir(parents=True)
        run._state.begin("ppo_0", run._ledger._settings["ppo_0"])
        run._state.save_snapshot("ppo_0", {"step": 3}, lambda folder: None)
        run._state.finish("ppo_0")
        assert run._ledger.begin("ppo_0") == 3
    told = [record.message for record in caplog.records if "ppo_0 goes on behind its end" in record.message]
    jump = "from the start: a jump of learning rates to where these are over all ppo.iterations"
    assert [message.endswith(jump) for message in told] == [True] * jumps


class Killed(BaseException):
    """A process that ends at once."""


def test_paths_that_are_walked_anew_take_nothing_of_the_last_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "cluster", lambda *arguments: nullcontext())
    folder = RoundFolder(tmp_path, 0)
    left = [folder.responses, folder.patterns, folder.patches, folder.lessons, folder.review, folder.repair]
    left += [folder.pairs]

    def killed(*arguments: object) -> None:
        raise Killed

    with open_run(compose(["+experiment=smoke", f"output_dir={tmp_path}", "logging.wandb_mode=disabled"])) as run:
        monkeypatch.setattr(run._roles, "answerers", killed)
        for attempt, content in enumerate(("of another policy", "of this one")):
            for file in [*left, folder.labels]:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content)
            with pytest.raises(Killed):
                run.online(0)
            assert [file.exists() for file in left] == [attempt == 1] * len(left)
            assert folder.labels.exists(), "labels stay"


def test_rounds_that_are_to_be_made_again_are_neither_reported_nor_asked_about(after_ppo: Run, tmp_path: Path) -> None:
    """Of two finished rounds the second is forgotten with its PPO; what people have labelled stays."""
    after_ppo._ledger._settings = {
        name: {} for name in ("ppo_0", "online_0", "reward_1", "ppo_1", "online_1", "reward_2")
    }
    for name in after_ppo._ledger._settings:
        after_ppo._state.begin(name, {})
        after_ppo._state.finish(name)
    folders = [RoundFolder(tmp_path, round) for round in (0, 1)]
    for folder in folders:
        for file in (folder.patterns, folder.pairs, folder.repair):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    with Store(tmp_path / FILE_NAME) as store:
        response = ShownResponse("yes", True, "sft")
        for round in (0, 1):
            question = [Message(role="user", content=f"round {round}?")]
            item = Item(question, response, ShownResponse("no", True, "late"), "default", "", None, round)
            store.add_items([item])
        config = after_ppo.config
        after_ppo._ledger._config = replace(config, online=replace(config.online, rounds=2))
        after_ppo._ledger.begin("ppo_1")  # whose policy is not there
        assert [item.round for item in store.items()] == [0]
    assert [file.exists() for file in (folders[0].patterns, folders[0].pairs, folders[0].repair)] == [True] * 3
    assert [file.exists() for file in (folders[1].patterns, folders[1].pairs, folders[1].repair)] == [False] * 3


def test_supervised_training_that_is_gone_on_with_keeps_its_tokenizer(
    after_ppo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other texts would give tokens other numbers, and the weights would go on with them."""
    loaded: list[str] = []

    def load(base: str) -> None:
        loaded.append(base)
        raise Killed

    monkeypatch.setattr(stages, "load_tokenizer", load)
    monkeypatch.setattr(StageData, "fresh_base", lambda data, folder: f"made in {folder.name}")
    monkeypatch.setattr(after_ppo._roles, "prepare", lambda name: None)
    for _ in range(2):
        with pytest.raises(Killed):
            after_ppo.sft()
        after_ppo._state.save_snapshot("sft", {"step": 7}, lambda folder: None)
    assert loaded == ["made in base", str(tmp_path / "state/base")]
