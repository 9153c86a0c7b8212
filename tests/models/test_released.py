"""Folders laid out as the released ones: their config's fields, weight names and token ids, at small dimensions."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForCausalLM, InternLM2ForRewardModel
from cool_rlhf.models.loading import load_causal_lm, load_scalar_model, load_tokenizer

COMMON = {
    "attn_implementation": "eager",
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "model_type": "internlm2",
    "num_key_value_heads": 8,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "transformers_version": "4.37.1",
    "use_cache": True,
    "vocab_size": 92544,
}
SHAPES = {
    "1_8b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    "20b": {"hidden_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 48, "intermediate_size": 16384},
}
FACTORS = {"1_8b": 2.0, "7b": 2.0, "20b": 3.0}


def released(size: str, kind: str) -> dict:
    """config.json of a released model: ``kind`` is chat (InternLM2), chat2_5 or reward."""
    fields = COMMON | SHAPES[size]
    architecture = "InternLM2ForRewardModel" if kind == "reward" else "InternLM2ForCausalLM"
    auto = {"AutoConfig": "configuration_internlm2.InternLM2Config", "AutoModel": f"modeling_internlm2.{architecture}"}
    if kind != "reward":
        auto["AutoModelForCausalLM"] = f"modeling_internlm2.{architecture}"
    fields |= {"architectures": [architecture], "auto_map": auto}
    if kind == "reward":
        return fields | {"reward_token_id": 92527, "rope_scaling": None, "torch_dtype": "float16"}
    if kind == "chat2_5":
        fields |= {"pretraining_tp": 1}
    return fields | {"rope_scaling": {"factor": FACTORS[size], "type": "dynamic"}, "torch_dtype": "bfloat16"}


def shrunk(fields: dict) -> dict:
    return fields | {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 262,
    }


def make_folder(place: Path, fields: dict, tokenizer) -> Path:
    """Weights drawn at random under the released names, beside the config as it is."""
    dtype = getattr(torch, fields["torch_dtype"])
    hidden, ffn, vocabulary = fields["hidden_size"], fields["intermediate_size"], fields["vocab_size"]
    rows = hidden + 2 * fields["num_key_value_heads"] * hidden // fields["num_attention_heads"]
    shapes = {"model.tok_embeddings.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(fields["num_hidden_layers"]):
        stem = f"model.layers.{layer}."
        shapes |= {stem + "attention.wqkv.weight": (rows, hidden), stem + "attention.wo.weight": (hidden, hidden)}
        shapes |= {stem + f"feed_forward.{name}.weight": (ffn, hidden) for name in ("w1", "w3")}
        shapes |= {stem + "feed_forward.w2.weight": (hidden, ffn)}
        shapes |= {stem + f"{name}.weight": (hidden,) for name in ("attention_norm", "ffn_norm")}
    reward = fields["architectures"] == ["InternLM2ForRewardModel"]
    shapes |= {"v_head.weight": (1, hidden)} if reward else {"output.weight": (vocabulary, hidden)}
    generator = torch.Generator().manual_seed(0)
    place.mkdir()
    weights = {name: torch.randn(shape, generator=generator).to(dtype) / 8 for name, shape in shapes.items()}
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps(fields))
    tokenizer.save_pretrained(place)
    return place


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping


CASES = [(size, kind) for kind in ("chat", "chat2_5", "reward") for size in SHAPES]


@pytest.mark.parametrize(("size", "kind"), CASES)
def test_a_released_folder_loads_and_saves_unchanged(size: str, kind: str, tokenizer, tmp_path) -> None:
    fields = shrunk(released(size, kind))
    folder = make_folder(tmp_path / "released", fields, tokenizer)
    dtype = getattr(torch, fields["torch_dtype"])
    if kind == "reward":
        model = load_scalar_model(folder, dtype, head="keep", seed=0)
        assert type(model) is InternLM2ForRewardModel
        assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 1000000}
    else:
        model = load_causal_lm(folder, dtype)
        assert type(model) is InternLM2ForCausalLM
        rope = {"rope_type": "dynamic", "factor": FACTORS[size], "rope_theta": 1000000}
        assert model.config.rope_parameters == rope
    save_checkpoint(
        tmp_path / "saved",
        model.config,
        model.named_parameters(),
        tokenizer,
        architecture=type(model).__name__,
        dtype=dtype,
    )
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    own = {"transformers_version", "reward_token_id"}  # who wrote it, and the id in this small tokenizer
    for name, value in fields.items():
        if name not in own:
            assert saved.get(name) == value, name
    before, after = weights_of(folder), weights_of(tmp_path / "saved")
    assert set(before) == set(after)
    for name, weight in before.items():
        assert torch.equal(weight, after[name].to(dtype)), name


@pytest.mark.parametrize(("size", "kind"), CASES)
def test_released_configs_keep_shape_and_token_ids(size: str, kind: str) -> None:
    fields = released(size, kind)
    config = InternLM2Config.from_dict(fields)
    for name in (*SHAPES[size], "num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps"):
        assert getattr(config, name) == fields[name]
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert config.reward_token_id == 92527
    assert config._attn_implementation_internal is None, "the file's attn_implementation decides nothing"


def test_our_7b_defaults_are_the_released_ones() -> None:
    ours, theirs = InternLM2Config().to_dict(), InternLM2Config.from_dict(released("7b", "reward")).to_dict()
    for name in ours:
        if name not in ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"):
            assert ours[name] == theirs[name], name


def test_public_methods_have_the_cards_signatures() -> None:
    import inspect

    def parameters(method) -> list[str]:
        return list(inspect.signature(method).parameters)[1:]

    sampling = ["max_new_tokens", "do_sample", "temperature", "top_p"]
    chat, reward = InternLM2ForCausalLM, InternLM2ForRewardModel
    head = ["tokenizer", "query", "history"]
    assert parameters(chat.chat) == [*head, "streamer", *sampling, "meta_instruction", "kwargs"]
    assert parameters(chat.stream_chat) == [*head, *sampling, "kwargs"]
    assert parameters(reward.get_score) == ["tokenizer", "conversation"]
    assert parameters(reward.get_scores) == ["tokenizer", "conversations"]
    assert parameters(reward.rank) == ["tokenizer", "conversations", "return_logits"]
    assert parameters(reward.compare)[-1] == "return_logits"


def test_a_saved_folder_is_read_again_with_its_tokenizer(tokenizer, tmp_path) -> None:
    folder = make_folder(tmp_path / "released", shrunk(released("7b", "chat")), tokenizer)
    model = load_causal_lm(folder, torch.float32)
    save_checkpoint(
        tmp_path / "saved",
        model.config,
        model.named_parameters(),
        load_tokenizer(folder),
        architecture="InternLM2ForCausalLM",
        dtype=torch.float32,
    )
    again = load_causal_lm(tmp_path / "saved", torch.float32)
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert load_tokenizer(tmp_path / "saved").get_vocab() == tokenizer.get_vocab()
