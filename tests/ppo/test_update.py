from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cool_rlhf.ppo import update
from cool_rlhf.ppo.losses import Clip, policy_loss, value_loss
from cool_rlhf.protocols import Experience

RESPONSES = [(4, 6), (2, 9), (7, 1), (3, 3), (5, 12)]  # tokens of prompt and response


def experience(prompt: int, response: int, generator: torch.Generator) -> Experience:
    length = prompt + response
    mask = torch.arange(length) >= prompt

    def noise(scale: float) -> Tensor:
        return torch.where(mask, scale * torch.randn(length, generator=generator), 0.0)

    return Experience(
        tokens=torch.randint(0, 40, (length,), generator=generator),
        mask=mask,
        old_logprobs=torch.where(mask, noise(0.3) - 3.5, 0.0),
        reference_logprobs=torch.where(mask, noise(0.3) - 3.4, 0.0),
        values=noise(1.0),
        advantages=noise(1.0),
        returns=noise(1.0),
    )


@pytest.fixture
def batch() -> list[Experience]:
    generator = torch.Generator().manual_seed(3)
    return [experience(prompt, response, generator) for prompt, response in RESPONSES]


@pytest.fixture
def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(0, 40, (length,), generator=generator) for length in (9, 4, 15)]


CUTS = {
    "together": ([[0, 1, 2, 3, 4]], [[0, 1, 2]]),
    "one by one": ([[0], [1], [2], [3], [4]], [[2], [1], [0]]),
    "uneven, some empty": ([[3, 0], [], [1, 2, 4], []], [[], [1], [0, 2]]),
}


PLAIN = update.Objective(
    clip=Clip.symmetric(0.2),
    temperature=1.0,
    kl_coefficient=0.0,
    kl_kind="k1",
    kl_gradient="k2",
    entropy_coefficient=0.0,
    pretrain_coefficient=0.5,
)


def policy_step(engine, batch, texts, cut, objective=PLAIN):
    parts, text_parts = CUTS[cut]
    return update.policy_update(
        engine,
        [[batch[index] for index in part] for part in parts],
        [[texts[index] for index in part] for part in text_parts],
        objective,
        token_count=update.count_response_tokens(batch),
        pretrain_token_count=update.count_predictions(texts),
        learning_rate=0.0,
    )


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def plain_logprobs(model, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """(L,) by the model's own forward pass on one sequence, index 0 holding 0."""
    logprobs = (model(input_ids=tokens[None], use_cache=False).logits[0, :-1] / temperature).log_softmax(-1)
    return torch.cat([torch.zeros(1), logprobs.gather(1, tokens[1:, None])[:, 0]])


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_gradient_is_that_of_the_mean_loss_over_the_whole_batch(
    tiny_causal_lm, torch_engine, batch, texts, cut, temperature
):
    model = tiny_causal_lm(1)
    logprobs = torch.cat([plain_logprobs(model, e.tokens, temperature) for e in batch])
    old, advantages, mask = (
        torch.cat([getattr(e, name) for e in batch]) for name in ("old_logprobs", "advantages", "mask")
    )
    policy = policy_loss(logprobs, old, advantages, mask, 0.2)
    pretrain = -torch.cat([plain_logprobs(model, text)[1:] for text in texts]).mean()
    (policy + 0.5 * pretrain).backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()

    engine = torch_engine(model)
    shares = policy_step(engine, batch, texts, cut, replace(PLAIN, temperature=temperature))
    assert relative_error(engine.gradient, wanted) <= 1e-5
    assert shares["loss/policy"] == pytest.approx(policy.item(), rel=1e-5)
    assert shares["loss/pretrain"] == pytest.approx(pretrain.item(), rel=1e-5)
    assert shares["policy/gradient_norm"] == pytest.approx(wanted.norm().item(), rel=1e-5)
    assert 0 < shares["policy/entropy"] < torch.tensor(40.0).log()


def test_shares_of_two_ranks_add_up_to_the_whole(tiny_causal_lm, torch_engine, batch, texts):
    whole_engine = torch_engine(tiny_causal_lm(1))
    whole = policy_step(whole_engine, batch, texts, "together")
    counts = {
        "token_count": update.count_response_tokens(batch),
        "pretrain_token_count": update.count_predictions(texts),
    }
    gradient, shares = torch.zeros_like(whole_engine.gradient), []
    for ours, our_texts in (([batch[0], batch[3]], texts[:1]), (batch[1:3] + batch[4:], texts[1:])):
        engine = torch_engine(tiny_causal_lm(1))
        shares.append(update.policy_update(engine, [ours], [our_texts], PLAIN, **counts, learning_rate=0.0))
        gradient += engine.gradient
    assert relative_error(gradient, whole_engine.gradient) <= 1e-5
    for name in ("loss/policy", "loss/pretrain", "policy/clipped", "policy/entropy", "policy/moved"):
        assert shares[0][name] + shares[1][name] == pytest.approx(whole[name], rel=1e-5)


def test_without_pretraining_text_only_the_policy_learns(tiny_causal_lm, torch_engine, batch):
    engine = torch_engine(tiny_causal_lm(1))
    shares = update.policy_update(
        engine,
        [batch],
        [],
        PLAIN,
        token_count=update.count_response_tokens(batch),
        pretrain_token_count=0,
        learning_rate=0.0,
    )
    assert shares["loss/pretrain"] == 0
    assert engine.gradient.norm() > 0


@pytest.mark.parametrize("cut", CUTS)
def test_critic_gradient_is_that_of_values_read_one_token_before(
    tiny_scalar_model, torch_engine, batch, cut, monkeypatch
):
    def gradient_with(values_of) -> tuple[Tensor, float]:
        model = tiny_scalar_model(2)
        values = torch.cat([values_of(plain_head(model, e.tokens)) for e in batch])
        returns, mask = (torch.cat([getattr(e, name) for e in batch]) for name in ("returns", "mask"))
        loss = value_loss(values, returns, mask)
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), loss.item()

    wanted, loss = gradient_with(lambda head: torch.cat([torch.zeros(1), head[:-1]]))
    off_by_one, _ = gradient_with(lambda head: head)
    engine = torch_engine(tiny_scalar_model(2))
    parts = [[batch[index] for index in part] for part in CUTS[cut][0]]
    count = update.count_response_tokens(batch)
    shares = update.critic_update(engine, parts, token_count=count, learning_rate=0.0)
    assert relative_error(engine.gradient, wanted) <= 1e-5
    assert relative_error(engine.gradient, off_by_one) > 0.05
    assert shares["loss/value"] == pytest.approx(loss, rel=1e-5)

    monkeypatch.setattr(update, "preceding_values", lambda head, positions: head)
    update.critic_update(engine, parts, token_count=count, learning_rate=0.0)
    assert relative_error(engine.gradient, off_by_one) <= 1e-5


def plain_head(model, tokens: Tensor) -> Tensor:
    """(L,) the head at each token of one sequence, by the model's own parts."""
    return model.v_head(model.model(input_ids=tokens[None], use_cache=False).last_hidden_state[0])[:, 0]


def test_values_are_those_before_each_token(tiny_scalar_model, torch_engine):
    model = tiny_scalar_model(2)
    sequences = [torch.arange(5), torch.arange(9) + 3, torch.tensor([7])]
    values = update.sequence_values(torch_engine(model), [sequences])
    for tokens, value in zip(sequences, values, strict=True):
        assert value[0] == 0
        torch.testing.assert_close(value[1:], plain_head(model, tokens).detach()[:-1], atol=1e-5, rtol=1e-5)
    # The value before a token cannot depend on that token.
    changed = update.sequence_values(torch_engine(model), [[torch.tensor([0, 1, 2, 3, 30])]])[0]
    torch.testing.assert_close(changed, values[0])


@pytest.mark.parametrize("cut", [[[0, 1, 2]], [[0], [1], [2]], [[], [0], [], [1, 2]]])
def test_logprobs_do_not_depend_on_packing(tiny_causal_lm, torch_engine, texts, cut):
    model = tiny_causal_lm(1)
    parts = [[texts[index] for index in part] for part in cut]
    got = update.sequence_logprobs(torch_engine(model), parts, temperature=0.8)
    for text, logprobs in zip(texts, got, strict=True):
        torch.testing.assert_close(logprobs, plain_logprobs(model, text, 0.8).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [[[0, 1, 2]], [[], [0], [1, 2]]])
def test_logprobs_from_a_token_on_are_those_of_the_whole(tiny_causal_lm, torch_engine, texts, cut):
    engine = torch_engine(tiny_causal_lm(1))
    parts, begins = [[texts[index] for index in part] for part in cut], [1, 0, len(texts[2]) - 1]
    whole = update.sequence_logprobs(engine, parts, 0.8)
    got = update.sequence_logprobs(engine, parts, 0.8, [[begins[index] for index in part] for part in cut])
    for logprobs, every, begin in zip(got, whole, begins, strict=True):
        torch.testing.assert_close(logprobs[begin:], every[begin:])
        assert not logprobs[:begin].any()


def test_a_rank_without_sequences_keeps_step(tiny_causal_lm, tiny_scalar_model, torch_engine):
    assert update.sequence_logprobs(torch_engine(tiny_causal_lm(1)), [[], []], temperature=1.0) == []
    assert update.sequence_values(torch_engine(tiny_scalar_model(1)), [[], []]) == []


def test_a_policy_step_makes_better_responses_likelier(tiny_causal_lm, torch_engine, batch):
    model = tiny_causal_lm(1)
    old = update.sequence_logprobs(torch_engine(model), [[e.tokens for e in batch]], temperature=1.0)
    good, bad = ({**vars(batch[k]), "old_logprobs": old[k]} for k in (1, 4))
    pair = [Experience(**{**e, "advantages": sign * e["mask"].float()}) for e, sign in ((good, 1), (bad, -1))]
    for _ in range(3):
        update.policy_update(
            torch_engine(model),
            [pair],
            [],
            PLAIN,
            token_count=update.count_response_tokens(pair),
            pretrain_token_count=0,
            learning_rate=1e-3,
        )
    new = update.sequence_logprobs(torch_engine(model), [[e.tokens for e in pair]], temperature=1.0)
    change = [float((after - before.old_logprobs)[before.mask].sum()) for after, before in zip(new, pair, strict=True)]
    assert change[0] > 0 > change[1]


def test_a_rank_with_nothing_to_do_still_touches_every_parameter(tiny_causal_lm, tiny_scalar_model, torch_engine):
    engine = torch_engine(tiny_causal_lm(1))
    every_term = replace(PLAIN, kl_coefficient=0.3, kl_kind="k3", entropy_coefficient=0.1)
    counts = {"token_count": 7, "pretrain_token_count": 9}
    shares = update.policy_update(engine, [[], []], [[]], every_term, **counts, learning_rate=0.0)
    assert set(shares.values()) == {0.0}
    assert engine.gradient.count_nonzero() == 0
    engine = torch_engine(tiny_scalar_model(1))
    assert update.critic_update(engine, [[]], token_count=7, learning_rate=0.0)["loss/value"] == 0
    assert engine.gradient.count_nonzero() == 0


EVERY_TERM = update.Objective(
    clip=Clip(0.1, 0.3, 1.5),
    temperature=0.8,
    kl_coefficient=0.3,
    kl_kind="k3",
    kl_gradient="k3",
    entropy_coefficient=0.2,
    pretrain_coefficient=0.7,
)


def plain_terms(model, batch, texts) -> dict[str, Tensor]:
    """What EVERY_TERM is made of and what is told beside it, means over the whole batch: token by token, from the
    model's own logits of one sequence at a time."""
    told = dict.fromkeys(("loss/policy", "loss/kl", "policy/entropy", "policy/moved", "policy/clipped"), 0.0)
    tokens = sum(int(e.mask.sum()) for e in batch)
    for e in batch:
        logits = model(input_ids=e.tokens[None], use_cache=False).logits[0, :-1] / EVERY_TERM.temperature
        for t in range(1, len(e.tokens)):
            if not e.mask[t]:
                continue
            probabilities = logits[t - 1].softmax(-1)
            chosen, advantage = probabilities[e.tokens[t]], e.advantages[t]
            ratio = chosen / e.old_logprobs[t].exp()
            surrogate = min(ratio * advantage, ratio.clamp(0.9, 1.3) * advantage)
            bounded = max(surrogate, 1.5 * advantage) if advantage < 0 else surrogate
            told["loss/policy"] -= bounded / tokens
            told["loss/kl"] += kl(chosen / e.reference_logprobs[t].exp()) / tokens
            told["policy/entropy"] -= (probabilities * probabilities.log()).sum() / tokens
            told["policy/moved"] += kl(1 / ratio) / tokens
            told["policy/clipped"] += float(bounded != ratio * advantage) / tokens
    nll = -torch.cat([plain_logprobs(model, text)[1:] for text in texts]).mean()
    return {**told, "loss/pretrain": nll}


def kl(ratio: Tensor) -> Tensor:
    """k3 of a token that one model gives ``ratio`` times the other's probability."""
    return 1 / ratio - 1 + ratio.log()


def plain_objective(model, batch, texts) -> Tensor:
    told = plain_terms(model, batch, texts)
    return told["loss/policy"] + 0.3 * told["loss/kl"] - 0.2 * told["policy/entropy"] + 0.7 * told["loss/pretrain"]


def gradient_of(model, loss: Tensor) -> Tensor:
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return gradient


@pytest.mark.parametrize("cut", CUTS)
def test_the_gradient_of_every_term_however_the_batch_is_cut(tiny_causal_lm, torch_engine, batch, texts, cut):
    model = tiny_causal_lm(1)
    wanted = gradient_of(model, plain_objective(model, batch, texts))
    engine = torch_engine(model)
    shares = policy_step(engine, batch, texts, cut, EVERY_TERM)
    assert relative_error(engine.gradient, wanted) <= 1e-5
    with torch.no_grad():
        told = plain_terms(model, batch, texts)
    for name, value in told.items():
        assert 0 != shares[name] == pytest.approx(float(value), rel=1e-4), name
    for term in ("kl_coefficient", "entropy_coefficient", "pretrain_coefficient"):
        policy_step(engine, batch, texts, cut, replace(EVERY_TERM, **{term: 0.0}))
        assert relative_error(engine.gradient, wanted) > 1e-3, f"the comparison does not see {term}"


@pytest.mark.parametrize(
    "faulty",
    [lambda loss, last: 2 * loss, lambda loss, last: -loss, lambda loss, last: 0 * loss if last else loss],
    ids=["doubled", "negated", "last micro-batch lost"],
)
def test_the_comparison_of_gradients_sees_a_fault(tiny_causal_lm, torch_engine, batch, texts, faulty):
    model = tiny_causal_lm(1)
    wanted = gradient_of(model, plain_objective(model, batch, texts))
    engine = torch_engine(model)
    backward = engine.backward
    engine.backward = lambda loss, last: backward(faulty(loss, last), last)
    policy_step(engine, batch, texts, "one by one", EVERY_TERM)
    assert relative_error(engine.gradient, wanted) > 1e-2


@pytest.mark.parametrize("cut", CUTS)
def test_the_clipped_value_loss_however_the_batch_is_cut(tiny_scalar_model, torch_engine, batch, cut):
    model = tiny_scalar_model(2)
    loss = 0.0
    for e in batch:
        head = plain_head(model, e.tokens)
        for t in range(1, len(e.tokens)):
            if e.mask[t]:
                near = e.values[t] + (head[t - 1] - e.values[t]).clamp(-0.3, 0.3)
                loss = loss + max((head[t - 1] - e.returns[t]) ** 2, (near - e.returns[t]) ** 2) / 2
    count = update.count_response_tokens(batch)
    wanted = gradient_of(model, loss / count)
    engine = torch_engine(model)
    parts = [[batch[index] for index in part] for part in CUTS[cut][0]]
    update.critic_update(engine, parts, token_count=count, learning_rate=0.0, clip=0.3)
    assert relative_error(engine.gradient, wanted) <= 1e-5
    update.critic_update(engine, parts, token_count=count, learning_rate=0.0)
    assert relative_error(engine.gradient, wanted) > 1e-3


def test_pretraining_reads_padding_ids_as_text_and_no_padding(tiny_causal_lm, torch_engine):
    # Beside a long text the short ones would be padded; 2, the family's padding, is a token like any other in them.
    texts = [torch.tensor([1, 2, 2, 5, 2]), torch.arange(30) % 40, torch.tensor([7, 2])]
    model = tiny_causal_lm(1)
    model.config.pad_token_id = 2
    nll = torch.cat([plain_logprobs(model, text)[1:] for text in texts]).mean().neg()
    wanted = gradient_of(model, 0.5 * nll)
    for cut in ([texts], [[texts[0]], [texts[2], texts[1]]], [[text] for text in texts]):
        engine = torch_engine(model)
        counts = {"token_count": 1, "pretrain_token_count": 4 + 29 + 1}
        shares = update.policy_update(engine, [], cut, PLAIN, **counts, learning_rate=0.0)
        assert relative_error(engine.gradient, wanted) <= 1e-5
        assert shares["loss/pretrain"] == pytest.approx(nll.item(), rel=1e-5)
