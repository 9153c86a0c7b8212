"""What a step goes by: settings and what has moved by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cool_rlhf.config import PPOConfig
from cool_rlhf.ppo.experience import Shaping
from cool_rlhf.ppo.moments import Moments
from cool_rlhf.ppo.state import PPOState, shaping, state_metrics

SETTINGS = PPOConfig(
    kl_coefficient=0.03,
    kl_estimator="k3",
    reward_clip=4.0,
    unfinished_penalty=0.7,
    discount=0.98,
    trace_decay=0.9,
    critic_trace_decay=0.95,
    normalise_advantages=True,
    normalise_rewards=True,
    old_logprobs="engine",
    engine_correction=2.0,
)
SCORES = Moments().including([1.0, 3.0])


def test_every_setting_of_shaping_has_its_place() -> None:
    assert shaping(SETTINGS, PPOState(scores=SCORES)) == Shaping(
        kl_coefficient=0.03,
        kl_kind="k3",
        score_moments=SCORES,
        score_clip=4.0,
        unfinished_penalty=0.7,
        discount=0.98,
        trace_decay=0.9,
        critic_trace_decay=0.95,
        whiten_advantages=True,
        old_logprobs="engine",
        correction_cap=2.0,
    )


def test_what_is_off_is_off() -> None:
    plain = shaping(PPOConfig(trace_decay=0.9), PPOState(scores=SCORES))
    assert plain.old_logprobs == "trainer"
    assert (plain.score_moments, plain.score_clip, plain.correction_cap) == (None, 0.0, 0.0)
    assert (plain.trace_decay, plain.critic_trace_decay) == (0.9, 0.9), "one decay for both, unless two are asked for"
    assert not plain.whiten_advantages


def test_only_what_moves_by_itself_is_told() -> None:
    assert state_metrics(PPOState(scores=SCORES), replace(SETTINGS, normalise_rewards=False)) == {}
    moved = state_metrics(PPOState(scores=SCORES, kl_coefficient=0.04), replace(SETTINGS, kl_target=6.0))
    assert moved == {
        "kl_coefficient": 0.04,
        "reward/running_mean": pytest.approx(2.0),
        "reward/running_deviation": pytest.approx(1.0),
    }
