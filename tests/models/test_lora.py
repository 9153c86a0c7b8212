"""LoRA: nothing changes at first, only adapters and head learn, and what is exported is one plain model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from cool_rlhf.config import LoRAConfig
from cool_rlhf.data.packing import pack
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.forward import token_logprobs, token_values
from cool_rlhf.models.loading import load_causal_lm, load_scalar_model, load_tokenizer
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


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}


@pytest.fixture(params=["llama", "gemma3_text"])  # the second's output layer is its embedding, which it scales
def foreign_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model whose tokenizer knows letters alone: all of ChatML's tokens have to be added."""
    vocabulary = {letter: index for index, letter in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    folder = tmp_path / "foreign"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, vocab_size=len(vocabulary), **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_tokens_that_the_base_lacks_are_learnt_and_exported(foreign_folder: Path, tmp_path: Path) -> None:
    """Else a model could never learn to end its turn: no adapter reaches the output layer."""
    tokenizer = load_tokenizer(foreign_folder)
    added = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|reward|>"])
    _, end, _ = added
    packed = pack([torch.tensor([added[0], 5, 6, 7, end]), torch.tensor([added[0], 9, 8, end])])
    ends = packed.tokens == end

    def log_probability(model) -> Tensor:
        return token_logprobs(model, packed)[0][ends].mean()

    plain = load_causal_lm(foreign_folder, torch.float32)
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    model = load_causal_lm(foreign_folder, torch.float32)
    add_lora(model, LoRAConfig(rank=2, alpha=4))
    assert torch.equal(token_logprobs(model, packed)[0], token_logprobs(plain, packed)[0])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        (-log_probability(model)).backward()
        optimizer.step()
    assert log_probability(model) > -0.1

    exported = {name: weight() for name, _, weight in exported_weights(model)}
    size = plain.get_input_embeddings().weight.shape
    changed = {
        index
        for name, weight in exported.items()
        if weight.shape == size
        for index in (weight != before[name]).any(-1).nonzero().flatten().tolist()
    }
    assert end in changed
    assert changed <= set(added)
    architecture = type(plain).__name__
    save_checkpoint(
        tmp_path / "out", model.config, exported.items(), tokenizer, architecture=architecture, dtype=torch.float32
    )
    again, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="packed", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(token_logprobs(again, packed), token_logprobs(model, packed), atol=1e-5, rtol=1e-5)


def test_a_reward_model_learns_the_tokens_that_the_base_lacks(foreign_folder: Path) -> None:
    plain, model = (load_scalar_model(foreign_folder, torch.float32, head="fresh", seed=1) for _ in range(2))
    added = load_tokenizer(foreign_folder).convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|reward|>"])
    trained(model, [], outputs=lambda model, _: token_values(model, pack([torch.tensor([1, 2, *added])])))
    exported = {name: weight() for name, _, weight in exported_weights(model)}
    embedding = exported["model.embed_tokens.weight"]
    changed = (embedding != plain.model.embed_tokens.weight).any(-1).nonzero().flatten().tolist()
    assert sorted(changed) == sorted(added)
    plain.load_state_dict(exported)
    torch.testing.assert_close(token_values(plain, batch()), token_values(model, batch()), atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_nothing(tiny_scalar_model) -> None:
    plain, recomputed = (trained(tiny_scalar_model(1), [], checkpointing) for checkpointing in (False, True))
    for mine, expected in zip(recomputed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_a_layer_that_is_not_there_is_named(tiny_scalar_model) -> None:
    with pytest.raises(
        UserError, match=r"names 'q_proj', but the model's linear layers are called w1, w2, w3, wo, wqkv"
    ):
        add_lora(tiny_scalar_model(1), LoRAConfig(targets=["wqkv", "q_proj"]))
