"""What is found out of models and prompts before anything is trained."""

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
from cool_rlhf.preflight import check_data
from cool_rlhf.protocols import UserError
from cool_rlhf.stages.data import StageData
from cool_rlhf.stages.inputs import Inputs

SMALL = ["+experiment=smoke", *(f"data.world.{part}=20" for part in ("sft", "preferences", "prompts", "pretrain"))]
POSITIONS = 200


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What is looked at of a checkpoint before it is loaded: its tokenizer, its config, and that it has weights."""
    folder = tmp_path / "model"
    train_tokenizer(["why is it so? " * 9], 640).save_pretrained(folder)
    fields = {"model_type": "internlm2", "vocab_size": 640, "max_position_embeddings": POSITIONS}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "model.safetensors").touch()
    return folder


@pytest.mark.parametrize("key", ["prompts", "validation_prompts", "test_prompts"])
@pytest.mark.parametrize("path", ["model.path", "sft.path"])
def test_a_prompt_that_leaves_no_room_is_a_bad_row(model: Path, tmp_path: Path, key: str, path: str) -> None:
    good, full = "why is it so? " * 20, "why is it so? " * 60  # the first has more letters than the model positions
    files = {
        "prompts": write(tmp_path / "asked.jsonl", {"prompt": "who?"}, {"prompt": "how?"}),
        "validation_prompts": write(tmp_path / "held.jsonl", {"prompt": "when?"}),
    }
    files[key] = write(tmp_path / "rows.jsonl", {"prompt": "why?"}, {"prompt": full}, {"prompt": good})
    own = [*SMALL, f"{path}={model}", *(f"data.{name}=[{file}]" for name, file in files.items())]
    told = rf"data\.{key}: .*rows\.jsonl, row 2: field `prompt` has \d+ tokens, which leaves no room .* 200 tokens"
    with pytest.raises(UserError, match=told):
        check_data(compose(own))
    config = compose([*own, "data.bad_rows=drop"])
    check_data(config)
    inputs = Inputs(config)
    if key != "test_prompts":
        asked = {prompt.messages[-1]["content"] for prompt in (*inputs.prompts, *inputs.validation)}
        assert good in asked
        assert full not in asked
    with pytest.raises(UserError, match="leaves no room"):
        check_data(compose([*own, f"sampling.system_prompt='{'why? ' * POSITIONS}'"]))


@pytest.mark.parametrize("name", ["n_positions", "max_seq_len", "seq_length"])
def test_positions_are_known_by_the_familys_name(model: Path, tmp_path: Path, name: str) -> None:
    fields = {"model_type": "gpt2", "vocab_size": 640, "max_position_embeddings": None, name: POSITIONS}
    (model / "config.json").write_text(json.dumps(fields))
    asked = write(tmp_path / "asked.jsonl", {"prompt": "why?"}, {"prompt": "why is it so? " * 60}, {"prompt": "who?"})
    own = [*SMALL, f"sft.path={model}", f"data.prompts=[{asked}]"]
    with pytest.raises(UserError, match=r"row 2: field `prompt` has \d+ tokens, which leaves no room .* 200 tokens"):
        check_data(compose(own))
    (model / "config.json").write_text(json.dumps({**fields, name: None}))
    check_data(compose(own))


def test_evaluation_goes_by_the_models_at_hand(model: Path, tmp_path: Path) -> None:
    tested = write(tmp_path / "tested.jsonl", {"prompt": "why?"}, {"prompt": "why is it so? " * 60})
    own = [*SMALL, "stage=evaluate", f"output_dir={tmp_path}", f"reward.path={model}", f"data.test_prompts=[{tested}]"]
    with pytest.raises(UserError, match=r"data\.test_prompts: .*row 2: field `prompt` has \d+ tokens"):
        check_data(compose([*own, f"sft.path={model}"]))
    check_data(compose([*own, f"sft.path={model}", "data.bad_rows=drop"]))


def test_of_fresh_weights_words_are_counted_before_there_is_a_tokenizer(tmp_path: Path) -> None:
    def config(text: str):
        asked = write(tmp_path / "asked.jsonl", {"prompt": "why?"}, {"prompt": text}, {"prompt": "who?"})
        held = write(tmp_path / "held.jsonl", {"prompt": "when?"})
        return compose([*SMALL, f"data.prompts=[{asked}]", f"data.validation_prompts=[{held}]"])

    positions = config("").model.max_positions
    with pytest.raises(UserError, match=rf"row 2: field `prompt` has {positions} words, which leaves no room"):
        check_data(config("a " * positions))
    made = config("ab " * (positions // 2) + "abcdefgh" * positions)
    check_data(made)
    with pytest.raises(UserError, match=r"the prompt that begins with 'ab ab .* leaves no room"):
        StageData(made, Inputs(made)).fresh_base(tmp_path / "base")


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


@pytest.mark.parametrize("name", ["pretrain", "validation_pretrain"])
@pytest.mark.parametrize(
    ("overrides", "reads"),
    [
        ([], True),
        (["ppo.pretrain_coefficient=0", "model.path=MODEL"], True),  # held-out ones, for the language model's loss
        (["ppo.pretrain_coefficient=0", "ppo.validation_texts=0", "model.path=MODEL"], False),
        (["stage=sft"], True),  # fresh weights have read nothing
        (["stage=reward"], True),
        (["stage=reward", "sft.path=MODEL"], False),
        (["stage=sft", "model.path=MODEL"], False),
    ],
)
def test_texts_that_a_stage_reads_are_looked_at_before_it(
    model: Path, tmp_path: Path, name: str, overrides: list[str], reads: bool
) -> None:
    """Though it could do without any."""
    chosen = [*SMALL, *(each.replace("MODEL", str(model)) for each in overrides)]
    check_data(compose(chosen))
    bad = write(tmp_path / "texts.jsonl", {"text": "so"}, {"text": 3})
    for source, told in (("gone.jsonl", "there is no file"), (bad, r"row 2: field `text` must be a string")):
        config = compose([*chosen, f"data.{name}=[{source}]"])
        if reads:
            with pytest.raises(UserError, match=rf"^data\.{name}: .*{told}"):
                check_data(config)
        else:
            check_data(config)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["conditions=default"],
            r"data\.preferences is empty, .* brief, thorough have no condition: set conditions=demo",
        ),
        (["~conditions.brief", "stage=sft"], None),
        (
            ["conditions=default", "stage=reward", "collect.prompts=4", "OWN"],
            r"data\.prompts .* set collect\.prompts=0",
        ),
        (["conditions=default", "stage=reward", "collect.prompts=0", "OWN"], None),
        (["conditions=default", "collect.prompts=0", "OWN"], r"data\.prompts is empty.*\[first,second\]$"),
    ],
)
def test_the_worlds_rows_need_conditions_of_their_domains(
    tmp_path: Path, overrides: list[str], told: str | None
) -> None:
    own = write(tmp_path / "own.jsonl", {"prompt": "Who?", "chosen": "I.", "rejected": "You.", "domain": "harmless"})
    config = compose([*SMALL, *(f"data.preferences=[{own}]" if each == "OWN" else each for each in overrides)])
    if told is None:
        check_data(config)
    else:
        with pytest.raises(UserError, match=told):
            check_data(config)


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
    model: Path, overrides: list[str], architectures: list[str] | None, told: str | None
) -> None:
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**fields, "architectures": architectures}))
    config = compose([*SMALL, *(each.replace("MODEL", str(model)) for each in overrides)])
    if told is None:
        check_models(config)
    else:
        with pytest.raises(UserError, match=told):
            check_models(config)


@pytest.mark.parametrize("key", ["model.path", "sft.path", "reward.path", "ppo.critic_init"])
def test_a_checkpoint_without_its_weights_is_refused_before_anything_is_trained(model: Path, key: str) -> None:
    fields = json.loads((model / "config.json").read_text())
    architectures = ["InternLM2ForRewardModel" if key == "reward.path" else "InternLM2ForCausalLM"]
    (model / "config.json").write_text(json.dumps({**fields, "architectures": architectures}))
    config = compose([*SMALL, f"{key}={model}"])
    check_models(config)
    (model / "model.safetensors").rename(model / "model-00001-of-00003.safetensors")
    check_models(config)
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{k}": f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)}}))
    told = rf"^{key.replace('.', '[.]')}: .*model lacks model-00002-of-00003\.safetensors and 1 others of its weights"
    with pytest.raises(UserError, match=told):
        check_models(config)
    index.write_text("[]")
    with pytest.raises(UserError, match=r"index\.json is no index of weights: copy"):
        check_models(config)
    index.unlink()
    (model / "model-00001-of-00003.safetensors").rename(model / "pytorch_model.bin")
    check_models(config)
    (model / "pytorch_model.bin").unlink()
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
def test_layers_that_would_mix_a_packs_sequences_are_refused(model: Path, field: str) -> None:
    fields = json.loads((model / "config.json").read_text())
    config = compose([*SMALL, "stage=sft", f"model.path={model}"])
    (model / "config.json").write_text(json.dumps({**fields, field: ["full_attention", "sliding_attention"]}))
    check_models(config)
    (model / "config.json").write_text(json.dumps({**fields, field: ["full_attention", "linear_attention", "mamba"]}))
    with pytest.raises(UserError, match=r"^model\.path: .* has layers of linear_attention, mamba, through which"):
        check_models(config)


def test_a_critic_with_other_tokens_than_the_policy_is_refused(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train_tokenizer(["and now for something else " * 9], 400).save_pretrained(other)
    fields = json.loads((model / "config.json").read_text())
    (other / "model.safetensors").touch()
    for folder in (model, other):
        (folder / "config.json").write_text(json.dumps({**fields, "architectures": ["InternLM2ForRewardModel"]}))
    chat = tmp_path / "chat"
    shutil.copytree(model, chat)
    (chat / "config.json").write_text(json.dumps(fields))
    given = [*SMALL, f"sft.path={chat}", "collect.prompts=0"]
    check_models(compose([*given, f"reward.path={model}"]))
    check_models(compose([*given, f"reward.path={other}", "ppo.critic_init=sft"]))
    for named in (f"reward.path={other}", f"ppo.critic_init={other}"):
        with pytest.raises(UserError, match=r"cannot start from .*other tokens than the policy .*ppo\.critic_init=sft"):
            check_models(compose([*given, named]))


@pytest.mark.parametrize("text", ["{broken", "[1]"])
def test_a_config_that_is_no_object_is_named(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not (valid JSON|a JSON object).*: it is no checkpoint's"):
        check_models(compose([*SMALL, f"reward.path={model}"]))


def test_pairs_of_which_none_is_left_are_found_before_anything_is_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair, other = (
        {"prompt": "Who?", "chosen": "I.", "rejected": "You."},
        {"prompt": "Why?", "chosen": "So", "rejected": "No"},
    )
    turned = {**pair, "chosen": "You.", "rejected": "I."}
    both, one, two = (
        write(tmp_path / f"{name}.jsonl", *rows)
        for name, rows in (("both", [pair, turned]), ("one", [pair]), ("two", [other]))
    )
    base = [*SMALL, "collect.prompts=0"]

    def refused(told: str, *overrides: str) -> None:
        with pytest.raises(UserError, match=told):
            check_data(compose([*base, *overrides]))

    refused("leaves no pair to train on: 2 labelled both ways in its domain", f"data.preferences=[{both}]")
    refused("prompt stands in the test rows", f"data.preferences=[{one}]", f"data.test_preferences=[{one}]")
    refused(
        "prompt stands in the validation pairs", f"data.preferences=[{one}]", f"data.validation_preferences=[{one}]"
    )
    refused("data.weights gives every source 0", f"data.preferences=[{one}]", f"+data.weights={{{one}:0}}")
    refused("leaves no pair to validate on", f"data.preferences=[{two}]", f"data.validation_preferences=[{both}]")
    assert not caplog.records, "the run's log says it, when there is one"
    check_data(compose([*base, f"data.preferences=[{one}]", f"data.validation_preferences=[{two}]"]))
