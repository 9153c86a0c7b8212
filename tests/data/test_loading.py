"""Files, their faults, and the records that come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cool_rlhf.compose import compose
from cool_rlhf.data.loading import (
    Reading,
    check_sources,
    load_chats,
    load_preferences,
    load_pretrain,
    load_prompts,
)
from cool_rlhf.data.sources import HubName, resolve
from cool_rlhf.data.splitting import split_by_prompt
from cool_rlhf.protocols import PreferencePair, Prompt, UserError

PAIR = {"prompt": "why?", "chosen": "so", "rejected": "no", "domain": "helpful", "margin": 0.5}
CHAT = {"messages": [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "so"}]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parquet(path: Path, *rows: dict[str, Any]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return str(path)


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_records_of_every_kind(tmp_path: Path, write: Any) -> None:
    suffix = ".jsonl" if write is jsonl else ".parquet"
    pairs = load_preferences([write(tmp_path / f"pairs{suffix}", PAIR, {**PAIR, "margin": None})])
    messages = [{"role": "user", "content": "why?"}]
    expected = PreferencePair(
        chosen=[*messages, {"role": "assistant", "content": "so"}],
        rejected=[*messages, {"role": "assistant", "content": "no"}],
        domain="helpful",
        margin=0.5,
        chosen_finished=True,
        rejected_finished=True,
    )
    assert (len(pairs), pairs[0], pairs[1].margin) == (2, expected, None)
    assert load_chats([write(tmp_path / f"chats{suffix}", CHAT)])[0] == {**CHAT, "domain": "default"}
    prompts = load_prompts([write(tmp_path / f"prompts{suffix}", {"prompt": "6 * 3?", "answer": 18})])
    assert prompts[0] == Prompt(prompts[0].id, [{"role": "user", "content": "6 * 3?"}], "default", "18")
    assert list(load_pretrain([write(tmp_path / f"texts{suffix}", {"text": "a"}, {"text": "b"})])) == ["a", "b"]


TOOLS = {"role": "system", "name": "plugin", "content": "a list of tools"}
ANSWERED = {"role": "environment", "name": "interpreter", "content": "7"}
SYSTEM, USER, CALL, SAID, OTHER = (
    {"role": role, "content": content}
    for role, content in (("system", "be kind"), ("user", "3 + 4?"), *(("assistant", text) for text in "abc"))
)
TOOL_DIALOGUES = {
    "name on a later turn": [SYSTEM, TOOLS, USER, CALL, ANSWERED],
    "name on the first turn": [TOOLS, USER, CALL, ANSWERED],
    "no name": [USER],
}


@pytest.mark.parametrize("write", [jsonl, parquet])
@pytest.mark.parametrize("first", TOOL_DIALOGUES)
def test_tools_turns_keep_their_names_and_others_have_none(tmp_path: Path, first: str, write: Any) -> None:
    dialogues = [TOOL_DIALOGUES[first], *TOOL_DIALOGUES.values()]
    chats = write(tmp_path / f"chats.{write.__name__}", *({"messages": [*turns, SAID]} for turns in dialogues))
    assert [chat["messages"] for chat in load_chats([chats])] == [[*turns, SAID] for turns in dialogues]
    asked = write(tmp_path / f"prompts.{write.__name__}", *({"prompt": turns} for turns in dialogues))
    assert [prompt.messages for prompt in load_prompts([asked])] == dialogues
    assert load_prompts([asked], Reading(system="be kind"))[2].messages == TOOL_DIALOGUES["name on a later turn"]
    rows = ({"prompt": turns, "chosen": [SAID], "rejected": [OTHER]} for turns in dialogues)
    pairs = load_preferences([write(tmp_path / f"pairs.{write.__name__}", *rows)])
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [([*t, SAID], [*t, OTHER]) for t in dialogues]


def test_records_are_read_in_order_by_index_slice_and_walk(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(2500)]
    records = load_pretrain([jsonl(tmp_path / "texts.jsonl", *({"text": text} for text in texts))])
    assert list(records) == texts
    assert records[10:13] == texts[10:13]
    assert records[-1] == texts[-1]


def test_globs_and_files_join_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        jsonl(tmp_path / f"{name}.jsonl", {"text": name})
    parquet(tmp_path / "c.parquet", {"text": "c"})
    sources = [str(tmp_path / "c.parquet"), str(tmp_path / "*.jsonl")]
    assert list(load_pretrain(sources)) == ["c", "a", "b"]
    assert check_sources("pretrain", sources) == 3


def test_nothing_named_is_nothing_read() -> None:
    assert list(load_prompts([])) == []
    assert check_sources("prompts", []) == 0


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    assert list(load_pretrain([jsonl(path, {"text": "old"})])) == ["old"]
    assert list(load_pretrain([jsonl(path, {"text": "newer"})])) == ["newer"]


def test_byte_order_mark_crlf_and_blank_lines_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert list(load_pretrain([str(path)])) == ["a", "b"]


def fault(kind: str, source: str | Path, reading: Reading | None = None) -> str:
    with pytest.raises(UserError) as caught:
        check_sources(kind, [str(source)], reading)
    text = str(caught.value)
    assert "\n" not in text
    assert f"data.{kind}" in text
    return text


def test_bad_row_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good, bad = json.dumps(PAIR), json.dumps({**PAIR, "chosen": None})
    path.write_text(f"{good}\n\n{bad}\n{good}\n{bad}\n{bad}\n", encoding="utf-8")
    text = fault("preferences", path)
    assert f"{path}, row 3: field `chosen` is null" in text
    assert "2 more bad rows" in text


def test_bad_row_in_parquet(tmp_path: Path) -> None:
    rows = [{"text": "a"}] * 1500 + [{"text": " "}]
    assert "row 1501: field `text` is empty" in fault("pretrain", parquet(tmp_path / "texts.parquet", *rows))


def test_loading_says_the_same_as_checking(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "texts.jsonl", {"text": "a"}, {"text": 3})
    with pytest.raises(UserError) as caught:
        load_pretrain([source])
    assert str(caught.value) == fault("pretrain", source)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no rows"),
        (b"\n\n", "no rows"),
        (b'{"text": "a"}\n{"text": "b', "row 2 is not valid JSON"),
        (b'["a"]\n', "row 1 is not a JSON object"),
        (b'{"text": "\xff"}\n', "row 1 is not UTF-8"),
        (b"[" * 100_000 + b"\n", "row 1 is not valid JSON"),
        ('{"text": "a"}\n'.encode("utf-16"), "row 1 is not UTF-8"),
    ],
)
def test_unreadable_content(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(content)
    assert said in fault("pretrain", path)


def test_broken_and_empty_parquet(tmp_path: Path) -> None:
    path = tmp_path / "texts.parquet"
    path.write_bytes(b"PAR1 not really")
    assert "cannot be read as Parquet" in fault("pretrain", path)
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    assert "no rows" in fault("pretrain", path)


def test_a_cache_that_takes_no_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").touch()
    for folder, why in (
        (Path("/proc/nope/datasets"), "No such file or directory"),
        (tmp_path / "taken", "File exists"),
    ):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
        with pytest.raises(UserError) as caught:
            load_pretrain([jsonl(tmp_path / "rows.jsonl", {"text": "so"})])
        assert str(caught.value) == (
            f"checked rows are kept in {folder}, which takes no files ({why}): set HF_DATASETS_CACHE, or HF_HOME, to a "
            "folder that does"
        )


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    assert "there is no file" in fault("sft", tmp_path / "missing.jsonl")
    assert "no file matches" in fault("sft", tmp_path / "*.parquet")
    assert "is a folder" in fault("sft", tmp_path)
    assert "neither JSON lines" in fault("sft", tmp_path / "rows.json")
    assert "there is no file data/rows.csv" in fault("sft", "data/rows.csv")


def test_rows_that_prefer_nothing_are_left_out_unless_there_are_no_others(tmp_path: Path) -> None:
    same = {**PAIR, "rejected": PAIR["chosen"]}
    assert len(load_preferences([jsonl(tmp_path / "some.jsonl", same, PAIR)])) == 1
    assert "row 1: field `rejected` is the same" in fault("preferences", jsonl(tmp_path / "all.jsonl", same, same))


def test_domains_are_those_of_the_conditions(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "pairs.jsonl", PAIR)
    assert "`domain` is 'helpful'" in fault("preferences", source, Reading.of(compose(["+experiment=demo"])))
    assert check_sources("preferences", [source], Reading.of(compose([]))) == 1


def test_source_gives_its_rows_a_domain(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "prompts.jsonl", {"prompt": "why?"})
    reading = Reading(domain_of_source=((source, "helpful"),))
    assert load_prompts([source], reading)[0].domain == "helpful"


def test_a_set_gives_all_of_its_splits_a_domain_unless_one_is_named_itself() -> None:
    reading = Reading(domain_of_source=(("a/b@c", "helpful"), ("a/b@c:test", "harmless"), ("/data/x", "math")))
    named = ["a/b@c", "a/b@c:train[:9]", "a/b@c:test", "a/b", "/data/x:y.jsonl"]
    assert [reading.rules(source).domain for source in named] == [
        "helpful", "helpful", "harmless", "default", "default",
    ]  # fmt: skip


def test_hub_names() -> None:
    assert resolve("owner/name", "data.sft") == [HubName("owner/name", None, None, "train")]
    configured = HubName("owner/name-v0.2", None, "main", "test_sft")
    assert resolve("owner/name-v0.2@main:test_sft", "data.sft") == [configured]
    assert resolve("owner/name@in/side/:test", "data.sft") == [HubName("owner/name", "in/side", None, "test")]
    assert str(HubName("owner/name", "in/side", None, "test")) == "owner/name@in/side/:test"
    assert resolve("owner/name:train[:1000]", "data.sft") == [HubName("owner/name", None, None, "train[:1000]")]
    for not_one in ("name", "a/b/c", "./a", "/a/b", "a/b.jsonl"):
        with pytest.raises(UserError, match="there is no file"):
            resolve(not_one, "data.sft")


def test_split_keeps_a_prompt_on_one_side_whatever_its_domain() -> None:
    prompts = [
        Prompt(f"{number}-{domain}", [{"role": "user", "content": f"question {number}"}], domain, None)
        for number in range(40)
        for domain in ("brief", "thorough")
    ]
    kept, held = split_by_prompt(prompts, 0.25, 3, lambda prompt: prompt.messages)
    assert (len(kept), len(held)) == (60, 20)

    def asked(side: list[Prompt]) -> set[str]:
        return {prompt.messages[0]["content"] for prompt in side}

    assert not asked(kept) & asked(held)
    assert split_by_prompt(list(reversed(prompts)), 0.25, 3, lambda p: p.messages)[1] == list(reversed(held))
    assert split_by_prompt(prompts, 0.25, 4, lambda p: p.messages)[1] != held
    assert split_by_prompt(prompts, 0.0, 3, lambda p: p.messages) == (prompts, [])
    assert len(split_by_prompt(prompts, 0.001, 3, lambda p: p.messages)[1]) == 2
