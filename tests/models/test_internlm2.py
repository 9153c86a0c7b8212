"""InternLM2 against transformers' Llama with the same weights laid out anew, and its chat methods."""

import copy
import threading
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from cool_rlhf.data.packing import pack
from cool_rlhf.models.attention import make_layout
from cool_rlhf.models.internlm2 import (
    InternLM2Config,
    InternLM2ForCausalLM,
    InternLM2ForRewardModel,
)

LENGTHS = [30, 5, 17, 1, 64, 63]


def released_config(**changes) -> dict:
    """What a released chat model's config.json holds, at a small size."""
    fields = {
        "architectures": ["InternLM2ForCausalLM"],
        "attn_implementation": "eager",
        "bias": False,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "model_type": "internlm2",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rope_theta": 1000000,
        "torch_dtype": "bfloat16",
        "vocab_size": 100,
    }
    return fields | changes


def llama_of(model: InternLM2ForCausalLM) -> LlamaForCausalLM:
    """The same function as a Llama: wqkv cut by key-value group, the other weights renamed."""
    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters=dict(config.rope_parameters),
        )
    )
    group = config.num_attention_heads // config.num_key_value_heads
    dim = config.hidden_size // config.num_attention_heads
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    source, target = model.state_dict(), {}
    for name, weight in source.items():
        parts = name.split(".")
        if name == "model.tok_embeddings.weight":
            target["model.embed_tokens.weight"] = weight
        elif name == "output.weight":
            target["lm_head.weight"] = weight
        elif name == "model.norm.weight":
            target[name] = weight
        elif parts[-2] == "wqkv":
            stem = ".".join(parts[:3]) + ".self_attn."
            grouped = weight.view(config.num_key_value_heads, group + 2, dim, config.hidden_size)
            target[stem + "q_proj.weight"] = grouped[:, :group].reshape(-1, config.hidden_size)
            target[stem + "k_proj.weight"] = grouped[:, group].reshape(-1, config.hidden_size)
            target[stem + "v_proj.weight"] = grouped[:, group + 1].reshape(-1, config.hidden_size)
        else:
            stem = ".".join(parts[:3])
            target[
                {
                    "wo": f"{stem}.self_attn.o_proj.weight",
                    "attention_norm": f"{stem}.input_layernorm.weight",
                    "ffn_norm": f"{stem}.post_attention_layernorm.weight",
                }.get(parts[-2])
                or f"{stem}.mlp.{names[parts[-2]]}.weight"
            ] = weight
    llama.load_state_dict(target)
    return llama


def lively(model: InternLM2ForCausalLM) -> InternLM2ForCausalLM:
    """Larger weights than at a fresh start, so that attention is far from uniform and logits are of order one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1 + drawn / 10)
    return model


def packed_logits(model, sequences: list[Tensor]) -> list[Tensor]:
    packed = pack(sequences)
    logits = model(
        packed.tokens[None],
        position_ids=packed.positions[None],
        packed_layout=make_layout(packed.lengths, torch.device("cpu")),
        use_cache=False,
    ).logits[0]
    return packed.split(logits)


@pytest.mark.parametrize("kv_heads", [2, 4], ids=["gqa", "mha"])
def test_logits_equal_llama_packed_and_not(kv_heads: int) -> None:
    config = InternLM2Config.from_dict(released_config(num_key_value_heads=kv_heads, torch_dtype="float32"))
    model = lively(InternLM2ForCausalLM(config))
    llama = llama_of(model)
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(100, (length,), generator=generator) for length in LENGTHS]
    expected = [llama(sequence[None], use_cache=False).logits[0] for sequence in sequences]
    assert max(logits.abs().max() for logits in expected) > 1
    for implementation in ("eager", "sdpa", "packed"):
        model.set_attn_implementation(implementation)
        for sequence, logits in zip(sequences, expected, strict=True):
            torch.testing.assert_close(model(sequence[None], use_cache=False).logits[0], logits, atol=1e-5, rtol=0)
    for mine, logits in zip(packed_logits(model, sequences), expected, strict=True):
        torch.testing.assert_close(mine, logits, atol=1e-5, rtol=0)


def test_dynamic_ntk_scaling_equals_llama_beyond_the_trained_length_and_back() -> None:
    model = lively(InternLM2ForCausalLM(InternLM2Config.from_dict(released_config(max_position_embeddings=32))))
    model.float()
    llama = llama_of(model)
    for length in (20, 50, 20):
        tokens = torch.randint(100, (1, length), generator=torch.Generator().manual_seed(length))
        torch.testing.assert_close(model(tokens).logits, llama(tokens).logits, atol=1e-5, rtol=0)


def test_released_config_is_read_and_written_back() -> None:
    config = InternLM2Config.from_dict(released_config())
    assert config.rope_parameters == {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000}
    assert not hasattr(config, "attn_implementation")
    assert InternLM2ForCausalLM(config).config._attn_implementation == "sdpa"
    written = config.to_dict()
    assert written["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    assert written["rope_theta"] == 1000000
    assert InternLM2Config.from_dict(written).to_dict() == written
    plain = InternLM2Config.from_dict(released_config(rope_scaling=None))
    assert plain.rope_parameters == {"rope_type": "default", "rope_theta": 1000000}


def test_attention_keyword_wins_over_the_released_field(tmp_path) -> None:
    InternLM2ForCausalLM(InternLM2Config.from_dict(released_config())).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"bias"', '"attn_implementation": "eager",\n  "bias"')
    (tmp_path / "config.json").write_text(text)
    assert InternLM2ForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    for asked in ("eager", "packed"):
        loaded = InternLM2ForCausalLM.from_pretrained(tmp_path, attn_implementation=asked)
        assert loaded.config._attn_implementation == asked


def test_parameter_names_and_shapes_are_the_released_ones() -> None:
    with torch.device("meta"):
        model = InternLM2ForCausalLM(InternLM2Config(num_hidden_layers=1))
        reward = InternLM2ForRewardModel(InternLM2Config(num_hidden_layers=1))
    layer = {
        "attention.wqkv.weight": (6144, 4096),
        "attention.wo.weight": (4096, 4096),
        "feed_forward.w1.weight": (14336, 4096),
        "feed_forward.w3.weight": (14336, 4096),
        "feed_forward.w2.weight": (4096, 14336),
        "attention_norm.weight": (4096,),
        "ffn_norm.weight": (4096,),
    }
    backbone = {f"model.layers.0.{name}": shape for name, shape in layer.items()}
    backbone |= {"model.tok_embeddings.weight": (92544, 4096), "model.norm.weight": (4096,)}
    assert {n: tuple(p.shape) for n, p in model.state_dict().items()} == backbone | {"output.weight": (92544, 4096)}
    assert {n: tuple(p.shape) for n, p in reward.state_dict().items()} == backbone | {"v_head.weight": (1, 4096)}


def test_rotary_buffers_survive_loading_through_the_meta_device(chat_folder, policy) -> None:
    loaded = InternLM2ForCausalLM.from_pretrained(chat_folder)
    for name in ("inv_freq", "original_inv_freq"):
        torch.testing.assert_close(
            getattr(loaded.model.rotary_emb, name), getattr(policy.model.rotary_emb, name), atol=0, rtol=0
        )


def test_gradient_checkpointing_changes_no_gradient(policy) -> None:
    sequences = [torch.arange(3, 3 + length) for length in LENGTHS]

    def gradients(model) -> list[Tensor]:
        model.train()
        loss = sum(logits.log_softmax(-1)[:, 7].sum() for logits in packed_logits(model, sequences))
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    checkpointed = copy.deepcopy(policy)
    checkpointed.gradient_checkpointing_enable()
    for plain, recomputed in zip(gradients(policy), gradients(checkpointed), strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(recomputed, plain, atol=0, rtol=0)


def test_generation_with_cache_equals_recomputation(policy) -> None:
    prompts = [torch.arange(10, 17), torch.arange(40, 52)]
    width = max(len(prompt) for prompt in prompts)
    padded = torch.stack([torch.nn.functional.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
    mask = (torch.arange(width) >= width - torch.tensor([[len(prompt)] for prompt in prompts])).long()
    for implementation in ("sdpa", "packed"):
        policy.set_attn_implementation(implementation)
        together = policy.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
        for row, prompt in zip(together, prompts, strict=True):
            tokens = prompt[None]
            for _ in range(8):
                following = policy(tokens, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
                tokens = torch.cat([tokens, following], dim=1)
            assert row[width:].tolist() == tokens[0, len(prompt) :].tolist()


def test_chat_returns_response_and_history(policy, tokenizer) -> None:
    response, history = policy.chat(tokenizer, "Hello", max_new_tokens=6, do_sample=False)
    assert history == [("Hello", response)]
    again, longer = policy.chat(tokenizer, "And now?", history=history, max_new_tokens=6, top_p=0.9, temperature=0.5)
    assert longer == [("Hello", response), ("And now?", again)]
    assert history == [("Hello", response)]
    inputs = policy.build_inputs(tokenizer, "And now?", [("Hello", "Hi")], meta_instruction="Be kind.")
    assert bool(inputs["attention_mask"].all())
    assert tokenizer.decode(inputs["input_ids"][0]) == (
        "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_stops_at_the_end_of_the_turn(policy, tokenizer, monkeypatch) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():  # every hidden state is the vector of ones, and the end of the turn likes it best
        for name, parameter in policy.named_parameters():
            parameter.fill_(float(name.endswith(("norm.weight", "tok_embeddings.weight"))))
        policy.output.weight[end] = 1
    drawn = []
    generate = policy.generate
    monkeypatch.setattr(policy, "generate", lambda **kwargs: drawn.append(generate(**kwargs)) or drawn[0])
    assert policy.chat(tokenizer, "Hello", max_new_tokens=30) == ("", [("Hello", "")])
    assert drawn[0][0, -2:].tolist() == [tokenizer.convert_tokens_to_ids("Ċ"), end]


def test_stream_chat_yields_growing_responses_and_ends_as_chat(policy, tokenizer) -> None:
    history = [("Hello", "Hi")]
    expected = policy.chat(tokenizer, "And now?", history, max_new_tokens=24, do_sample=False)
    steps = list(policy.stream_chat(tokenizer, "And now?", history, max_new_tokens=24, do_sample=False))
    assert steps[-1] == expected
    responses = [response for response, _ in steps]
    assert all(later.startswith(earlier) for earlier, later in pairwise(responses[:-1]))
    assert all(talk == [*history, ("And now?", response)] for response, talk in steps)
    assert history == [("Hello", "Hi")]


def test_stream_chat_yields_words_as_they_come(policy, tokenizer, monkeypatch) -> None:
    words = tokenizer.encode("one two three", add_special_tokens=False)

    def generate(input_ids, streamer, **_):
        streamer.put(input_ids)
        for word in words:
            streamer.put(torch.tensor([word]))
        streamer.end()
        return torch.cat([input_ids[0], torch.tensor(words)])[None]

    monkeypatch.setattr(policy, "generate", generate)
    responses = [response for response, _ in policy.stream_chat(tokenizer, "Count")]
    assert responses == ["one ", "one two ", "one two three"]


def test_stream_chat_stops_when_it_is_left(policy, tokenizer) -> None:
    before = threading.active_count()
    stream = policy.stream_chat(tokenizer, "Hello", max_new_tokens=100_000, do_sample=True)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_stream_chat_raises_what_generation_raises(policy, tokenizer, monkeypatch) -> None:
    def broken(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(policy, "generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(policy.stream_chat(tokenizer, "Hello"))
