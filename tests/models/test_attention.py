"""Packed attention on stock families: equal to each sequence alone, no cross-talk, no quadratic mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from cool_rlhf.data.packing import pack
from cool_rlhf.models import attention
from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForCausalLM

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "internlm2": {},
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 20},
}
LENGTHS = [30, 5, 17, 1, 64, 63, 100]


def make(family: str):
    torch.manual_seed(0)
    if family == "internlm2":
        model = InternLM2ForCausalLM(InternLM2Config(**SIZES))
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **FAMILIES[family]))
    with torch.no_grad():  # away from the near-uniform attention of a fresh start
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def sequences_of(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 128, (length,), generator=generator) for length in lengths]


def loss_of(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[:, 3].mean()


def boundaries(how: str, lengths: list[int]) -> dict:
    cumulative = torch.tensor([0, *lengths]).cumsum(0).int()
    return {
        "position_ids": {},
        "cu_seq_lens": {
            "cu_seq_lens_q": cumulative,
            "cu_seq_lens_k": cumulative,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        },
        "layout": {"packed_layout": attention.make_layout(lengths, torch.device("cpu"))},
    }[how]


@pytest.mark.parametrize("how", ["position_ids", "cu_seq_lens", "layout"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_separate_values_and_gradients(family: str, how: str) -> None:
    model = make(family)
    sequences = sequences_of(LENGTHS)
    model.set_attn_implementation("eager")
    expected = [model(sequence[None], use_cache=False).logits[0] for sequence in sequences]
    sum(loss_of(logits) for logits in expected).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    model.set_attn_implementation("packed")
    packed = pack(sequences)
    out = model(
        packed.tokens[None], position_ids=packed.positions[None], use_cache=False, **boundaries(how, LENGTHS)
    ).logits[0]
    torch.testing.assert_close(out, torch.cat(expected), atol=1e-5, rtol=0)
    sum(loss_of(logits) for logits in packed.split(out)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("family", ["internlm2", "llama"])
def test_no_sequence_hears_another(family: str, use_cache: bool) -> None:
    model = make(family)
    model.set_attn_implementation("packed")
    sequences = sequences_of(LENGTHS)
    packed = pack(sequences)

    def run(tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        inputs = model.get_input_embeddings()(tokens[None]).detach().requires_grad_()
        out = model(inputs_embeds=inputs, position_ids=packed.positions[None], use_cache=use_cache).logits[0]
        return packed.split(out), inputs

    before, inputs = run(packed.tokens)
    before[4].square().sum().backward()
    touched = [bool(part.abs().sum() > 0) for part in packed.split(inputs.grad[0])]
    assert touched == [index == 4 for index in range(len(LENGTHS))]

    changed = [(s + 1) % 128 if index == 4 else s for index, s in enumerate(sequences)]
    after, _ = run(torch.cat(changed))
    same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert same == [index != 4 for index in range(len(LENGTHS))]


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_sdpa(family: str) -> None:
    model = make(family)
    prompt = torch.nn.functional.pad(torch.stack(sequences_of([30, 30])), (2, 0))
    mask = torch.ones_like(prompt)
    mask[:, :2] = 0
    drawn = {}
    for implementation in ("sdpa", "packed"):
        model.set_attn_implementation(implementation)
        for name, given_mask in (("whole", torch.ones_like(prompt)), ("padded", mask)):
            tokens = model.generate(prompt, attention_mask=given_mask, max_new_tokens=12, do_sample=False)
            drawn[implementation, name] = tokens.tolist()
    assert drawn["sdpa", "whole"] == drawn["packed", "whole"]
    assert drawn["sdpa", "padded"] == drawn["packed", "padded"]


def test_no_mask_is_built(monkeypatch) -> None:
    model = make("llama")
    model.set_attn_implementation("packed")
    masks = []
    wrapped = attention.packed_attention

    def record(module, query, key, value, attention_mask, **kwargs):
        masks.append(attention_mask)
        return wrapped(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, "packed", record)
    packed = pack(sequences_of(LENGTHS))
    model(packed.tokens[None], position_ids=packed.positions[None])
    assert masks == [None, None]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
@settings(max_examples=50)
def test_layout_keeps_every_token_and_bounds_padding(lengths: list[int]) -> None:
    layout = attention.make_layout(lengths, torch.device("cpu")).groups
    total = sum(lengths)
    assert torch.equal(layout.token_of_slot[layout.slot_of_token], torch.arange(total))
    assert len(layout.slot_of_token.unique()) == total
    slots = sum(count * width for count, width in layout.blocks)
    assert slots == len(layout.token_of_slot)
    assert slots <= sum(max(attention.SHORT, attention.GROWTH * length) for length in lengths)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12))
@settings(max_examples=30)
def test_lengths_are_found_in_positions(lengths: list[int]) -> None:
    positions = torch.cat([torch.arange(length) for length in lengths])
    assert attention.sequence_lengths(positions[None]) == lengths
    assert attention.sequence_lengths(torch.stack([positions, positions])) == lengths * 2


def test_unsupported_wishes_are_refused() -> None:
    query = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match="softcap"):
        attention.packed_attention(torch.nn.Identity(), query, query, query, None, softcap=30.0)
    with pytest.raises(ValueError, match="dropout"):
        attention.packed_attention(torch.nn.Identity(), query, query, query, None, dropout=0.1)
    with pytest.raises(ValueError, match="add up to 3"):
        attention.packed_attention(
            torch.nn.Identity(), query, query, query, None, cu_seq_lens_q=torch.tensor([0, 1, 3])
        )
