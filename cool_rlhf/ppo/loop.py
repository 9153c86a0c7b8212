"""Proximal policy optimisation as in section 4.2.3 of the report, over collaborators that are handed in.

Where they run is not known here: a role answers with a Future, and what can go on side by side is asked for first and
waited for afterwards. A step's responses are asked for as soon as the policy that draws them is there: the critic's
update, metrics, validation and saving go on beside them. What is finished of them goes on to the other models at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from cool_rlhf.config import PPOConfig
from cool_rlhf.data.streams import TextPosition, TextStream
from cool_rlhf.derived_settings import best_by
from cool_rlhf.ppo.collaborators import Data, Models, PendingRollouts, start_sampling
from cool_rlhf.ppo.experience import Judged, describe, make_experience
from cool_rlhf.ppo.judging import Keep, ask, gather
from cool_rlhf.ppo.observer import Observer, Stopwatch
from cool_rlhf.ppo.rewards import Reward, part_metrics
from cool_rlhf.ppo.state import (
    PPOState,
    entropy_coefficient,
    kl_coefficient,
    learning_rates,
    shaping,
    state_metrics,
    with_adapted_kl,
    with_scores,
)
from cool_rlhf.ppo.validation import ask_validation, gold_metrics, known_gold, validate
from cool_rlhf.protocols import Experience, Future, UserError
from cool_rlhf.schedule import derive_seed

T = TypeVar("T")


def train_ppo(
    models: Models, data: Data, settings: PPOConfig, *, seed: int, observer: Observer, start: PPOState | None = None
) -> PPOState:
    """Warm the critic up, then improve the policy for ``settings.iterations`` steps, or until score and gold part.

    Everything drawn depends on ``seed`` and the step alone, so a run that goes on from a saved state, with the
    models' own state of that step, goes on as if it had not stopped.

    Args:
        observer: is told of every step, and told when to save and which weights to keep.
        start: the state to go on from; None starts.

    Returns: the state after the last step.
    """
    state = start or PPOState()
    steps = settings.critic_warmup + settings.iterations
    version = models.policy.publish()

    def draw(step: int, position: int, version: int) -> PendingRollouts:
        prompts = data.prompts.take(position, settings.prompts_per_iteration)
        asked = [prompt for prompt in prompts for _ in range(settings.samples_per_prompt)]
        return start_sampling(models.sampler, asked, seed=derive_seed(seed, "rollouts", step), version=version)

    pending: PendingRollouts | None = None
    watch = Stopwatch(observer, steps)
    while state.step < steps and not state.ended:
        step, position = state.step + 1, state.prompts + settings.prompts_per_iteration
        trains_policy = step > settings.critic_warmup
        with watch.phase("generate", step):
            pending = pending or draw(step, state.prompts, version)
            keep = Keep(policy=settings.keep_passes and trains_policy, critic=settings.keep_passes)
            asked = [ask(models, portion, data.recipes, keep) for portion in pending.portions()]
            behind = version - pending.version
            pending = draw(step + 1, position, version) if may_go_ahead(step, settings) else None
        with watch.phase("score", step):
            judged, rewards = gather(asked)
            state = with_scores(state, [answer.score for answer in judged], settings)
            experiences = make_experience(judged, shaping(settings, state))
        with watch.phase("train", step):
            cut = minibatches(experiences, settings, seed=derive_seed(seed, "minibatches", step))
            losses, critic_steps, pretrain = learn(models, data.pretrain, cut, settings, state, trains_policy)
        with watch.phase("sync", step):
            version = models.policy.publish() if trains_policy else version
        due = validation_due(step, settings)  # asked for first: it would wait behind the next step's responses
        validation = ask_validation(models, data, settings, seed=seed, version=version) if due else None
        # Nothing below changes the policy; a round that may end here leaves no engine at work.
        if pending is None and step < steps and not may_end(step, settings):
            pending = draw(step + 1, position, version)
        with watch.phase("train", step):
            losses |= mean_metrics([future.result() for future in critic_steps])

        row = {**describe_step(judged, rewards, experiences, data), **losses, "updates_behind": behind}
        row |= state_metrics(state, settings) | ({} if trains_policy else {"warmup": True})
        state = replace(state, step=step, prompts=position, pretrain=pretrain)
        state = with_adapted_kl(state, row["kl"], len(judged), settings) if trains_policy else state
        if validation is not None:
            with watch.phase("validate", step):
                row |= validate(models, data, settings, observer, step, validation)
            state = keep_best(state, row, settings, observer)
        row |= watch.report(tokens=sum(len(experience.tokens) for experience in experiences))
        state = end_step(state, steps, row, settings, observer)
    return state


def end_step(state: PPOState, steps: int, row: dict[str, float], settings: PPOConfig, observer: Observer) -> PPOState:
    """Record the step, and keep the early policy and the state where that is due."""
    observer.record(state.step, steps, row)
    ended = settings.stop_when_parted and observer.has_parted()
    early = state.early or ended or state.step - settings.critic_warmup >= early_iteration(settings)
    if early and not state.early:
        observer.keep_early(state.step)
    state = replace(state, ended=ended, early=early)
    if state.step % settings.save_every == 0 or state.step == steps or state.ended:
        observer.save(state)
    return state


def describe_step(
    judged: Sequence[Judged],
    rewards: Sequence[Reward],
    experiences: Sequence[Experience],
    data: Data,
) -> dict[str, float]:
    """What the step's responses are like, what they were rewarded for, and their gold where it is known."""
    rollouts = [answer.rollout for answer in judged]
    return {
        **describe(judged, experiences),
        **part_metrics(rollouts, rewards, data.recipes, "reward"),
        **gold_metrics(rollouts, known_gold(data, rollouts, rewards), "gold"),
    }


def learn(
    models: Models,
    pretrain: TextStream,
    cut: Sequence[Sequence[Experience]],
    settings: PPOConfig,
    state: PPOState,
    trains_policy: bool,
) -> tuple[dict[str, float], list[Future[dict[str, float]]], TextPosition]:
    """Update the critic on every minibatch, and the policy too where ``trains_policy``, together with the loss on
    pretraining text; the policy's mean metrics over the minibatches, the critic's steps, which may still be under way,
    and where the text stands afterwards.

    With ``stop_kl``, the policy's first step that finds it further than that from where the iteration began is its last
    one; to know, each of its steps is waited for. The critic learns from the remaining minibatches too.
    """
    critic_rate, policy_rate = learning_rates(state.step, settings)
    in_loss = kl_coefficient(state, settings) if settings.kl_in == "loss" else 0.0
    entropy = entropy_coefficient(state.step, settings)
    position, tokens, taken, stopped = state.pretrain, 0, 0, False
    critic_steps, policy_steps = [], []
    for batch in cut:
        critic_steps.append(models.critic.update(batch, critic_rate))
        if not trains_policy or stopped:
            continue
        tokens += sum(len(experience.tokens) for experience in batch)
        # What rounding takes from one minibatch the next one gets, so that their number changes no volume.
        texts, position = pretrain.take(position, round(settings.pretrain_ratio * tokens) - taken)
        taken += sum(len(text) for text in texts)
        policy_steps.append(models.policy.update(batch, texts, policy_rate, in_loss, entropy))
        stopped = settings.stop_kl > 0 and policy_steps[-1].result()["policy/moved"] > settings.stop_kl
    metrics = {"critic/learning_rate": critic_rate}
    if trains_policy:
        metrics |= mean_metrics([future.result() for future in policy_steps])
        metrics["policy/learning_rate"] = policy_rate
        metrics["policy/steps"] = len(policy_steps)
        if settings.entropy_schedule != "constant":
            metrics["policy/entropy_coefficient"] = entropy
    return metrics, critic_steps, position


def keep_best(state: PPOState, row: dict[str, float], settings: PPOConfig, observer: Observer) -> PPOState:
    """Have the weights kept if the policy has been trained and is the best so far; a tie keeps the earlier. Those of a
    step with any number that is not finite have diverged, whatever their score."""
    metric, mode = best_by(settings)
    if metric not in row:  # a domain that no validation prompt has
        known = ", ".join(sorted(name for name in row if name.startswith("validation/")))
        raise UserError(f"ppo.best_metric is {metric!r}, which validation does not give; use one of {known}")
    value = row[metric]
    better = state.best is None or (value > state.best if mode == "max" else value < state.best)
    if state.step <= settings.critic_warmup or not better or not all(map(math.isfinite, row.values())):
        return state
    observer.keep_best(state.step, value)
    return replace(state, best=value)


def validation_due(step: int, settings: PPOConfig) -> bool:
    """At the end of the warm-up, where the policy is still what the round started from, then every so many iterations
    and at the end."""
    iteration = step - settings.critic_warmup
    return iteration == 0 or (iteration > 0 and (iteration % settings.validate_every == 0 or is_last(step, settings)))


def may_go_ahead(step: int, settings: PPOConfig) -> bool:
    """Whether the responses of the step after ``step`` are sampled while this one trains, with weights that are one
    update behind by then. Not across a saved step: a resumed run has only the weights that were saved."""
    ends = is_last(step, settings) or may_end(step, settings)
    return settings.generate_ahead and not ends and step % settings.save_every != 0


def may_end(step: int, settings: PPOConfig) -> bool:
    """Whether the round ends early after the step if its validation says that score and gold have parted."""
    return settings.stop_when_parted and validation_due(step, settings)


def is_last(step: int, settings: PPOConfig) -> bool:
    return step == settings.critic_warmup + settings.iterations


def early_iteration(settings: PPOConfig) -> int:
    """The iteration after which the early policy is kept, counted from 1 after the warm-up; a round that ends before
    keeps its last one."""
    return max(1, round(settings.early_snapshot * settings.iterations))


def minibatches(experiences: Sequence[T], settings: PPOConfig, *, seed: int) -> list[list[T]]:
    """Every optimiser step's part: for each epoch a seeded order of all, cut into equally many; none is empty."""
    generator = random.Random(seed)
    parts: list[list[T]] = []
    for _ in range(settings.epochs):
        order = list(experiences)
        generator.shuffle(order)
        count = min(settings.minibatches, len(order))
        parts += [order[len(order) * k // count : len(order) * (k + 1) // count] for k in range(count)]
    return parts


def mean_metrics(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
