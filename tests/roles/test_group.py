"""Sharing work out among ranks, and what becomes of failures."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cool_rlhf.config import RoleConfig
from cool_rlhf.protocols import ScoredConversation, StaleWeightsError, UserError
from cool_rlhf.roles.group import Pending, WorkerGroup, add_up, create_workers, fetch, in_order, share_out
from cool_rlhf.roles.scorer import RemoteScorer, ScorerWorker
from cool_rlhf.roles.worker import ModelSpec, Worker

lengths_of = st.lists(st.integers(1, 60), max_size=30)


@given(lengths_of, st.integers(1, 5), st.integers(1, 100))
def test_results_come_back_in_order(lengths: list[int], ranks: int, budget: int) -> None:
    shares = share_out(lengths, ranks, budget)
    items = [f"item {index}" for index in range(len(lengths))]
    results = [[item.upper() for batch in share.pick(items) for item in batch] for share in shares]
    assert in_order(shares, results) == [item.upper() for item in items]


@given(lengths_of, st.integers(1, 5), st.integers(1, 100))
def test_ranks_run_equally_many_micro_batches_within_the_budget(lengths: list[int], ranks: int, budget: int) -> None:
    shares = share_out(lengths, ranks, budget)
    assert len(shares) == ranks
    assert len({len(share.groups) for share in shares}) == 1
    assert len(shares[0].groups) >= 1, "an update without data still takes part in the step"
    dealt = [index for share in shares for group in share.groups for index in group]
    assert sorted(dealt) == list(range(len(lengths)))
    for share in shares:
        for tokens in share.pick(lengths):
            assert sum(tokens) <= budget or len(tokens) == 1


def test_conversations_are_dealt_to_scorers_by_length_and_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = [900, 10, 20, 880, 30, 40]
    asked = [ScoredConversation([{"role": "assistant", "content": "x" * count}], None, True) for count in letters]
    parts: list[list[ScoredConversation]] = []

    class Ranks:
        def __len__(self) -> int:
            return 2

        def each(self, method: str, arguments: list[tuple[list[ScoredConversation]]]) -> list[list[int]]:
            parts.extend(part for (part,) in arguments)
            return [[len(item.messages[0]["content"]) for item in part] for part in parts]

    monkeypatch.setattr("cool_rlhf.roles.group.fetch", lambda references: references)
    scorer = RemoteScorer(Ranks())  # type: ignore[arg-type]
    assert scorer.score(asked).result() == letters
    assert [sum(len(item.messages[0]["content"]) for item in part) for part in parts] == [940, 940]
    parts.clear()
    assert scorer.score([]).result() == []


def test_a_scorer_packs_by_the_budget_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr("reward.RewardModel.from_pretrained", lambda path, **settings: given.update(settings))
    object.__new__(ScorerWorker).build(ModelSpec("there", "scalar", "float32", micro_batch_tokens=777), None)
    assert given["micro_batch_tokens"] == 777


def test_in_order_refuses_results_that_are_missing() -> None:
    shares = share_out([3, 4, 5], 2, 100)
    with pytest.raises(ValueError, match="zip"):
        in_order(shares, [["a"], ["b"]])


def test_shares_add_up() -> None:
    assert add_up([{"loss": 0.25, "norm": 1.0}, {"loss": 0.5, "norm": 1.0}]) == {"loss": 0.75, "norm": 2.0}


@pytest.fixture(scope="module")
def cluster(local_ray) -> Iterator[None]:
    with local_ray(4):
        yield


class Rank:
    def pid(self) -> int:
        return os.getpid()

    def answer(self, value: int, seconds: float = 0.0) -> int:
        time.sleep(seconds)
        return value

    def fail(self, kind: type[Exception]) -> None:
        raise kind("what went wrong")


def start(count: int) -> list:
    """Ranks that go on answering while some of their calls hang."""
    return [ray.remote(Rank).options(num_cpus=0, max_concurrency=9).remote() for _ in range(count)]


@pytest.fixture(scope="module")
def ranks(cluster: None) -> list:
    return start(2)


def test_a_group_calls_every_rank_and_keeps_their_order(ranks: list) -> None:
    group = WorkerGroup(ranks)
    assert len(group) == 2
    assert group.all("answer", 3) == [3, 3]
    assert Pending(group.each("answer", [(1, 0.3), (2, 0.0)]), list).result() == [1, 2]


class Surroundings(Worker):
    def variable(self, name: str) -> str | None:
        return os.environ.get(name)


def test_a_role_without_gpus_sees_none(cluster: None) -> None:
    group = WorkerGroup(create_workers(Surroundings, RoleConfig(ranks=1, cpus=0.1, gpus=0, threads=3)))
    assert group.all("variable", "CUDA_VISIBLE_DEVICES") == [""]
    assert group.all("variable", "OMP_NUM_THREADS") == ["3"]
    group.stop()


@pytest.mark.parametrize("failing", [0, 1])
def test_the_first_failure_is_raised_while_others_hang(ranks: list, failing: int) -> None:
    hanging = ranks[1 - failing].answer.remote(1, 600.0)
    references = [hanging, hanging]
    references[failing] = ranks[failing].fail.remote(ZeroDivisionError)
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="what went wrong") as caught:
        fetch(references)
    assert time.monotonic() - begun < 10
    assert "in fail" in str(caught.value), "the actor's own traceback"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_noticed_while_its_peer_waits(ranks: list, victim: int) -> None:
    killed = start(1)[0]
    pid = ray.get(killed.pid.remote())
    references = [ranks[0].answer.remote(1, 600.0)]
    references.insert(victim, killed.answer.remote(1, 600.0))
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(ray.exceptions.ActorDiedError):
        fetch(references)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("kind", [UserError, StaleWeightsError])
def test_what_callers_handle_comes_as_itself(ranks: list, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        fetch([ranks[0].fail.remote(kind)])
    assert type(caught.value) is kind
    assert str(caught.value) == "what went wrong"
