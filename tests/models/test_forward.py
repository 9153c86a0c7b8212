"""Log-probabilities, entropies and values of packed sequences against the plain forward pass of each alone."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from cool_rlhf.data.packing import pack, pack_pairs
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


@pytest.fixture(params=["internlm2", "llama", "qwen2", "cohere"])
def model(request, policy):
    if request.param == "internlm2":
        return policy
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, pad_token_id=0, **SIZES))
    made.set_attn_implementation("packed")
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


def test_the_loss_takes_a_tenth_of_the_logits_at_most() -> None:
    """At InternLM2's vocabulary and 4,096 tokens, forward and backward."""
    vocabulary, tokens = 92544, 4096
    head = torch.nn.Linear(8, vocabulary, bias=False)
    score = partial(forward._score_chunk, head.forward, temperature=1.0, entropies="detached")
    sources, targets = torch.randn(tokens, 8, requires_grad=True), torch.randint(0, vocabulary, (tokens,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        forward._score_tokens(score, sources, targets, vocabulary)[0].sum().backward()
    held = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert peak > forward.CHUNK_ELEMENTS * 4  # or nothing was counted
    assert peak < 0.1 * vocabulary * tokens * 4


def test_what_fills_a_pack_up_changes_no_gradient(policy, monkeypatch) -> None:
    packed, lengths = pack(sequences()), []
    policy.base_model.register_forward_pre_hook(
        lambda module, args, inputs: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    gradients = []
    for multiple in (1, 64):
        monkeypatch.setattr(forward, "CPU_MULTIPLE", multiple)
        policy.zero_grad()
        token_logprobs(policy, packed)[0].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in policy.parameters()])
    assert lengths == [60, 64]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-5)


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


@pytest.mark.parametrize("family", ["gemma3_text", "cohere", "granite"])
def test_a_familys_own_pass_computes_only_the_logits_that_are_asked_for(family) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, pad_token_id=0, **SIZES)).eval()
    model.set_attn_implementation("packed")
    packed = pack(sequences())
    asked = torch.arange(len(packed.tokens)) % 3 == 0
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    found, gradients = [], []
    own = model.forward
    for run in (own, lambda **inputs: own(**inputs)):  # the latter as of a family that takes no such argument
        model.forward = run
        model.zero_grad()
        logprobs, entropy = token_logprobs(model, packed, where=asked)
        logprobs.sum().backward()
        found.append((logprobs.detach(), entropy))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert rows == [int((asked & (packed.positions > 0)).sum()), 64]
    for mine, whole in zip(*found, strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("family", ["internlm2", "llama", "qwen2"])
def test_pairs_that_share_their_beginning_give_the_values_and_gradients_of_whole_sequences(
    family, reward_folder, tmp_path
) -> None:
    if family == "internlm2":
        model = load_scalar_model(reward_folder, torch.float32, head="keep", seed=0)
    else:
        config = AutoConfig.for_model(family, **SIZES, num_labels=1)
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        model.set_attn_implementation("packed")
    drawn = sequences()
    # One pair shares much, one nothing, one all but the last token; lengths differ, so the groups are padded.
    pairs = [
        (torch.cat([drawn[2], drawn[0]]), torch.cat([drawn[2], drawn[3]])),
        (drawn[3], drawn[0]),
        (drawn[0], drawn[0]),
    ]
    weights = torch.arange(1.0, 7.0)

    def scores_and_gradients(packed):
        model.zero_grad()
        scores = token_values(model, packed)[packed.ends]
        (scores * weights).sum().backward()
        flat = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        return scores.detach(), torch.cat(flat)

    whole = pack([*(first for first, _ in pairs), *(second for _, second in pairs)])
    shared = pack_pairs(pairs)
    assert len(shared.tokens) == len(whole.tokens) - 40 - 11
    expected, gradient = scores_and_gradients(whole)
    scores, mine = scores_and_gradients(shared)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert float((mine - gradient).norm() / gradient.norm()) <= 1e-5


def test_log_probabilities_refuse_shared_prefixes(policy) -> None:
    tokens = sequences()[0]
    with pytest.raises(ValueError, match="whole"):
        token_logprobs(policy, pack_pairs([(tokens, tokens)]))


SMALLER = {
    "head_dim": 16, "num_experts": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "pad_token_id": 0, "partial_rotary_factor": 0.5,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip
SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "final_logit_softcapping")  # of logits, not all used


@pytest.mark.parametrize("family", [*sorted(forward.PLAIN_HEADS - {"internlm2"}), "granite", "cohere", "gemma2"])
def test_a_plain_head_is_the_output_layer_on_the_last_hidden_state_and_nothing_else(family):
    config = AutoConfig.for_model(family, **SIZES)
    for name, value in {**SMALLER, **dict.fromkeys(SCALES, 0.1)}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        states = model.base_model(tokens, use_cache=False).last_hidden_state
        logits, plain = model(tokens, use_cache=False).logits, model.get_output_embeddings()(states)
    assert torch.allclose(logits, plain, atol=1e-6) is (family in forward.PLAIN_HEADS)
