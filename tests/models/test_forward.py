"""Log-probabilities, entropies and values of packed sequences against the plain forward pass of each alone."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from cool_rlhf.data.packing import pack
from cool_rlhf.models import forward
from cool_rlhf.models.forward import token_logprobs, token_values
from cool_rlhf.models.loading import load_scalar_model

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 200, (length,), generator=generator) for length in (12, 1, 40, 7)]


def expected_of(model, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = model(tokens[None], use_cache=False).logits[0, :-1].double() / temperature
    distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
    zero = torch.zeros(1, dtype=torch.float64)
    return torch.cat([zero, distribution.log_prob(tokens[1:])]), torch.cat([zero, distribution.entropy()])


@pytest.fixture(params=["internlm2", "llama", "qwen2", "gemma2"])
def model(request, policy):
    if request.param == "internlm2":
        return policy
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **SIZES))
    made.set_attn_implementation("eager" if request.param == "gemma2" else "packed")
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [2**25, 200 * 9], ids=["whole", "chunked"])
def test_logprobs_and_entropy_equal_the_plain_pass(model, temperature, chunk, monkeypatch) -> None:
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", chunk)
    packed = pack(sequences())
    logprobs, entropy = token_logprobs(model, packed, temperature)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert not entropy.requires_grad
    for tokens, mine, spread in zip(sequences(), packed.split(logprobs), packed.split(entropy), strict=True):
        expected, expected_entropy = expected_of(model, tokens, temperature)
        torch.testing.assert_close(mine.double(), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(spread.double(), expected_entropy, atol=1e-5, rtol=0)
    with torch.no_grad():
        again, _ = token_logprobs(model, packed, temperature)
    torch.testing.assert_close(again, logprobs.detach(), atol=1e-6, rtol=0)


def test_chunked_gradient_equals_whole(policy, monkeypatch) -> None:
    packed = pack(sequences())

    def gradients() -> list[Tensor]:
        policy.zero_grad()
        token_logprobs(policy, packed)[0].square().sum().backward()
        return [parameter.grad.clone() for parameter in policy.parameters()]

    whole = gradients()
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", 200 * 9)
    for mine, expected in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)


def test_where_computes_only_what_is_asked(policy, monkeypatch) -> None:
    packed = pack(sequences())
    every, _ = token_logprobs(policy, packed)
    asked = torch.arange(len(packed.tokens)) % 3 == 0
    rows = []
    policy.output.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    some, entropy = token_logprobs(policy, packed, where=asked)
    torch.testing.assert_close(some, torch.where(asked, every, 0), atol=1e-6, rtol=0)
    assert rows == [int((asked & (packed.positions > 0)).sum())]
    assert bool((entropy[~asked] == 0).all())


def test_values_are_the_heads_at_each_token(reward_folder) -> None:
    model = load_scalar_model(reward_folder, torch.float32, head="keep", seed=0)
    packed = pack(sequences())
    values = token_values(model, packed)
    assert values.dtype == torch.float32
    for tokens, mine in zip(sequences(), packed.split(values), strict=True):
        torch.testing.assert_close(mine, model(tokens[None]).token_scores[0], atol=1e-5, rtol=0)


def test_an_empty_pack_touches_every_parameter_with_zero(policy, reward_folder) -> None:
    scalar = load_scalar_model(reward_folder, torch.float32, head="keep", seed=0)
    for model, empty in (
        (policy, token_logprobs(policy, pack([]))[0]),
        (scalar, token_values(scalar, pack([]))),
    ):
        assert empty.shape == (0,)
        empty.sum().backward()
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
