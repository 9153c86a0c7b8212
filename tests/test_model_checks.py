"""What is found out of models before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cool_rlhf.compose import compose
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.model_checks import check_models
from cool_rlhf.protocols import UserError

SMALL = ["+experiment=smoke", *(f"data.world.{part}=20" for part in ("sft", "preferences", "prompts", "pretrain"))]


@pytest.fixture
def bare_model(bare_model: Path) -> Path:
    """With a file of weights that is whole, if without any."""
    save_file({}, bare_model / "model.safetensors")
    return bare_model


def foreign_model(folder: Path, *chat_tokens: str) -> int:
    """A checkpoint of another family in ``folder``, without its config.json. Returns how many tokens it knows."""
    vocabulary = {letter: index for index, letter in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.add_special_tokens(list(chat_tokens))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    save_file({}, folder / "model.safetensors")
    return len(vocabulary) + len(chat_tokens)


def test_a_checkpoint_without_room_for_the_chat_tokens_is_not_sampled_from(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    full = foreign_model(folder, "<|im_start|>", "<|im_end|>")

    def check(rows: int, *overrides: str) -> None:
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": rows}))
        check_models(compose([*SMALL, f"sft.path={folder}", "collect.prompts=0", *overrides]))

    for stage in ("stage=ppo", "stage=pipeline", "stage=evaluate"):
        with pytest.raises(UserError, match=r"^sft\.path: .*llama has no rows for the chat tokens .* \(model\.path\)"):
            check(full, stage)
    with pytest.raises(UserError, match="no rows for the chat tokens"):
        check(full, "stage=reward", "collect.prompts=5")
    check(full, "stage=reward")
    check(full + 1, "stage=ppo")


def test_a_checkpoint_of_another_chat_format_is_trained_from_but_not_sampled_as_it_is(tmp_path: Path) -> None:
    """It may have rows to spare, and would be shown a format that it has never seen."""
    folder = tmp_path / "llama"
    rows = foreign_model(folder, "<|im_start|>") + 64
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": rows}))
    check_models(compose([*SMALL, "stage=sft", f"model.path={folder}"]))
    check_models(compose([*SMALL, "stage=reward", "collect.prompts=0", f"sft.path={folder}"]))
    for key, given in (("sft", f"sft.path={folder}"), ("model", f"model.path={folder}")):
        config = compose([*SMALL, "stage=ppo", given, "sft.path=${model.path}" if key == "model" else "seed=1"])
        told = (
            rf"^{key}\.path: .*llama speaks another chat format than ChatML, .* lacks <\|im_end\|>: train SFT from it"
        )
        with pytest.raises(UserError, match=told):
            check_models(config)


@pytest.mark.parametrize("key", ["model.path", "sft.path", "reward.path", "ppo.critic_init"])
def test_a_model_without_its_tokenizer_is_refused_before_anything_is_trained(tmp_path: Path, key: str) -> None:
    """Transformers makes an empty one, of which every text would come out empty."""
    architecture = "Qwen2ForSequenceClassification" if key == "reward.path" else "Qwen2ForCausalLM"
    fields = {"model_type": "qwen2", "architectures": [architecture], "num_labels": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"^{key}: cannot load a tokenizer from .* no vocabulary, such as tokenizer"):
        check_models(compose([*SMALL, "collect.prompts=0", f"{key}={tmp_path}"]))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("FOLDER/empty", "cannot load a tokenizer from .* no vocabulary, such as tokenizer"),
        ("FOLDER/no_json", r"FOLDER/no_json/config\.json is not valid JSON"),
        ("FOLDER/file", "there is no folder FOLDER/file: give the tokenizer's folder, Hub name or"),
        ("FOLDER/none", "there is no file or folder FOLDER/none"),
        ("some/tokenizer", "cannot load a tokenizer from 'some/tokenizer'"),
        ("n" * 300, r"n+/config\.json cannot be looked at \(File name too long\)"),
    ],
)
def test_the_tokenizer_of_fresh_weights_is_looked_at_as_models_are(
    bare_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for folder in ("empty", "no_json"):
        (tmp_path / folder).mkdir()
    (tmp_path / "no_json" / "config.json").touch()
    (tmp_path / "file").touch()
    named = f"model.tokenizer={name.replace('FOLDER', str(tmp_path))}"
    with pytest.raises(UserError, match=f"^model\\.tokenizer: {told.replace('FOLDER', str(tmp_path))}"):
        check_models(compose([*SMALL, named]))
    check_models(compose([*SMALL, named, f"model.path={bare_model}", "stage=sft"]))


def test_a_tokenizer_of_fresh_weights_needs_no_model_beside_it(tmp_path: Path) -> None:
    train_tokenizer(["why is it so? " * 9], 400).save_pretrained(tmp_path)
    check_models(compose([*SMALL, f"model.tokenizer={tmp_path}"]))


@pytest.mark.parametrize(
    ("overrides", "architectures", "told"),
    [
        (["stage=reward", "sft.path=MODEL"], ["InternLM2ForRewardModel"], r"^sft\.path: .* is a reward model \(Intern"),
        (["stage=sft", "model.path=MODEL"], ["LlamaForSequenceClassification"], r"^model\.path: .* is a reward model"),
        (
            ["reward.path=MODEL"],
            ["InternLM2ForCausalLM"],
            r"^reward\.path: .* is no reward model \(InternLM2ForCausalLM",
        ),
        (
            ["stage=evaluate", "reward.path=MODEL"],
            None,
            r"is no reward model \(its config\.json names no architecture\)",
        ),
        (["reward.path=MODEL"], ["LlamaForSequenceClassification"], None),
        (["stage=sft", "model.path=MODEL"], None, None),
        (["ppo.critic_init=MODEL"], ["InternLM2ForRewardModel"], None),
    ],
)
def test_models_of_the_other_kind_are_refused_before_anything_is_trained(
    bare_model: Path, overrides: list[str], architectures: list[str] | None, told: str | None
) -> None:
    fields = json.loads((bare_model / "config.json").read_text())
    (bare_model / "config.json").write_text(json.dumps({**fields, "architectures": architectures}))
    config = compose([*SMALL, *(each.replace("MODEL", str(bare_model)) for each in overrides)])
    if told is None:
        check_models(config)
    else:
        with pytest.raises(UserError, match=told):
            check_models(config)


@pytest.mark.parametrize("key", ["model.path", "sft.path", "reward.path", "ppo.critic_init"])
def test_a_checkpoint_without_its_weights_is_refused_before_anything_is_trained(bare_model: Path, key: str) -> None:
    fields = json.loads((bare_model / "config.json").read_text())
    architectures = ["InternLM2ForRewardModel" if key == "reward.path" else "InternLM2ForCausalLM"]
    (bare_model / "config.json").write_text(json.dumps({**fields, "architectures": architectures}))
    config = compose([*SMALL, f"{key}={bare_model}"])
    check_models(config)
    (bare_model / "model.safetensors").rename(bare_model / "model-00001-of-00003.safetensors")
    check_models(config)
    index = bare_model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{k}": f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)}}))
    told = rf"^{key.replace('.', '[.]')}: .*model lacks model-00002-of-00003\.safetensors and 1 others of its weights"
    with pytest.raises(UserError, match=told):
        check_models(config)
    index.write_text("[]")
    with pytest.raises(UserError, match=r"index\.json is no index of weights: copy"):
        check_models(config)
    index.unlink()
    (bare_model / "model-00001-of-00003.safetensors").unlink()
    torch.save({}, bare_model / "pytorch_model.bin")
    check_models(config)
    (bare_model / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=rf"^{key}: .*model holds neither safetensors files nor pytorch_model\*\.bin"):
        check_models(config)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2000\n"


@pytest.mark.parametrize("name", ["model.safetensors", "model-00002-of-00002.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("pointer", [True, False])
def test_weights_that_are_not_whole_are_refused_before_anything_is_trained(
    bare_model: Path, name: str, pointer: bool
) -> None:
    (bare_model / "model.safetensors").unlink()
    weights = {"weight": torch.zeros(1000)}
    file = bare_model / name
    if name.endswith(".bin"):
        torch.save(weights, file)
    else:
        save_file(weights, file)
    if name.startswith("model-"):
        save_file(weights, bare_model / "model-00001-of-00002.safetensors")
        parts = {f"w{k}": f"model-0000{k}-of-00002.safetensors" for k in (1, 2)}
        (bare_model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (bare_model / "consolidated.safetensors").write_bytes(LFS_POINTER)  # what nothing reads may be left behind
    if name.endswith(".bin"):
        (bare_model / "consolidated.safetensors").unlink()
    config = compose([*SMALL, "collect.prompts=0", f"sft.path={bare_model}"])
    check_models(config)
    file.write_bytes(LFS_POINTER if pointer else file.read_bytes()[:2000])
    with pytest.raises(UserError, match=rf"^sft\.path: {file} holds no whole weights: it was cut off, or Git LFS"):
        check_models(config)


def test_weights_as_old_versions_of_torch_wrote_them_are_taken(bare_model: Path) -> None:
    (bare_model / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(10)}, bare_model / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    check_models(compose([*SMALL, "collect.prompts=0", f"sft.path={bare_model}"]))


@pytest.mark.parametrize("key", ["reward.path", "ppo.critic_init"])
def test_a_reward_model_whose_head_cannot_be_kept_is_refused_before_anything_is_trained(
    tmp_path: Path, key: str
) -> None:
    """What SFT trains would otherwise have to wait for the scorer's start."""
    folder = tmp_path / "foreign"
    foreign_model(folder)

    def check(labels: int) -> None:
        names = {str(index): f"label {index}" for index in range(labels)}
        fields = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], "id2label": names}
        (folder / "config.json").write_text(json.dumps(fields))
        check_models(compose([*SMALL, f"{key}={folder}"]))

    with pytest.raises(UserError, match=rf"^{key}: .* is a classifier with 2 labels, no reward model"):
        check(2)
    with pytest.raises(UserError, match=rf"^{key}: .* was trained on another chat format than ChatML"):
        check(1)
    train_tokenizer(["why is it so? " * 9], 400).save_pretrained(folder)
    check(1)


@pytest.mark.parametrize("field", ["layer_types", "layers_block_type"])
def test_layers_that_would_mix_a_packs_sequences_are_refused(bare_model: Path, field: str) -> None:
    fields = json.loads((bare_model / "config.json").read_text())
    config = compose([*SMALL, "stage=sft", f"model.path={bare_model}"])
    (bare_model / "config.json").write_text(json.dumps({**fields, field: ["full_attention", "sliding_attention"]}))
    check_models(config)
    (bare_model / "config.json").write_text(
        json.dumps({**fields, field: ["full_attention", "linear_attention", "mamba"]})
    )
    with pytest.raises(UserError, match=r"^model\.path: .* has layers of linear_attention, mamba, through which"):
        check_models(config)


def test_a_critic_with_other_tokens_than_the_policy_is_refused(bare_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train_tokenizer(["and now for something else " * 9], 400).save_pretrained(other)
    fields = json.loads((bare_model / "config.json").read_text())
    save_file({}, other / "model.safetensors")
    for folder in (bare_model, other):
        (folder / "config.json").write_text(json.dumps({**fields, "architectures": ["InternLM2ForRewardModel"]}))
    chat = tmp_path / "chat"
    shutil.copytree(bare_model, chat)
    (chat / "config.json").write_text(json.dumps(fields))
    given = [*SMALL, f"sft.path={chat}", "collect.prompts=0"]
    check_models(compose([*given, f"reward.path={bare_model}"]))
    check_models(compose([*given, f"reward.path={other}", "ppo.critic_init=sft"]))
    for named in (f"reward.path={other}", f"ppo.critic_init={other}"):
        with pytest.raises(UserError, match=r"cannot start from .*other tokens than the policy .*ppo\.critic_init=sft"):
            check_models(compose([*given, named]))


@pytest.mark.parametrize("text", ["{broken", "[1]"])
@pytest.mark.parametrize("key", ["model.path", "sft.path", "reward.path"])
def test_a_config_that_is_no_object_is_named(bare_model: Path, key: str, text: str) -> None:
    (bare_model / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"^{key}: .*config\.json is not (valid JSON|a JSON object).*: it is no check"):
        check_models(compose([*SMALL, f"{key}={bare_model}"]))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_type": "llama", "vocab_size": "many"}, "cannot load a model from"),
        ({"model_type": "unheard_of"}, "cannot load a model from"),
        ({"model_type": "llama", "head_dim": "x"}, "cannot load a model from"),
    ],
)
def test_a_config_that_makes_no_model_is_named(bare_model: Path, fields: dict[str, str], told: str) -> None:
    (bare_model / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=rf"^sft\.path: {told}"):
        check_models(compose([*SMALL, f"sft.path={bare_model}"]))


@pytest.mark.parametrize("given", [False, True])
def test_an_engine_is_cut_into_as_many_heads_a_gpu(bare_model: Path, given: bool) -> None:
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2}
    fields = json.loads((bare_model / "config.json").read_text()) | sizes | {"intermediate_size": 64}
    (bare_model / "config.json").write_text(json.dumps(fields))
    fresh = ["model.hidden_size=96", "model.heads=6", "model.kv_heads=2"]
    names = [*SMALL, *([f"model.path={bare_model}"] if given else fresh)]
    check_models(compose([*names, "cluster.rollout.tensor_parallel_size=3"]))
    with pytest.raises(UserError, match=r"tensor_parallel_size is 4, but the model has 6 attention heads"):
        check_models(compose([*names, "cluster.rollout.tensor_parallel_size=4"]))
