"""What reward training gets of the preferences that are named: dropped, held out, weighted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cool_rlhf.config import DataConfig
from cool_rlhf.data.identity import is_held_out, prompt_key
from cool_rlhf.data.loading import EQUAL, MALFORMED, Reading, load_preferences
from cool_rlhf.data.preferences import (
    NOT_DRAWN,
    OPPOSED,
    PROMPT_HELD_OUT,
    PROMPT_TESTED,
    REPEATED,
    PreferenceSplit,
    load_split,
    split_pairs,
    weighted,
)
from cool_rlhf.protocols import PreferencePair, UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pair(prompt: str, chosen: str, rejected: str, domain: str = "helpful", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "domain": domain, **more}


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def split(
    *sources: str, share: float = 0.0, validation: tuple[str, ...] = (), reading: Reading | None = None, **data: Any
) -> PreferenceSplit:
    config = DataConfig(preferences=list(sources), validation_preferences=list(validation), **data)
    return load_split(config, share, reading or Reading(), seed=1)


def shown(pairs: Any) -> list[tuple[str, str, str, str]]:
    return [(p.chosen[-2]["content"], p.chosen[-1]["content"], p.rejected[-1]["content"], p.domain) for p in pairs]


def test_rows_that_are_all_good_are_taken_as_they_come(tmp_path: Path) -> None:
    rows = [pair(f"question {number}", "so", "no") for number in range(5)]
    source = jsonl(tmp_path / "a.jsonl", *rows)
    found = split(source)
    assert list(found.training) == list(load_preferences([source]))
    assert (list(found.validation), found.drops, found.rows) == ([], Counter(), {"helpful": 5})


def test_a_pair_is_taken_once_in_each_domain(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "a.jsonl",
        pair("why?", "so", "no", margin=1.0),
        pair("Why?  ", "so", "no"),
        pair("why?", "so", "no", "harmless"),
        pair("why?", "So", "no"),
    )
    found = split(source)
    assert shown(found.training) == [
        ("why?", "so", "no", "helpful"),
        ("why?", "so", "no", "harmless"),
        ("why?", "So", "no", "helpful"),
    ]
    assert found.training[0].margin == 1.0
    assert found.drops == {("helpful", REPEATED): 1}


def test_opposite_labels_stay_across_domains_and_go_within_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = jsonl(tmp_path / "a.jsonl", pair("why?", "so", "no"), pair("who?", "I", "you"), pair("why?", "so", "no"))
    second = jsonl(tmp_path / "b.jsonl", pair("who?", "you", "I", "harmless"), pair("why?", "no", "so"))
    found = split(first, second)
    assert shown(found.training) == [("who?", "I", "you", "helpful"), ("who?", "you", "I", "harmless")]
    assert found.drops == {("helpful", OPPOSED): 3}
    assert f"{first}, row 1 and {second}, row 2" in caplog.text
    assert "1 of them" in caplog.text


def test_every_row_that_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [pair("why?", "so", "no"), pair("why?", "so", "so"), pair("who?", "", "you"), pair("why?", "so", "no")]
    source = jsonl(tmp_path / "a.jsonl", *rows)
    with pytest.raises(UserError, match="row 3: field `chosen` is empty"):
        split(source)
    reading = Reading(bad_rows="drop", domain_of_source=((source, "harmless"),))
    found = split(source, reading=reading)
    assert len(found.training) == 1
    assert found.drops == {("helpful", EQUAL): 1, ("helpful", REPEATED): 1, ("harmless", MALFORMED): 1}
    assert found.rows.total() == len(found.training) + found.drops.total() == 4
    assert f"left out: data.preferences: {source}, row 3: field `chosen` is empty" in caplog.text


def test_a_file_without_one_good_row_is_refused_even_where_bad_ones_are_left_out(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"question": "why?"}, {"question": "who?"})
    with pytest.raises(UserError, match="row 1: field `chosen` is missing"):
        split(source, reading=Reading(bad_rows="drop"))


def test_nothing_left_says_why(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", pair("why?", "so", "no"), pair("why?", "no", "so"))
    with pytest.raises(UserError, match=f"no pair to train on: 2 {OPPOSED}"):
        split(source)


def test_where_all_are_held_out_it_says_which_settings_hold_out(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", pair("why?", "so", "no"), pair("why?", "so", "no"))
    told = rf"1 {REPEATED}; 1 held out \(lower reward\.validation_share, or name data\.validation_preferences\)$"
    with pytest.raises(UserError, match=f"no pair to train on: {told}"):
        split(source, share=0.999)


def test_prompts_of_test_rows_are_not_learnt_from_nor_judged_by_while_learning(tmp_path: Path) -> None:
    rows = [pair(f"question {number}", "so", "no") for number in range(100)]
    tested = jsonl(tmp_path / "test.jsonl", *(pair(f"Question  {n}", "I", "you", "law") for n in range(10)))
    asked = jsonl(tmp_path / "asked.jsonl", {"prompt": "question 50"}, {"prompt": "who?"})
    held = jsonl(tmp_path / "held.jsonl", pair("question 60", "so", "no"))
    source = jsonl(tmp_path / "a.jsonl", *rows)
    reading = Reading(domains=("helpful",))  # what is tested may have domains that only another reward model knows
    tests = {"test_preferences": [tested], "test_prompts": [asked]}
    found = split(source, share=0.3, reading=reading, **tests)
    questions = {p.chosen[0]["content"] for p in [*found.training, *found.validation]}
    assert questions == {f"question {n}" for n in range(10, 100)} - {"question 50"}
    assert found.validation
    assert found.drops == {("helpful", PROMPT_TESTED): 11}
    named = split(source, validation=(held,), reading=reading, **tests)
    assert named.drops == {("helpful", PROMPT_TESTED): 11, ("helpful", PROMPT_HELD_OUT): 1}
    assert len(named.validation) == 1
    with pytest.raises(UserError, match=f"no pair to train on: 100 {PROMPT_TESTED}"):
        split(source, test_preferences=[source])


def test_pairs_for_validation_whose_prompts_are_tested_judge_nothing(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", pair("question 1", "so", "no"), pair("question 5", "so", "no"))
    held = jsonl(tmp_path / "held.jsonl", *(pair(f"question {n}", "so", "no", "harmless") for n in (1, 2, 3, 3)))
    tests = {
        "test_preferences": [jsonl(tmp_path / "test.jsonl", pair("Question  1", "I", "you"))],
        "test_prompts": [jsonl(tmp_path / "asked.jsonl", {"prompt": "question 2"})],
    }
    found = split(source, validation=(held,), **tests)
    assert [prompt for prompt, *_ in shown(found.validation)] == ["question 3"]
    assert found.drops == {("helpful", PROMPT_TESTED): 1, ("harmless", PROMPT_TESTED): 2, ("harmless", REPEATED): 1}
    assert Counter(found.held.values()) == {PROMPT_TESTED: 2, PROMPT_HELD_OUT: 1}
    with pytest.raises(UserError, match=f"validation_preferences leaves no pair to validate on: 3 {PROMPT_TESTED}"):
        split(source, validation=(held,), test_preferences=[held])


def test_a_share_of_the_prompts_is_held_out_whatever_their_domain(tmp_path: Path) -> None:
    rows = [pair(f"question {n}", f"so {n}", "no", domain) for n in range(300) for domain in ("helpful", "harmless")]
    found = split(jsonl(tmp_path / "a.jsonl", *rows), share=0.2)
    sides = [{prompt for prompt, *_ in shown(side)} for side in (found.training, found.validation)]
    assert sides[0].isdisjoint(sides[1])
    assert len(found.training) + len(found.validation) == 600
    assert 40 <= len(sides[1]) <= 80
    assert len(found.validation) == 2 * len(sides[1])
    more = split(jsonl(tmp_path / "b.jsonl", *rows[::2], pair("one more", "so", "no")), share=0.2)
    assert {prompt for prompt, *_ in shown(more.validation)} - {"one more"} == sides[1]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_about_the_share_is_held_out(share: float) -> None:
    keys = [prompt_key([{"role": "user", "content": f"question {number}"}]) for number in range(4000)]
    assert sum(is_held_out(key, share) for key in keys) / 4000 == pytest.approx(share, abs=0.02)


def test_prompts_named_for_validation_are_not_learnt(tmp_path: Path) -> None:
    training = jsonl(tmp_path / "a.jsonl", pair("Why?", "so", "no"), pair("who?", "I", "you"))
    validation = jsonl(tmp_path / "b.jsonl", pair("why?", "because", "no", "harmless"))
    found = split(training, validation=(validation,))
    assert shown(found.training) == [("who?", "I", "you", "helpful")]
    assert shown(found.validation) == [("why?", "because", "no", "harmless")]
    assert found.drops == {("helpful", PROMPT_HELD_OUT): 1}
    assert found.rows == {"helpful": 2, "harmless": 1}


def test_weights_say_how_often_a_sources_pairs_are_seen(tmp_path: Path) -> None:
    sources = [
        jsonl(tmp_path / f"{name}.jsonl", *(pair(f"{name} {number}", "so", "no") for number in range(10)))
        for name in ("twice", "half", "once", "never")
    ]
    weights = dict(zip(sources, (2.0, 0.5, 1.0, 0.0), strict=True))
    found = split(*sources, weights=weights)
    seen = Counter(prompt.split()[0] for prompt, *_ in shown(found.training))
    assert seen == {"twice": 20, "half": 5, "once": 10}
    assert [prompt for prompt, *_ in shown(found.training)][:4] == ["twice 0", "twice 0", "twice 1", "twice 1"]
    assert found.drops == {("helpful", NOT_DRAWN): 5}, "a source that is never drawn from is not read"


def test_a_source_of_weight_0_is_not_looked_at(tmp_path: Path) -> None:
    rows = [pair("why?", "so", "no"), pair("who?", "I", "you")]
    none, some = jsonl(tmp_path / "a.jsonl", *rows, pair("who?", "you", "I")), jsonl(tmp_path / "b.jsonl", *rows)
    found = load_split(DataConfig(preferences=[none, some], weights={none: 0.0}), 0.0, Reading(), 1)
    assert len(found.training) == 2
    assert found.drops == Counter()


def test_rows_that_validation_leaves_out_are_counted_too(tmp_path: Path) -> None:
    held = jsonl(tmp_path / "v.jsonl", pair("why?", "so", "no"), pair("why?", "so", "no"))
    data = DataConfig(
        preferences=[jsonl(tmp_path / "a.jsonl", pair("who?", "I", "you"))], validation_preferences=[held]
    )
    found = load_split(data, 0.0, Reading(), 1)
    assert found.drops == {("helpful", REPEATED): 1}
    assert found.rows.total() == len(found.training) + len(found.validation) + found.drops.total()


def test_fractions_above_one_repeat_a_draw_that_the_seed_fixes() -> None:
    sources = ["a"] * 100
    drawn = weighted(range(100), sources, {"a": 1.25}, seed=1)
    assert Counter(Counter(drawn).values()) == {1: 75, 2: 25}
    assert drawn == weighted(range(100), sources, {"a": 1.25}, seed=1) != weighted(range(100), sources, {"a": 1.25}, 2)


def test_pairs_that_a_program_made_are_left_as_they_are() -> None:
    def made(number: int, chosen: str) -> PreferencePair:
        asked = {"role": "user", "content": f"question {number}"}
        sides = [[asked, {"role": "assistant", "content": text}] for text in (chosen, "no")]
        return PreferencePair(sides[0], sides[1], "brief", None, True, True)

    pairs = [made(number % 50, "so") for number in range(100)]
    assert split_pairs(pairs, 0.0).training is pairs
    found = split_pairs(pairs, 0.3)
    assert len(found.training) + len(found.validation) == 100
    assert {p.chosen[0]["content"] for p in found.training}.isdisjoint(p.chosen[0]["content"] for p in found.validation)
    held = {prompt_key(pairs[0].chosen[:-1]): PROMPT_HELD_OUT}
    assert split_pairs(pairs, 0.0, held).drops == {("brief", PROMPT_HELD_OUT): 2}
