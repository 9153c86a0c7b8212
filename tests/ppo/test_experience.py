from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, pvariance

import pytest
import torch

from cool_rlhf.ppo.experience import (
    Judged,
    Shaping,
    by_domain,
    describe,
    make_experience,
    shaped_score,
    to_score,
    token_rewards,
)
from cool_rlhf.ppo.moments import Moments
from cool_rlhf.protocols import Prompt, Rollout

NAN = float("nan")


def rollout(prompt: int, logprobs: list[float], finished: bool = True, domain: str = "maths") -> Rollout:
    return Rollout(
        prompt=Prompt("p", [{"role": "user", "content": "1 + 1?"}], domain, "2"),
        prompt_tokens=torch.arange(prompt),
        response_tokens=torch.arange(len(logprobs)) + 100,
        logprobs=torch.tensor(logprobs),
        finished=finished,
        policy_version=1,
        response="2",
    )


def judged(score: float, finished: bool = True, domain: str = "maths") -> Judged:
    """Two prompt tokens, three response tokens; what stands on the prompt must not matter."""
    return Judged(
        rollout=rollout(2, [-1.0, -2.0, -0.5], finished, domain),
        score=score,
        logprobs=torch.tensor([0.0, NAN, -1.1, -2.0, -0.4]),
        reference_logprobs=torch.tensor([0.0, NAN, -1.6, -1.0, -0.9]),
        values=torch.tensor([0.0, NAN, 0.2, 0.4, 0.1]),
    )


SHAPING = Shaping(
    kl_coefficient=0.1,
    kl_kind="k1",
    score_moments=None,
    score_clip=0.0,
    unfinished_penalty=0.5,
    discount=1.0,
    trace_decay=0.5,
    critic_trace_decay=0.5,
    whiten_advantages=False,
    old_logprobs="trainer",
    correction_cap=0.0,
)


def test_rewards_worked_by_hand():
    # log-ratios 0.5, −1, 0.5; times −0.1, and the score 2 on the last response token
    assert token_rewards(judged(2.0), SHAPING).tolist() == pytest.approx([-0.05, 0.1, 1.95])


def test_an_unfinished_response_pays_its_penalty_on_its_last_token():
    assert token_rewards(judged(2.0, finished=False), SHAPING).tolist() == pytest.approx([-0.05, 0.1, 1.45])


def test_experience_worked_by_hand():
    # γ 1, λ 0.5, rewards −0.05, 0.1, 1.95, values 0.2, 0.4, 0.1
    # δ = 1.95 − 0.1 = 1.85            A = 1.85                     R = 1.95
    # δ = 0.1 + 0.1 − 0.4 = −0.2       A = −0.2 + 0.925 = 0.725     R = 1.125
    # δ = −0.05 + 0.4 − 0.2 = 0.15     A = 0.15 + 0.3625 = 0.5125   R = 0.7125
    (experience,) = make_experience([judged(2.0)], SHAPING)
    assert experience.advantages.tolist() == pytest.approx([0, 0, 0.5125, 0.725, 1.85])
    assert experience.returns.tolist() == pytest.approx([0, 0, 0.7125, 1.125, 1.95])
    assert experience.old_logprobs.tolist() == pytest.approx([0, 0, -1.1, -2.0, -0.4])
    assert experience.values.tolist() == pytest.approx([0, 0, 0.2, 0.4, 0.1])
    assert experience.tokens.tolist() == [0, 1, 100, 101, 102]
    assert experience.mask.tolist() == [False, False, True, True, True]


def test_a_rollout_teaches_the_same_beside_others():
    longer = Judged(rollout(1, [-1.0] * 7), 0.3, torch.randn(8), torch.randn(8), torch.randn(8))
    alone = make_experience([judged(2.0)], SHAPING)[0]
    beside = make_experience([longer, judged(2.0)], SHAPING)[1]
    for name, value in vars(alone).items():
        assert torch.equal(getattr(beside, name), value), name


def test_the_correction_weighs_advantages_by_the_capped_ratio_and_leaves_returns():
    # Trainer less engine: −0.1, 0, 0.1; the last is cut at 1.05.
    plain = make_experience([judged(2.0)], SHAPING)[0]
    corrected = make_experience([judged(2.0)], replace(SHAPING, correction_cap=1.05))[0]
    weights = torch.tensor([0.0, 0.0, math.exp(-0.1), 1.0, 1.05])
    torch.testing.assert_close(corrected.advantages, plain.advantages * weights)
    assert torch.equal(corrected.returns, plain.returns)


def test_metrics_worked_by_hand():
    batch = [judged(2.0), judged(-1.0, finished=False, domain="code")]
    metrics = describe(batch, make_experience(batch, SHAPING))
    assert metrics["reward/score"] == pytest.approx(0.5)
    assert metrics["reward/score/maths"] == 2.0
    assert metrics["reward/score/code"] == -1.0
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)  # 0.5 − 1 + 0.5 in each response
    assert metrics["response_length"] == 3
    assert (metrics["finished"], metrics["unfinished"]) == (0.5, 0.5)
    assert metrics["surprisal"] == pytest.approx((1.1 + 2.0 + 0.4) / 3)
    assert metrics["value/mean"] == pytest.approx((0.2 + 0.4 + 0.1) / 3)
    assert metrics["engine_gap/mean"] == pytest.approx(0.2 / 3, abs=1e-6)
    assert metrics["engine_gap/max"] == pytest.approx(0.1, abs=1e-6)
    assert metrics["engine_gap/ratio"] == pytest.approx((math.exp(-0.1) + 1 + math.exp(0.1)) / 3)
    assert all(math.isfinite(number) for number in metrics.values())


@pytest.mark.parametrize(
    "changed", [{}, {"critic_trace_decay": 1.0}, {"correction_cap": 1.05}, {"whiten_advantages": True}]
)
def test_the_advantages_that_are_shown_are_those_that_are_learnt_from(changed):
    batch = [judged(2.0), judged(-1.0, finished=False)]
    experiences = make_experience(batch, replace(SHAPING, **changed))
    learnt = torch.cat([experience.advantages[2:] for experience in experiences])
    metrics = describe(batch, experiences)
    assert metrics["advantage/mean"] == pytest.approx(float(learnt.mean()), abs=1e-6)
    assert metrics["advantage/deviation"] == pytest.approx(float(learnt.std(correction=0)))


def test_explained_variance_is_of_all_tokens_returns():
    """Of two responses, so that the mean of each does not stand for the spread of all."""
    batch = [judged(2.0), judged(-1.0)]
    experiences = make_experience(batch, SHAPING)
    returns = [number for experience in experiences for number in experience.returns[2:].tolist()]
    left = [number - value for number, value in zip(returns, [0.2, 0.4, 0.1] * 2, strict=True)]
    metrics = describe(batch, experiences)
    assert metrics["return/mean"] == pytest.approx(fmean(returns))
    assert metrics["value/explained"] == pytest.approx(1 - pvariance(left) / pvariance(returns), abs=1e-6)
    same = replace(judged(2.0), values=torch.zeros(5))
    flat = make_experience([same], replace(SHAPING, kl_coefficient=0.0, trace_decay=1.0, critic_trace_decay=1.0))
    assert describe([same], flat)["value/explained"] == 0.0, "equal returns have nothing to explain"


def test_kl_counts_whole_responses_and_single_tokens():
    far = Judged(
        rollout(1, [-1.0, -1.0]), 0.0, torch.tensor([0.0, -1, -1]), torch.tensor([0.0, -2, -3]), torch.zeros(3)
    )
    metrics = describe([far], make_experience([far], SHAPING))
    assert metrics["kl"] == 3.0
    assert metrics["kl_per_token"] == 1.5


def test_domains_without_a_score_have_no_mean():
    rollouts = [rollout(1, [-1.0], domain=domain) for domain in ("b", "a", "b", "c")]
    assert by_domain(rollouts, [1.0, 3.0, 0.0, None], "gold") == {"gold/a": 3.0, "gold/b": 0.5}


def test_the_scorer_sees_the_answer_its_domain_and_whether_it_ended():
    asked = to_score(rollout(1, [-1.0], finished=False, domain="maths"))
    assert asked.messages == [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    assert (asked.condition, asked.finished) == ("maths", False)


def test_scores_are_standardised_then_cut_and_the_penalty_comes_after():
    # Mean 1, deviation 0.5: scores 2 and −1 become 2 and −4, cut at 1.5; unfinished ones lose 0.5 of that scale.
    shaping = replace(SHAPING, kl_coefficient=0.0, score_moments=Moments(2, 1.0, 0.5), score_clip=1.5)
    assert token_rewards(judged(1.25), shaping).tolist() == pytest.approx([0, 0, 0.5])
    assert token_rewards(judged(2.0), shaping).tolist() == pytest.approx([0, 0, 1.5])
    assert token_rewards(judged(-1.0, finished=False), shaping).tolist() == pytest.approx([0, 0, -2.0])
    only_cut = replace(shaping, score_moments=None)
    assert [shaped_score(score, only_cut) for score in (-9.0, 1.25, 9.0)] == [-1.5, 1.25, 1.5]


@pytest.mark.parametrize(("kind", "kl"), [("k2", [0.125, 0.5, 0.125]), ("k3", [0.106531, 0.718282, 0.106531])])
def test_other_estimates_in_the_reward(kind, kl):
    rewards = token_rewards(judged(0.0), replace(SHAPING, kl_kind=kind))
    assert rewards.tolist() == pytest.approx([-0.1 * estimate for estimate in kl], abs=1e-6)


def test_the_critic_may_have_a_trace_decay_of_its_own():
    # As above, λ 0.5 for the advantages; with λ 1 a return is the reward still to come.
    (experience,) = make_experience([judged(2.0)], replace(SHAPING, critic_trace_decay=1.0))
    assert experience.advantages.tolist() == pytest.approx([0, 0, 0.5125, 0.725, 1.85])
    assert experience.returns.tolist() == pytest.approx([0, 0, 2.0, 2.05, 1.95])


def test_normalised_advantages_are_so_over_the_batch_and_leave_returns():
    batch = [judged(2.0), judged(-1.0, finished=False)]
    plain = make_experience(batch, SHAPING)
    white = make_experience(batch, replace(SHAPING, whiten_advantages=True))
    raw = torch.cat([e.advantages[e.mask] for e in plain])
    expected = (raw - raw.mean()) / raw.std(correction=0)
    torch.testing.assert_close(torch.cat([e.advantages[e.mask] for e in white]), expected)
    for before, after in zip(plain, white, strict=True):
        assert torch.equal(before.returns, after.returns)
        assert not after.advantages[~after.mask].any()


def test_old_logprobs_may_be_the_engines():
    (experience,) = make_experience([judged(2.0)], replace(SHAPING, old_logprobs="engine"))
    assert experience.old_logprobs.tolist() == pytest.approx([0, 0, -1.0, -2.0, -0.5])
    assert experience.reference_logprobs.tolist() == pytest.approx([0, 0, -1.6, -1.0, -0.9])
    (trainers,) = make_experience([judged(2.0)], SHAPING)
    assert torch.equal(experience.advantages, trainers.advantages), "the divergence is the trainer's all the same"
