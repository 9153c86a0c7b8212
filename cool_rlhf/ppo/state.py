"""Where the loop stands, what moves by itself from step to step, and the settings of a step that follow from both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cool_rlhf.config import PPOConfig
from cool_rlhf.data.streams import TextPosition
from cool_rlhf.ppo.experience import Shaping
from cool_rlhf.ppo.kl import adapted_coefficient
from cool_rlhf.ppo.moments import Moments
from cool_rlhf.schedule import scheduled


@dataclass(frozen=True)
class PPOState:
    """Where the loop stands, beside the models' own weights and optimisers. ``step`` counts finished steps, those of
    the critic's warm-up included; ``best`` is the best value of ``ppo.best_metric`` so far; ``early``: the early
    policy has been kept; ``ended``: before its last step, for score and gold have parted."""

    step: int = 0
    prompts: int = 0
    pretrain: TextPosition = field(default_factory=TextPosition)
    best: float | None = None
    early: bool = False
    ended: bool = False
    kl_coefficient: float | None = None  # where it follows a target; None before the first iteration
    scores: Moments = field(default_factory=Moments)  # of all scores so far, where they are normalised


def ppo_state(position: Mapping[str, Any]) -> PPOState:
    """The state as a snapshot holds it: the tree of its fields."""
    pretrain, scores = TextPosition(**position["pretrain"]), Moments(**position["scores"])
    return PPOState(**{**position, "pretrain": pretrain, "scores": scores})


def learning_rates(done: int, settings: PPOConfig) -> tuple[float, float]:
    """(critic's, policy's) after ``done`` steps. The critic's schedule runs over all steps, the policy's over those
    after the warm-up."""

    def rate(peak: float, step: int, steps: int) -> float:
        final = settings.final_learning_rate * peak
        return scheduled(settings.learning_rate_schedule, step, steps, peak, final, settings.learning_rate_warmup)

    iteration = max(0, done - settings.critic_warmup)
    return (
        rate(settings.critic_learning_rate, done, settings.critic_warmup + settings.iterations),
        rate(settings.policy_learning_rate, iteration, settings.iterations),
    )


def entropy_coefficient(done: int, settings: PPOConfig) -> float:
    """Of the iteration that follows ``done`` steps; its schedule begins after the critic's warm-up."""
    iteration = max(0, done - settings.critic_warmup)
    return scheduled(settings.entropy_schedule, iteration, settings.iterations, settings.entropy_coefficient, 0.0)


def kl_coefficient(state: PPOState, settings: PPOConfig) -> float:
    return settings.kl_coefficient if state.kl_coefficient is None else state.kl_coefficient


def with_adapted_kl(state: PPOState, kl: float, responses: int, settings: PPOConfig) -> PPOState:
    """After an iteration whose responses diverged by ``kl``; not in the warm-up, in which the policy is frozen."""
    if settings.kl_target == 0:
        return state
    share = responses / settings.kl_horizon
    return replace(
        state,
        kl_coefficient=adapted_coefficient(kl_coefficient(state, settings), kl, settings.kl_target, share),
    )


def with_scores(state: PPOState, scores: Sequence[float], settings: PPOConfig) -> PPOState:
    return replace(state, scores=state.scores.including(scores)) if settings.normalise_rewards else state


def state_metrics(state: PPOState, settings: PPOConfig) -> dict[str, float]:
    """What moved by itself in this iteration."""
    row = {"kl_coefficient": kl_coefficient(state, settings)} if settings.kl_target > 0 else {}
    if settings.normalise_rewards:
        row |= {"reward/running_mean": state.scores.mean, "reward/running_deviation": state.scores.deviation}
    return row


def shaping(settings: PPOConfig, state: PPOState) -> Shaping:
    own = settings.critic_trace_decay
    return Shaping(
        kl_coefficient=kl_coefficient(state, settings) if settings.kl_in == "reward" else 0.0,
        kl_kind=settings.kl_estimator,
        score_moments=state.scores if settings.normalise_rewards else None,
        score_clip=settings.reward_clip,
        unfinished_penalty=settings.unfinished_penalty,
        discount=settings.discount,
        trace_decay=settings.trace_decay,
        critic_trace_decay=settings.trace_decay if own is None else own,
        whiten_advantages=settings.normalise_advantages,
        old_logprobs="engine" if settings.old_logprobs == "engine" else "trainer",
        correction_cap=settings.engine_correction,
    )
