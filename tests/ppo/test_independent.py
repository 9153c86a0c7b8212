"""A thousand random ragged cases, with gaps inside, against an implementation of its own: plain Python, token by token.

It shares nothing with the one under test: masks are lists of positions, sums are loops, nothing is padded.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cool_rlhf.ppo.advantages import gae, whiten
from cool_rlhf.ppo.experience import Judged, Shaping, make_experience
from cool_rlhf.ppo.kl import kl_estimate
from cool_rlhf.ppo.losses import (
    Clip,
    clipped_value_loss_per_token,
    policy_loss,
    policy_loss_per_token,
    value_loss,
)
from cool_rlhf.ppo.moments import Moments
from cool_rlhf.protocols import Prompt, Rollout

CASES = 1000
CLOSE = {"atol": 1e-6, "rtol": 0.0}


@dataclass
class Case:
    """Lists of one length; ``mine`` are the positions of response tokens, in order, with gaps between them."""

    mine: list[int]
    rewards: list[float]
    values: list[float]
    returns: list[float]
    logprobs: list[float]
    old: list[float]
    advantages: list[float]


def make_case(rng: random.Random) -> Case:
    length = rng.randint(1, 14)
    mine = [t for t in range(length) if rng.random() < 0.6]

    def numbers(low: float, high: float) -> list[float]:
        return [rng.uniform(low, high) for _ in range(length)]

    logprobs = numbers(-6, 0)
    old = [value + rng.gauss(0, 0.4) for value in logprobs]
    return Case(mine, numbers(-2, 2), numbers(-3, 3), numbers(-3, 3), logprobs, old, numbers(-2, 2))


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    rng = random.Random(20)
    made = [make_case(rng) for _ in range(CASES)]
    gapped = sum(any(b - a > 1 for a, b in zip(case.mine, case.mine[1:], strict=False)) for case in made)
    assert gapped > 500
    assert any(not case.mine for case in made)
    return made


def padded(cases: list[Case], name: str) -> Tensor:
    """(B, T) float64; what is padded, and what stands outside the masks, is garbage."""
    width = max(len(case.rewards) for case in cases)
    table = torch.full((len(cases), width), math.nan, dtype=torch.float64)
    for row, case in enumerate(cases):
        for t in case.mine:
            table[row, t] = getattr(case, name)[t]
    return table


def mask_of(cases: list[Case]) -> Tensor:
    mask = torch.zeros(len(cases), max(len(case.rewards) for case in cases), dtype=torch.bool)
    for row, case in enumerate(cases):
        mask[row, case.mine] = True
    return mask


def table(rows: list[dict[int, float]], like: Tensor) -> Tensor:
    expected = torch.zeros_like(like)
    for row, numbers in enumerate(rows):
        for t, number in numbers.items():
            expected[row, t] = number
    return expected


def plain_gae(case: Case, discount: float, decay: float) -> tuple[dict[int, float], dict[int, float]]:
    """Σ over later tokens of (γλ)^distance · δ, each written out."""
    advantages, returns = {}, {}
    for n, t in enumerate(case.mine):
        total = 0.0
        for distance, s in enumerate(case.mine[n:]):
            later = case.mine[n + distance + 1 :]
            delta = case.rewards[s] + (discount * case.values[later[0]] if later else 0.0) - case.values[s]
            total += (discount * decay) ** distance * delta
        advantages[t] = total
        returns[t] = total + case.values[t]
    return advantages, returns


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.99), (0.97, 0.9), (1.0, 1.0), (0.9, 0.0)])
def test_advantages_and_returns(cases, discount, decay):
    advantages, returns = gae(padded(cases, "rewards"), padded(cases, "values"), mask_of(cases), discount, decay)
    expected = [plain_gae(case, discount, decay) for case in cases]
    torch.testing.assert_close(advantages, table([a for a, _ in expected], advantages), **CLOSE)
    torch.testing.assert_close(returns, table([r for _, r in expected], returns), **CLOSE)


def test_whitening(cases):
    everything = [case.advantages[t] for case in cases for t in case.mine]
    mean = math.fsum(everything) / len(everything)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in everything) / len(everything))
    white = whiten(padded(cases, "advantages"), mask_of(cases))
    expected = [{t: (case.advantages[t] - mean) / deviation for t in case.mine} for case in cases]
    torch.testing.assert_close(white, table(expected, white), **CLOSE)
    for row, case in enumerate(cases[:200]):
        one = [case.advantages[t] for t in case.mine]
        if len(one) > 1:
            mean = sum(one) / len(one)
            deviation = math.sqrt(sum((value - mean) ** 2 for value in one) / len(one))
            alone = whiten(padded([case], "advantages"), mask_of([case]))
            assert alone[0, case.mine[0]].item() == pytest.approx((one[0] - mean) / deviation, abs=1e-6), row


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl(cases, kind):
    def plain(ours: float, theirs: float) -> float:
        if kind == "k1":
            return ours - theirs
        return (ours - theirs) ** 2 / 2 if kind == "k2" else math.exp(theirs) / math.exp(ours) - 1 + ours - theirs

    mask = mask_of(cases)
    got = torch.where(mask, kl_estimate(padded(cases, "logprobs"), padded(cases, "old"), kind), 0.0)
    expected = [{t: plain(case.logprobs[t], case.old[t]) for t in case.mine} for case in cases]
    torch.testing.assert_close(got, table(expected, got), **CLOSE)


def plain_policy(case: Case, t: int, low: float, high: float, dual: float) -> float:
    ratio, advantage = math.exp(case.logprobs[t]) / math.exp(case.old[t]), case.advantages[t]
    if advantage >= 0:
        return -min(ratio, 1 + high) * advantage
    loss = max(ratio, 1 - low) * -advantage
    return min(loss, dual * -advantage) if dual else loss


@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.2, 0.0), (0.2, 0.3, 0.0), (0.2, 0.2, 1.5)])
def test_policy_losses(cases, low, high, dual):
    inputs = [padded(cases, name) for name in ("logprobs", "old", "advantages")]
    mask = mask_of(cases)
    got = policy_loss_per_token(*inputs, mask, Clip(low, high, dual))
    expected = [{t: plain_policy(case, t, low, high, dual) for t in case.mine} for case in cases]
    torch.testing.assert_close(got, table(expected, got), **CLOSE)
    if low == high and not dual:
        everything = [loss for row in expected for loss in row.values()]
        assert policy_loss(*inputs, mask, low).item() == pytest.approx(sum(everything) / len(everything), abs=1e-6)


def test_value_losses(cases):
    values, returns, old = (padded(cases, name) for name in ("values", "returns", "rewards"))
    mask = mask_of(cases)
    plain = [(case.values[t] - case.returns[t]) ** 2 / 2 for case in cases for t in case.mine]
    assert value_loss(values, returns, mask).item() == pytest.approx(sum(plain) / len(plain), abs=1e-6)

    def clipped(case: Case, t: int) -> float:
        near = min(max(case.values[t], case.rewards[t] - 0.4), case.rewards[t] + 0.4)
        return max((case.values[t] - case.returns[t]) ** 2, (near - case.returns[t]) ** 2) / 2

    got = clipped_value_loss_per_token(values, old, returns, mask, 0.4)
    torch.testing.assert_close(got, table([{t: clipped(case, t) for t in case.mine} for case in cases], got), **CLOSE)


@dataclass
class Answer:
    prompt: int
    logprobs: list[float]  # of prompt and response
    reference: list[float]
    engine: list[float]  # of the response
    values: list[float]
    score: float
    finished: bool


def make_answer(rng: random.Random) -> Answer:
    prompt, response = rng.randint(1, 5), rng.randint(1, 9)

    def numbers(count: int, low: float, high: float) -> list[float]:
        return [rng.uniform(low, high) for _ in range(count)]

    logprobs = numbers(prompt + response, -4, 0)
    reference = [value + rng.gauss(0, 0.3) for value in logprobs]
    engine = [value + rng.gauss(0, 0.1) for value in logprobs[prompt:]]
    values = numbers(prompt + response, -2, 2)
    return Answer(prompt, logprobs, reference, engine, values, rng.uniform(-5, 5), rng.random() < 0.8)


def as_judged(answer: Answer) -> Judged:
    double = torch.float64
    rollout = Rollout(
        prompt=Prompt("p", [], "default", None),
        prompt_tokens=torch.zeros(answer.prompt, dtype=torch.int64),
        response_tokens=torch.zeros(len(answer.engine), dtype=torch.int64),
        logprobs=torch.tensor(answer.engine, dtype=double),
        finished=answer.finished,
        policy_version=1,
        response="",
    )
    numbers = (torch.tensor(each, dtype=double) for each in (answer.logprobs, answer.reference, answer.values))
    return Judged(rollout, answer.score, *numbers)


def plain_experience(answer: Answer, moments: tuple[float, float]) -> list[tuple[float, float]]:
    """(advantage, return) of each response token: k2 at 0.1 in the reward, scores standardised and cut at 1.2, less 0.7
    if unfinished; γ 0.95, λ 0.9 for the advantage and 1 for the return."""
    rewards = []
    for t in range(answer.prompt, len(answer.logprobs)):
        rewards.append(-0.1 * (answer.logprobs[t] - answer.reference[t]) ** 2 / 2)
    score = (answer.score - moments[0]) / moments[1]
    score = 1.2 if score > 1.2 else -1.2 if score < -1.2 else score
    rewards[-1] += score - (0.0 if answer.finished else 0.7)
    values = answer.values[answer.prompt :]
    case = Case(list(range(len(values))), rewards, values, [], [], [], [])
    advantages, _ = plain_gae(case, 0.95, 0.9)
    _, returns = plain_gae(case, 0.95, 1.0)
    return [(advantages[t], returns[t]) for t in range(len(values))]


def test_shaped_rewards_and_experience():
    rng = random.Random(21)
    answers = [make_answer(rng) for _ in range(CASES)]
    scores = [answer.score for answer in answers]
    mean = math.fsum(scores) / CASES
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / CASES)
    shaping = Shaping(
        kl_coefficient=0.1,
        kl_kind="k2",
        score_moments=Moments().including(scores[:300]).including(scores[300:]),
        score_clip=1.2,
        unfinished_penalty=0.7,
        discount=0.95,
        trace_decay=0.9,
        critic_trace_decay=1.0,
        whiten_advantages=True,
        old_logprobs="engine",
        correction_cap=0.0,
    )
    plain = [plain_experience(answer, (mean, deviation)) for answer in answers]
    raw = [advantage for row in plain for advantage, _ in row]
    centre = math.fsum(raw) / len(raw)
    spread = math.sqrt(math.fsum((value - centre) ** 2 for value in raw) / len(raw))
    for answer, row, made in zip(
        answers, plain, make_experience([as_judged(a) for a in answers], shaping), strict=True
    ):
        nothing = [0.0] * answer.prompt
        for name, expected in (
            ("advantages", [(advantage - centre) / spread for advantage, _ in row]),
            ("returns", [return_ for _, return_ in row]),
            ("old_logprobs", answer.engine),
            ("values", answer.values[answer.prompt :]),
            ("reference_logprobs", answer.reference[answer.prompt :]),
        ):
            got = getattr(made, name).tolist()
            assert len(got) == len(nothing) + len(expected)
            assert all(abs(a - b) <= 1e-6 for a, b in zip(got, nothing + expected, strict=True)), name
