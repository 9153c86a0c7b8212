from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cool_rlhf.checkpoint import RunState
from cool_rlhf.folders import RoundFolder
from cool_rlhf.ppo.state import PPOState
from cool_rlhf.protocols import Prompt, Rollout
from cool_rlhf.stages.observers import PPOObserver, few_of_each_domain, saved_start


def rollout(number: int, domain: str) -> Rollout:
    prompt = Prompt(f"q{number}", [{"role": "user", "content": f"Question {number}?"}], domain, None)
    one = torch.ones(1, dtype=torch.int64)
    return Rollout(prompt, one, one, torch.zeros(1), number % 2 == 0, 3, f"answer {number}")


def test_the_first_two_of_each_domain_are_shown_with_what_was_said_of_them():
    rollouts = [rollout(k, "ab"[k in (1, 5, 6)]) for k in range(8)]
    shown = few_of_each_domain(rollouts, [float(k) for k in range(8)], [None, 0.25, *[0.5] * 6])
    assert [sample["response"] for sample in shown] == ["answer 0", "answer 1", "answer 2", "answer 5"]
    assert shown[1] == {
        "domain": "b",
        "messages": [{"role": "user", "content": "Question 1?"}],
        "response": "answer 1",
        "score": 1.0,
        "gold": 0.25,
        "finished": False,
    }
    assert shown[0]["gold"] is None


def test_a_policy_that_was_kept_after_the_snapshot_is_the_best_to_beat(tmp_path: Path) -> None:
    state, round_folder = RunState(tmp_path), RoundFolder(tmp_path, 0)
    policy = round_folder.policy
    state.begin("ppo_0", {})
    told = SimpleNamespace(phase=lambda name: None, sync=lambda: None)
    observer = PPOObserver(told, told, state, "ppo_0", {}, Path.mkdir, round_folder)  # type: ignore[arg-type]
    observer.keep_best(2, 0.25)
    saved = PPOState(step=3, best=0.25)
    observer.save(saved)
    assert saved_start(state, "ppo_0", policy)[1] == saved
    observer.keep_best(4, 0.5)
    folder, start = saved_start(RunState(tmp_path), "ppo_0", policy)
    assert (start.step, start.best) == (3, 0.5), "it was interrupted before the next snapshot"
    assert folder is not None
    assert folder.is_dir()
    assert [path.name for path in policy.parent.iterdir()] == ["policy"]

    state.discard_from("ppo_0")
    assert saved_start(RunState(tmp_path), "ppo_0", policy) == (None, PPOState())
    state.begin("ppo_0", {})
    observer.save(PPOState(step=1))
    assert saved_start(state, "ppo_0", policy)[1].best is None, "the policy was of a round that was made again"


@pytest.mark.parametrize(("rises", "parts"), [("chat", False), ("math", True)])
def test_score_and_gold_part_only_where_gold_is_known(tmp_path: Path, rises: str, parts: bool) -> None:
    told: list[str] = []
    rows: list[dict[str, object]] = []
    tracker = SimpleNamespace(rows=rows, show=told.append)
    stage = SimpleNamespace(
        round=0, record=lambda step, row, _: rows.append({"stage": "ppo", "round": 0, "step": step, **row})
    )
    observer = PPOObserver(
        tracker, stage, RunState(tmp_path), "ppo_0", {}, Path.mkdir, RoundFolder(tmp_path, 0)  # type: ignore[arg-type]
    )  # fmt: skip
    domains = ["math", "chat", "chat"]
    rollouts = [rollout(number, domain) for number, domain in enumerate(domains)]
    for step in range(1, 7):
        scores = [5.0 * step if domain == rises else -1.0 * step for domain in domains]
        gold = 1.0 - 0.1 * step
        observer.samples(step, rollouts, scores, [gold, None, None])
        mean = {
            "validation/score": sum(scores) / 3,
            "validation/score/math": scores[0],
            "validation/score/chat": scores[1],
        }
        observer.record(
            step, 6, {**mean, "validation/gold": gold, "validation/gold/math": gold, "validation/kl": step**2.0}
        )
    assert observer.has_parted() == bool(told) == parts
    assert rows[-1]["overoptimisation/score"] == scores[0]
