"""LoRA: nothing changes at first, only adapters and head learn, and what is exported is one plain model."""

from __future__ import annotations

import pytest
import torch

from cool_rlhf.config import LoRAConfig
from cool_rlhf.data.packing import pack
from cool_rlhf.models.forward import token_logprobs, token_values
from cool_rlhf.models.lora import add_lora, exported_weights
from cool_rlhf.protocols import UserError


def batch():
    return pack([torch.arange(5), torch.arange(3, 12)])


def trained(model, targets: list[str], checkpointing: bool = False, outputs=token_values):
    torch.manual_seed(4)
    add_lora(model, LoRAConfig(rank=3, alpha=6, targets=targets))
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        outputs(model, batch()).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("targets", [[], ["wqkv", "w2"]])
def test_exported_weights_are_those_of_a_plain_model_that_computes_the_same(tiny_scalar_model, targets) -> None:
    plain = tiny_scalar_model(1)
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    start = token_values(plain, batch())
    adapted = tiny_scalar_model(1)
    add_lora(adapted, LoRAConfig(rank=3, targets=targets))
    assert torch.equal(token_values(adapted, batch()), start)

    adapted = trained(tiny_scalar_model(1), targets)
    exported = {name: weight() for name, _, weight in exported_weights(adapted)}
    assert exported.keys() == before.keys()
    plain.load_state_dict(exported)
    torch.testing.assert_close(token_values(plain, batch()), token_values(adapted, batch()), atol=1e-5, rtol=1e-5)
    changed = {name.split(".")[-2] for name, weight in exported.items() if not torch.equal(weight, before[name])}
    assert changed == {"v_head", *(targets or ["wqkv", "wo", "w1", "w2", "w3"])}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_language_model_learns_by_its_adapters_alone(tiny_causal_lm, checkpointing: bool) -> None:
    before = {name: weight.clone() for name, weight in tiny_causal_lm(1).state_dict().items()}
    model = trained(tiny_causal_lm(1), [], checkpointing, lambda *given: token_logprobs(*given)[0])
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learnt == {name for name, _ in model.named_parameters() if "lora_" in name}
    exported = {name: weight() for name, _, weight in exported_weights(model)}
    assert torch.equal(exported["output.weight"], before["output.weight"])
    changed = {name.split(".")[-2] for name, weight in exported.items() if not torch.equal(weight, before[name])}
    assert changed == {"wqkv", "wo", "w1", "w2", "w3"}


def test_gradient_checkpointing_changes_nothing(tiny_scalar_model) -> None:
    plain, recomputed = (trained(tiny_scalar_model(1), [], checkpointing) for checkpointing in (False, True))
    for mine, expected in zip(recomputed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_a_layer_that_is_not_there_is_named(tiny_scalar_model) -> None:
    with pytest.raises(
        UserError, match=r"names 'q_proj', but the model's linear layers are called w1, w2, w3, wo, wqkv"
    ):
        add_lora(tiny_scalar_model(1), LoRAConfig(targets=["wqkv", "q_proj"]))
