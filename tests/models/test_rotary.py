"""Dynamic-NTK scaling goes by each sequence's own length, however sequences are laid out."""

import pytest
import torch

from cool_rlhf.data.packing import pack
from cool_rlhf.models.attention import NAME
from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForCausalLM
from cool_rlhf.models.internlm2.layers_internlm2 import InternLM2RotaryEmbedding, sequence_lengths

TRAINED = 32  # positions


def make(factor: float) -> InternLM2ForCausalLM:
    config = InternLM2Config.from_dict(
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 100,
            "max_position_embeddings": TRAINED,
            "rope_scaling": {"type": "dynamic", "factor": factor},
            "rope_theta": 10000,
        }
    )
    torch.manual_seed(0)
    model = InternLM2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.eval()


@pytest.fixture(params=[2.0, 3.0])
def model(request) -> InternLM2ForCausalLM:
    return make(request.param)


def tokens_of(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(100, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def test_a_long_sequence_changes_no_other_in_its_pack(model) -> None:
    sequences = tokens_of(20, 50, TRAINED, 90, 33)
    alone = [model(sequence[None], use_cache=False).logits[0] for sequence in sequences]
    model.set_attn_implementation(NAME)
    packed = pack(sequences)
    together = model(packed.tokens[None], position_ids=packed.positions[None], use_cache=False).logits[0]
    for mine, expected in zip(packed.split(together), alone, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count_as_length(model, side: str) -> None:
    short, long = tokens_of(30, 60)
    padding = (30, 0) if side == "left" else (0, 30)
    batch = torch.stack([torch.nn.functional.pad(short, padding), long])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(short), padding), torch.ones_like(long)])
    logits = model(batch, attention_mask=mask, use_cache=False).logits
    mine = logits[0, 30:] if side == "left" else logits[0, :30]
    torch.testing.assert_close(mine, model(short[None], use_cache=False).logits[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[1], model(long[None], use_cache=False).logits[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_came_before_changes_nothing(model) -> None:
    medium, long = tokens_of(40, 90)
    before = model(medium[None]).logits
    model(long[None])
    assert torch.equal(model(medium[None]).logits, before)


def test_frequencies_are_the_released_formulas(model) -> None:
    rotary = InternLM2RotaryEmbedding(model.config)
    positions = torch.cat([torch.arange(50), torch.arange(10)])[None]
    cos, sin = rotary(torch.zeros(1), positions)
    factor = model.config.rope_parameters["factor"]
    base = 10000 * (factor * 50 / TRAINED - (factor - 1)) ** (16 / 14)
    long = torch.arange(50)[:, None] / base ** (torch.arange(0, 16, 2) / 16)
    short = torch.arange(10)[:, None] / 10000 ** (torch.arange(0, 16, 2) / 16)
    angles = torch.cat([long, short]).repeat(1, 2)
    torch.testing.assert_close(cos[0], angles.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sin[0], angles.sin(), atol=1e-5, rtol=0)


def test_sequence_lengths_of_packs_padding_and_decoding() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 0, 1], [0, 0, 0, 1, 2, 3], [0, 1, 1, 1, 1, 1]])
    assert sequence_lengths(positions).tolist() == [[3, 3, 3, 1, 2, 2], [1, 1, 4, 4, 4, 4], [2, 2, 2, 2, 2, 2]]
    assert sequence_lengths(torch.tensor([[70]])).tolist() == [[71]]
