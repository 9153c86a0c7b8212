"""What is found out of models and prompts before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cool_rlhf.compose import compose
from cool_rlhf.preflight import check_data
from cool_rlhf.protocols import UserError
from cool_rlhf.stages.data import StageData
from cool_rlhf.stages.inputs import Inputs

SMALL = ["+experiment=smoke", *(f"data.world.{part}=20" for part in ("sft", "preferences", "prompts", "pretrain"))]
POSITIONS = 200  # of the bare model


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("key", ["prompts", "validation_prompts", "test_prompts"])
@pytest.mark.parametrize("path", ["model.path", "sft.path"])
def test_a_prompt_that_leaves_no_room_is_a_bad_row(bare_model: Path, tmp_path: Path, key: str, path: str) -> None:
    good, full = "why is it so? " * 20, "why is it so? " * 60  # the first has more letters than the model positions
    files = {
        "prompts": write(tmp_path / "asked.jsonl", {"prompt": "who?"}, {"prompt": "how?"}),
        "validation_prompts": write(tmp_path / "held.jsonl", {"prompt": "when?"}),
    }
    files[key] = write(tmp_path / "rows.jsonl", {"prompt": "why?"}, {"prompt": full}, {"prompt": good})
    own = [*SMALL, f"{path}={bare_model}", *(f"data.{name}=[{file}]" for name, file in files.items())]
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
def test_positions_are_known_by_the_familys_name(bare_model: Path, tmp_path: Path, name: str) -> None:
    fields = {"model_type": "gpt2", "vocab_size": 640, "max_position_embeddings": None, name: POSITIONS}
    (bare_model / "config.json").write_text(json.dumps(fields))
    asked = write(tmp_path / "asked.jsonl", {"prompt": "why?"}, {"prompt": "why is it so? " * 60}, {"prompt": "who?"})
    own = [*SMALL, f"sft.path={bare_model}", f"data.prompts=[{asked}]"]
    with pytest.raises(UserError, match=r"row 2: field `prompt` has \d+ tokens, which leaves no room .* 200 tokens"):
        check_data(compose(own))
    (bare_model / "config.json").write_text(json.dumps({**fields, name: None}))
    check_data(compose(own))


def test_evaluation_goes_by_the_models_at_hand(bare_model: Path, tmp_path: Path) -> None:
    tested = write(tmp_path / "tested.jsonl", {"prompt": "why?"}, {"prompt": "why is it so? " * 60})
    own = [
        *SMALL,
        "stage=evaluate",
        f"output_dir={tmp_path}",
        f"reward.path={bare_model}",
        f"data.test_prompts=[{tested}]",
    ]
    with pytest.raises(UserError, match=r"data\.test_prompts: .*row 2: field `prompt` has \d+ tokens"):
        check_data(compose([*own, f"sft.path={bare_model}"]))
    check_data(compose([*own, f"sft.path={bare_model}", "data.bad_rows=drop"]))


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
    bare_model: Path, tmp_path: Path, name: str, overrides: list[str], reads: bool
) -> None:
    """Though it could do without any."""
    chosen = [*SMALL, *(each.replace("MODEL", str(bare_model)) for each in overrides)]
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
