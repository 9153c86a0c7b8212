"""When an engine's weights count as new."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (extras cpu or gpu)")


@pytest.mark.parametrize("dropped", [True, False])
def test_weights_are_new_only_once_what_was_cached_of_older_ones_is_dropped(dropped: bool) -> None:
    from rollout.engine import RolloutEngine

    engine = object.__new__(RolloutEngine)
    engine._llm = SimpleNamespace(collective_rpc=lambda name: None, reset_prefix_cache=lambda: dropped)
    engine.begin_weights()
    if dropped:
        engine.finish_weights(3)
    else:
        with pytest.raises(RuntimeError, match="cached of earlier prompts"):
            engine.finish_weights(3)
    assert engine.version == (3 if dropped else None)
