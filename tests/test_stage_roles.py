from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cool_rlhf import stage_roles
from cool_rlhf.compose import compose
from cool_rlhf.stage_roles import StageRoles


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stage does, in order; without processes."""
    order: list[str] = []

    class Engines:
        engines = ()
        sampler = None

        def __init__(self, *_: Any, **__: Any) -> None:
            order.append("the engine is told to start")

        def wait(self) -> None:
            order.append("the engine is up")

    def build(groups: Sequence[Any]) -> Sequence[Any]:
        order.append("the others load")
        return groups

    monkeypatch.setattr(stage_roles, "RolloutGroup", Engines)
    monkeypatch.setattr(stage_roles, "build_all", build)
    monkeypatch.setattr(stage_roles, "start_group", lambda actors, model, train: model)
    return order


def start(cluster: str) -> None:
    roles = StageRoles(compose(["+experiment=demo", f"cluster={cluster}", "sft.path=x", "reward.path=y"]))
    roles.standby.take = lambda worker: []  # type: ignore[method-assign]
    roles.ppo(0)


@pytest.mark.parametrize("cluster", ["cpu", "gpu_4"])
def test_roles_load_side_by_side(cluster: str, happened: list[str]) -> None:
    start(cluster)
    assert happened == ["the engine is told to start", "the others load", "the engine is up"]


def test_an_engine_that_shares_its_gpu_is_up_before_others_load(happened: list[str]) -> None:
    start("gpu_1")
    assert happened[:3] == ["the engine is told to start", "the engine is up", "the others load"]
