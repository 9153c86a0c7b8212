"""What is found out of models before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cool_rlhf.compose import compose
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.model_checks import check_models
from cool_rlhf.protocols import UserError

SMALL = ["+experiment=smoke", *(f"data.world.{part}=20" for part in ("sft", "preferences", "prompts", "pretrain"))]


def test_a_checkpoint_without_room_for_the_chat_tokens_is_not_sampled_from(tmp_path: Path) -> None:
    vocabulary = {letter: index for index, letter in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    folder = tmp_path / "llama"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    (folder / "model.safetensors").touch()

    def check(rows: int, *overrides: str) -> None:
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": rows}))
        check_models(compose([*SMALL, f"sft.path={folder}", "collect.prompts=0", *overrides]))

    full = len(vocabulary)
    for stage in ("stage=ppo", "stage=pipeline", "stage=evaluate"):
        with pytest.raises(UserError, match=r"llama has no rows for the chat tokens .* \(model\.path\)"):
            check(full, stage)
    with pytest.raises(UserError, match="no rows for the chat tokens"):
        check(full, "stage=reward", "collect.prompts=5")
    check(full, "stage=reward")
    check(full + 3, "stage=ppo")


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
    (bare_model / "model-00001-of-00003.safetensors").rename(bare_model / "pytorch_model.bin")
    check_models(config)
    (bare_model / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=rf"^{key}: .*model holds neither safetensors files nor pytorch_model\*\.bin"):
        check_models(config)


@pytest.mark.parametrize("key", ["reward.path", "ppo.critic_init"])
def test_a_reward_model_whose_head_cannot_be_kept_is_refused_before_anything_is_trained(
    tmp_path: Path, key: str
) -> None:
    """What SFT trains would otherwise have to wait for the scorer's start."""
    folder = tmp_path / "foreign"
    vocabulary = {letter: index for index, letter in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    (folder / "model.safetensors").touch()

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
    (other / "model.safetensors").touch()
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
def test_a_config_that_is_no_object_is_named(bare_model: Path, text: str) -> None:
    (bare_model / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not (valid JSON|a JSON object).*: it is no checkpoint's"):
        check_models(compose([*SMALL, f"reward.path={bare_model}"]))
