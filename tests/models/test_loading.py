"""Loading: every family as policy, reward model and critic; the head's dtype and origin; mistakes of the user's."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from cool_rlhf.data.chat import encode_reward
from cool_rlhf.data.packing import pack
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.forward import token_logprobs, token_values
from cool_rlhf.models.internlm2 import InternLM2ForCausalLM, InternLM2ForRewardModel
from cool_rlhf.models.loading import (
    checkpoint_folder,
    fresh_causal_lm,
    load_causal_lm,
    load_scalar_model,
    load_tokenizer,
    longest_sequence,
    scalar_head,
    stored_weights,
)
from cool_rlhf.protocols import UserError

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def other_folder(request, tokenizer, tmp_path):
    """A stock model whose vocabulary is full, with a tokenizer that has never heard of a reward token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(request.param, **SIZES, vocab_size=len(tokenizer) - 1, attention_dropout=0.1)
    )
    model.save_pretrained(tmp_path / "other")
    tokenizer.backend_tokenizer.save(str(tmp_path / "other" / "tokenizer.json"))
    fields = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] != "<|reward|>"]
    vocabulary = fields["model"]["vocab"]
    freed = vocabulary.pop("<|reward|>")
    vocabulary[max(vocabulary, key=vocabulary.get)] = freed
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(fields))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path / "other"


def test_fresh_weights_follow_the_seed_and_leave_the_global_one_alone(tiny, tokenizer) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    models = [fresh_causal_lm(tiny, tokenizer, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    first, again, other = (model.output.weight for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    config = models[0].config
    assert config.vocab_size == len(tokenizer)
    assert config.reward_token_id == tokenizer.convert_tokens_to_ids("<|reward|>")
    assert (config.num_key_value_heads, config.intermediate_size, config._attn_implementation) == (2, 160, "packed")


def test_internlm2_loads_natively_in_the_dtype_asked(chat_folder, policy) -> None:
    loaded = load_causal_lm(chat_folder, torch.float32)
    assert type(loaded) is InternLM2ForCausalLM
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, policy.get_parameter(name))
    assert load_causal_lm(chat_folder, torch.bfloat16).output.weight.dtype == torch.bfloat16


def test_a_fresh_head_follows_the_seed_and_replaces_a_trained_one(chat_folder, reward_folder) -> None:
    kept = load_scalar_model(reward_folder, torch.bfloat16, head="keep", seed=5)
    heads = [
        load_scalar_model(folder, torch.bfloat16, head="fresh", seed=seed).v_head.weight
        for folder, seed in ((chat_folder, 5), (reward_folder, 5), (reward_folder, 6))
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], kept.v_head.weight)
    assert heads[0].dtype == torch.float32
    assert heads[0].std().item() == pytest.approx(129**-0.5, rel=0.25)
    trained = InternLM2ForRewardModel.from_pretrained(reward_folder)
    assert torch.equal(kept.v_head.weight, trained.v_head.weight)
    assert torch.equal(
        kept.model.layers[0].attention.wqkv.weight, trained.model.layers[0].attention.wqkv.weight.bfloat16()
    )


def test_other_families_serve_as_policy_and_reward_model(other_folder, tmp_path) -> None:
    tokenizer = load_tokenizer(other_folder)
    model = load_causal_lm(other_folder, torch.float32)
    assert model.config.vocab_size >= len(tokenizer)
    assert torch.equal(model.lm_head.weight, load_causal_lm(other_folder, torch.float32).lm_head.weight)
    reward = tokenizer.convert_tokens_to_ids("<|reward|>")
    packed = pack([torch.tensor([5, 6, 7, reward]), torch.tensor([9, 8])])
    assert torch.isfinite(token_logprobs(model.train(), packed)[0]).all()

    scalar = load_scalar_model(other_folder, torch.bfloat16, head="fresh", seed=1)
    assert scalar_head(scalar).weight.dtype == torch.float32
    values = token_values(scalar, packed)
    folder = tmp_path / "reward"
    save_checkpoint(
        folder,
        scalar.config,
        scalar.named_parameters(),
        tokenizer,
        architecture=type(scalar).__name__,
        conditions={"default": ""},
        dtype=torch.bfloat16,
    )
    kept = load_scalar_model(folder, torch.bfloat16, head="keep", seed=9)
    assert torch.equal(token_values(kept, packed), values)


def test_a_reward_model_of_another_chat_format_is_refused(other_folder, tmp_path) -> None:
    """Its scores at a token that it was never trained on would look like any others."""
    scalar = load_scalar_model(other_folder, torch.float32, head="fresh", seed=1)
    scalar.save_pretrained(tmp_path / "foreign")
    AutoTokenizer.from_pretrained(other_folder).save_pretrained(tmp_path / "foreign")
    with pytest.raises(UserError, match=r"another chat format than ChatML .* lacks .*<\|reward\|>"):
        load_scalar_model(tmp_path / "foreign", torch.float32, head="keep", seed=0)

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    classes = LlamaForSequenceClassification(LlamaConfig(vocab_size=64, num_labels=2, **shape))
    classes.save_pretrained(tmp_path / "classes")
    with pytest.raises(UserError, match="a classifier with 2 labels, no reward model"):
        load_scalar_model(tmp_path / "classes", torch.float32, head="keep", seed=0)


GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def family_folder(tokenizer, tmp_path):
    """A random model of a family of transformers with our tokenizer."""

    def make(family: str, **fields: Any) -> Path:
        config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **fields)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("gpt2", {**GPT2, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}),
        ("opt", {**OPT, "dropout": 0.5, "layerdrop": 0.5}),  # by numbers, and no layers of their own
    ],
)
def test_a_family_with_dropout_says_the_same_twice_in_training(family_folder, family, sizes) -> None:
    folder = family_folder(family, **sizes)
    packed = pack([torch.tensor([5, 6, 7]), torch.tensor([9, 8])])
    policy = load_causal_lm(folder, torch.float32).train()
    assert torch.equal(token_logprobs(policy, packed)[0], token_logprobs(policy, packed)[0])
    critic = load_scalar_model(folder, torch.float32, head="fresh", seed=1).train()
    assert torch.equal(token_values(critic, packed), token_values(critic, packed))


def test_sequences_are_as_long_as_the_positions_whatever_the_family_calls_them(family_folder, chat_folder) -> None:
    own = load_causal_lm(chat_folder, torch.float32).config.max_position_embeddings
    assert [longest_sequence(chat_folder, asked) for asked in (own - 1, own + 1)] == [own - 1, own]
    folder = family_folder("gpt2", **GPT2)
    assert [longest_sequence(folder, asked) for asked in (63, 65)] == [63, 64]


def test_other_families_reward_models_are_transformers_own(other_folder, tmp_path) -> None:
    scalar = load_scalar_model(other_folder, torch.float32, head="fresh", seed=1)
    ours, folder = load_tokenizer(other_folder), tmp_path / "reward"
    architecture = type(scalar).__name__
    save_checkpoint(
        folder, scalar.config, scalar.named_parameters(), ours, architecture=architecture, dtype=torch.float32
    )
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == architecture
    assert type(model).__module__.startswith("transformers.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    conversations = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
        for answer in ("No.", "Well, " * 20, "Yes")
    ]
    texts = tokenizer.apply_chat_template(conversations, tokenize=False)
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**batch).logits[:, 0]
        packed = pack([encode_reward(ours, turns, None, True, 512) for turns in conversations])
        expected = token_values(scalar, packed)[packed.ends]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_rotary_frequencies_stay_float32_when_an_engine_casts_the_model(
    tiny, tokenizer, chat_folder, other_folder
) -> None:
    narrow = fresh_causal_lm(replace(tiny, dtype="bfloat16"), tokenizer, seed=1)
    for model in (narrow, load_causal_lm(chat_folder, torch.float32), load_causal_lm(other_folder, torch.float32)):
        rotary = model.model.rotary_emb
        exact = rotary.compute_default_rope_parameters(model.config)[0]
        model.bfloat16()
        copy.deepcopy(model).to("cpu", torch.bfloat16)
        assert model.get_output_embeddings().weight.dtype == torch.bfloat16
        for buffer in (rotary.inv_freq, rotary.original_inv_freq):
            assert torch.equal(buffer, exact)


def test_mistakes_are_answered_with_a_sentence(chat_folder, reward_folder, tmp_path) -> None:
    with pytest.raises(UserError, match="holds a reward model"):
        load_causal_lm(reward_folder, torch.float32)
    with pytest.raises(UserError, match="no reward model whose head"):
        load_scalar_model(chat_folder, torch.float32, head="keep", seed=0)
    for missing, sentence in ((tmp_path / "nowhere", "there is no folder"), (tmp_path, "there is no model at")):
        with pytest.raises(UserError, match=sentence):
            load_causal_lm(missing, torch.float32)
    weights = load_file(chat_folder / "model.safetensors")
    del weights["model.layers.1.attention.wo.weight"]
    save_file(weights, chat_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights.*layers\.1\.attention\.wo"):
        load_causal_lm(chat_folder, torch.float32)


def test_stored_weights_are_read_from_either_format(tmp_path: Path) -> None:
    weights = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(2)}
    for folder in ("new", "old", "none"):
        (tmp_path / folder).mkdir()
    save_file(weights, tmp_path / "new" / "model.safetensors")
    for place, (name, weight) in enumerate(weights.items()):
        torch.save({name: weight}, tmp_path / "old" / f"pytorch_model-0000{place}-of-00002.bin")
    for folder in ("new", "old"):
        read = {name: weight for part in stored_weights(tmp_path / folder) for name, weight in part.items()}
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[name], weights[name]) for name in weights)
    with pytest.raises(UserError, match="no checkpoint"):
        list(stored_weights(tmp_path / "none"))


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda _: LFS_POINTER, lambda _: b""])
@pytest.mark.parametrize("format", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_file_of_weights_is_named(format: str, damage, chat_folder: Path) -> None:
    whole, file = chat_folder / "model.safetensors", chat_folder / format
    if file != whole:
        torch.save(load_file(whole), file)
        whole.unlink()
    file.write_bytes(damage(file.read_bytes()))
    for read in (
        lambda: load_causal_lm(chat_folder, torch.float32),
        lambda: load_scalar_model(chat_folder, torch.float32, head="fresh", seed=0),
        lambda: list(stored_weights(chat_folder)),
    ):
        with pytest.raises(UserError, match=rf"^{re.escape(str(file))} holds no whole weights"):
            read()


def test_trouble_of_another_kind_is_not_taken_for_damage(chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_, **__):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(InternLM2ForCausalLM, "from_pretrained", out_of_memory)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_causal_lm(chat_folder, torch.float32)


def test_weights_of_another_shape_than_the_config_says_are_named(chat_folder: Path) -> None:
    file = chat_folder / "model.safetensors"
    save_file(load_file(file) | {"model.norm.weight": torch.ones(7)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"chat holds model.norm.weight of shape \(7,\), .* makes it \(128,\)"):
        load_causal_lm(chat_folder, torch.float32)


@pytest.mark.parametrize("format", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_name_stands_for_its_snapshot(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The safetensors alone where there are some; else the other weights too."""
    asked: list[list[str]] = []

    def snapshot_download(name: str, ignore_patterns: list[str]) -> str:
        asked.append(ignore_patterns)
        if "*.bin" not in ignore_patterns or not format.endswith(".bin"):
            (tmp_path / format).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert checkpoint_folder("owner/model") == tmp_path
    assert (tmp_path / format).exists()
    assert len(asked) == (2 if format.endswith(".bin") else 1)
    assert checkpoint_folder(tmp_path) == tmp_path
