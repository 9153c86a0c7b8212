"""What PPO reads before anything of it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cool_rlhf.compose import compose
from cool_rlhf.data.chat import encode_prompt
from cool_rlhf.data.streams import TextPosition
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.preflight import check_data
from cool_rlhf.protocols import PreferencePair, UserError
from cool_rlhf.provenance import outputs
from cool_rlhf.stages.data import StageData, encode_text, write_pairs
from cool_rlhf.stages.inputs import Inputs

SMALL = ["+experiment=smoke", *(f"data.world.{part}=20" for part in ("sft", "preferences", "prompts"))]
LONGEST = 4096  # tokens
TOKENIZER = train_tokenizer(["Why is it so? Because it is."], 640)


@pytest.fixture
def stage_data():
    """Of a small run with overrides."""

    def make(*overrides: str) -> StageData:
        config = compose([*SMALL, *overrides])
        return StageData(config, Inputs(config))

    return make


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("off", ["ppo.pretrain_coefficient=0", "ppo.pretrain_ratio=0"])
def test_without_the_loss_on_texts_none_are_taken_though_held_out_ones_are_looked_at(stage_data, off: str) -> None:
    data = stage_data(off, "data.world.pretrain=40").ppo(TOKENIZER, LONGEST, 0)
    assert data.pretrain.take(TextPosition(), 50) == ([], TextPosition())
    assert data.held_out_texts
    assert stage_data("data.world.pretrain=40").ppo(TOKENIZER, LONGEST, 0).pretrain.take(TextPosition(), 50)[0]


def test_sampled_responses_that_spell_special_tokens_are_learnt_from(stage_data, tmp_path: Path) -> None:
    data = stage_data(f"output_dir={tmp_path}", "reward.validation_share=0")
    asked = [{"role": "user", "content": "why?"}]
    chosen, rejected = ([*asked, {"role": "assistant", "content": text}] for text in ("so<|im_end|>\n<|reward|>", ""))
    pair = PreferencePair(chosen, rejected, "brief", None, True, True)
    write_pairs(outputs(data.config)["collect"], [pair])
    assert data.preferences().training[-1] == pair


@pytest.mark.parametrize("own", [[], [{"role": "system", "content": "Be kind."}]])
def test_a_system_turn_that_sampling_adds_makes_no_other_prompt_of_one(stage_data, tmp_path: Path, own: list) -> None:
    """``own``: what the user's rows have in front, as some name the same turn there too."""

    def pair(question: str, front: list[dict[str, str]]) -> dict:
        asked = [*front, {"role": "user", "content": question}]
        return {"prompt": asked, "chosen": "so", "rejected": "no", "domain": "brief"}

    given = write(tmp_path / "given.jsonl", *(pair(f"question {number}?", own) for number in range(40)))
    held = write(tmp_path / "held.jsonl", pair("held?", own))
    tested = write(tmp_path / "tested.jsonl", pair("tested?", own))
    kind = [{"role": "system", "content": "Be kind."}]
    sampled = [
        pair(question, kind) for question in (*(f"question {number}?" for number in range(40)), "held?", "tested?")
    ]

    def split(*overrides: str) -> tuple[set[str], set[str]]:
        data = stage_data(
            f"data.preferences=[{given}]",
            f"data.test_preferences=[{tested}]",
            f"output_dir={tmp_path}",
            "sampling.system_prompt='Be kind.'",
            *overrides,
        )
        outputs(data.config)["collect"].parent.mkdir(parents=True, exist_ok=True)
        write(outputs(data.config)["collect"], *sampled)
        found = data.preferences()
        return tuple({p.chosen[-2]["content"] for p in pairs} for pairs in (found.training, found.validation))

    training, validation = split("reward.validation_share=0.3")
    assert training.isdisjoint(validation)
    assert len(validation) > 4
    assert "tested?" not in training | validation
    training, validation = split(f"data.validation_preferences=[{held}]")
    assert len(training) == 40
    assert validation == {"held?"}


@pytest.mark.parametrize("off", ["ppo.pretrain_coefficient=0", "ppo.pretrain_ratio=0"])
def test_without_the_loss_on_texts_a_run_needs_none(stage_data, tmp_path: Path, off: str) -> None:
    rows = [{"prompt": f"question {number}?"} for number in range(30)]
    prompts = write(tmp_path / "prompts.jsonl", *rows)
    own = ["sft.path=a", "reward.path=b", "stage=ppo", "data.world=null", f"data.prompts=[{prompts}]"]
    made = stage_data(*own, off)
    check_data(made.config)
    data = made.ppo(TOKENIZER, LONGEST, 0)
    assert data.pretrain.take(TextPosition(), 50) == ([], TextPosition())
    assert data.held_out_texts == []


def test_texts_that_nobody_looks_at_are_not_read(stage_data, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number}?"} for number in range(30)]
    prompts = write(tmp_path / "prompts.jsonl", *rows)
    own = ["sft.path=a", "reward.path=b", "stage=ppo", "data.world=null", f"data.prompts=[{prompts}]"]
    made = stage_data(*own, "data.pretrain=[gone.jsonl]", "ppo.pretrain_coefficient=0", "ppo.validation_texts=0")
    check_data(made.config)
    assert made.ppo(TOKENIZER, LONGEST, 0).held_out_texts == []


def test_long_texts_are_learnt_from_to_their_end(stage_data, tmp_path: Path) -> None:
    text = "Why is it so? " * 40
    texts = write(tmp_path / "texts.jsonl", {"text": text}, {"text": "Because."})
    whole = torch.cat(encode_text(TOKENIZER, text, 10**6)).tolist()
    length = (len(whole) - 1) // 3  # three pieces, and a last one of one token or more
    pieces = encode_text(TOKENIZER, text, length)
    assert {piece.dtype for piece in pieces} == {torch.int32}
    assert whole[: sum(map(len, pieces))] == torch.cat(pieces).tolist()
    assert len(whole) - sum(map(len, pieces)) <= 1, "a single token has nothing to predict"
    data = stage_data(f"data.pretrain=[{texts}]", f"data.validation_pretrain=[{texts}]", f"sft.max_length={length}")
    assert len(data.ppo(TOKENIZER, LONGEST, 0).held_out_texts[0]) == length
    learnt = stage_data(f"data.pretrain=[{texts}]", f"sft.max_length={length}").ppo(TOKENIZER, LONGEST, 0).pretrain
    taken, _ = learnt.take(TextPosition(), 3 * length)
    assert sum(map(len, taken)) == 3 * length
    assert max(map(len, taken)) <= length


def test_no_text_becomes_a_special_token() -> None:
    text = "a</s>b<|im_end|>\n<|im_start|>user\n<|reward|><s>"
    start, *tokens = torch.cat(encode_text(TOKENIZER, text, 10**6)).tolist()
    assert start == TOKENIZER.bos_token_id
    assert not set(tokens) & set(TOKENIZER.all_special_ids)
    assert TOKENIZER.decode(tokens) == text
    plain = "Why is it so? Because it is.\n  < | s >"
    (piece,) = encode_text(TOKENIZER, plain, 10**6)
    assert piece.tolist() == [start, *TOKENIZER.encode(plain, add_special_tokens=False)]


def test_no_sequence_is_longer_than_the_model_has_positions(stage_data, tmp_path: Path) -> None:
    text = "Why is it so? " * 40
    texts = write(tmp_path / "texts.jsonl", {"text": text}, {"text": "Because."})
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
    chats = write(tmp_path / "chats.jsonl", {"messages": turns})
    files = (f"data.sft=[{chats}]", f"data.pretrain=[{texts}]", f"data.validation_pretrain=[{texts}]")
    prompts = write(tmp_path / "prompts.jsonl", {"prompt": "why?"}, {"prompt": "how?"})
    data = stage_data(*files, f"data.prompts=[{prompts}]", "sft.max_length=400")
    assert max(len(chat.tokens) for chat in data.chats(TOKENIZER, 90)) == 90
    read = data.ppo(TOKENIZER, 90, 0)
    assert len(read.held_out_texts[0]) == 90
    learnt = stage_data(*files[:2], f"data.prompts=[{prompts}]", "sft.max_length=400").ppo(TOKENIZER, 90, 0).pretrain
    assert max(len(taken) for taken in learnt.take(TextPosition(), 180)[0]) == 90


def test_validation_reads_texts_of_all_sources(stage_data, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", *({"text": f"{name} {k}"} for k in range(9))) for name in "zya"]
    given = f"data.validation_pretrain=[{','.join(map(str, files))}]"
    read = stage_data(given, "ppo.validation_texts=3").ppo(TOKENIZER, LONGEST, 0).held_out_texts
    assert [TOKENIZER.decode(text[1:]) for text in read] == ["z 0", "y 0", "a 0"]


@pytest.mark.parametrize("kind", ["prompts", "validation_prompts"])
def test_a_prompt_without_room_for_a_response_is_found_before_the_round_begins(
    stage_data, tmp_path: Path, kind: str
) -> None:
    rows = [{"prompt": text} for text in ("why?", "why is it so? " * 90, "why is it so? " * 80)]
    short = write(tmp_path / "short.jsonl", {"prompt": "how?"})
    files = {"prompts": short, "validation_prompts": short, kind: write(tmp_path / "rows.jsonl", *rows)}
    if kind == "prompts":
        files["validation_prompts"] = write(tmp_path / "held.jsonl", {"prompt": "who?"})
    data = stage_data(*(f"data.{name}=[{path}]" for name, path in files.items()))
    asked = data.inputs.prompts if kind == "prompts" else data.inputs.validation
    lengths = {prompt.id: len(encode_prompt(TOKENIZER, prompt.messages)) for prompt in asked}
    first = next(id for id, length in lengths.items() if length > 300)
    with pytest.raises(UserError) as caught:
        data.ppo(TOKENIZER, 300, 0)
    said = str(caught.value)
    assert said.startswith("the prompt that begins with 'why is it so? why is it so? ")
    assert f"has {lengths[first]} tokens, which leaves no room" in said
    assert "one of 2 such prompts" in said
    longest = max(lengths.values())
    with pytest.raises(UserError, match=rf"the model's {longest}: drop it"):
        data.ppo(TOKENIZER, longest, 0)
    data.ppo(TOKENIZER, longest + 1, 0)
