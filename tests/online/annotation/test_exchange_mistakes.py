from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cool_rlhf.online.annotation.exchange import (
    export_label_studio,
    export_trl,
    import_label_studio,
    import_trl,
)
from cool_rlhf.online.annotation.items import Item
from cool_rlhf.online.annotation.store import Store
from cool_rlhf.protocols import UserError


def test_an_import_that_fails_leaves_nothing_behind(
    full: Store, other: Store, item: Callable[..., Item], tmp_path: Path
) -> None:
    export_label_studio(full, tmp_path / "tasks.json")
    other.add_items([item(4, round=1)])
    other.record(item(4).id, other.annotator("person 1"), "second")
    with pytest.raises(UserError, match="person 1 has labelled a pair otherwise before"):
        import_label_studio(other, tmp_path / "tasks.json")
    assert (len(other.items()), len(other.labels())) == (1, 1)
    other.add_items([item(9)])
    assert len(other.items()) == 2, "it can be written to again"


def test_contrary_labels_of_one_annotator_are_named(full: Store, other: Store, tmp_path: Path) -> None:
    export_label_studio(full, tmp_path / "tasks.json")
    import_label_studio(other, tmp_path / "tasks.json")
    text = (tmp_path / "tasks.json").read_text(encoding="utf-8")
    (tmp_path / "tasks.json").write_text(text.replace('"right"', '"left"'), encoding="utf-8")
    with pytest.raises(UserError, match="person 1 has labelled a pair otherwise before"):
        import_label_studio(other, tmp_path / "tasks.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "must be a list of tasks"),
        ("[", "cannot be read as Label Studio's JSON"),
        ("[1]", "task 1: field `data` is missing"),
        ('[{"data": {"prompt": "q", "text1": "a", "text2": 3}}]', "task 1: field `responses[1].text`"),
        (
            '[{"data": {"prompt": "q", "text1": "a", "text2": "b"}, "annotations": [{"lead_time": -1}]}]',
            "task 1: field `annotations.lead_time`",
        ),
        (
            '[{"data": {"prompt": "q", "text1": "a", "text2": "b"}, "annotations": [{"result": [{"type": "x"}]}]}]',
            "task 1: field `annotations.result` holds neither",
        ),
    ],
)
def test_bad_files_are_named(other: Store, tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        import_label_studio(other, path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


def task(annotation: object = None, **data: object) -> dict[str, object]:
    annotations = [] if annotation is None else [annotation]
    return {"data": {"prompt": "q", "text1": "a", "text2": "b", **data}, "annotations": annotations}


def chosen(kind: str, **value: object) -> dict[str, object]:
    return {"type": kind, "value": value}


LEFT = chosen("pairwise", selected="left")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (task(round=-1), "field `data.round` is -1: it must be a round of the run, 0 to 1000000"),
        (task(round=10**30), "field `data.round` is 1000"),
        (task(round=1.5), "field `data.round` must be a whole number"),
        ({**task(), "annotations": 5}, "field `annotations` must be a list of objects, not a number"),
        ({**task(), "predictions": {}}, "field `predictions` must be a list of objects, not an object"),
        (task({"result": 5}), "field `annotations.result` must be a list"),
        ({**task(), "predictions": [{"result": 5}]}, "field `result` must be a list"),
        (task({"result": [chosen("pairwise", selected={})]}), "field `annotations.result` holds neither"),
        (task({"result": [chosen("choices", choices=[["tie"]])]}), "field `annotations.result` holds neither"),
        (
            task({"result": [LEFT, chosen("choices", choices=["both_bad"])]}),
            "field `annotations.result` holds answers that exclude each other (left, both_bad)",
        ),
        (task({"result": [chosen("choices", choices=["tie", "both_bad"])]}), "exclude each other (tie, both_bad)"),
        (task({"result": [LEFT, chosen("textarea", text=["\ud800"])]}), "text` holds half of a surrogate pair"),
        (task({"result": [LEFT, chosen("textarea", text=[{}, 1])]}), "text` must be a string"),
        (task({"result": [LEFT], "completed_by": {"email": "\ud800@x"}}), "completed_by` holds half of a surrogate"),
        (task({"result": [LEFT], "completed_by": ["me"]}), "field `annotations.completed_by` must be a string"),
        (task({"result": [{**LEFT, "meta": {"annotator": "\ud800", "kind": "person"}}]}), "half of a surrogate pair"),
        (task({"result": [LEFT], "lead_time": 10**30}), "field `annotations.lead_time`"),
        (task({"result": [LEFT], "completed_by": "rule f (No person)"}), "must not end in (no person)"),
        (task({"result": [{**LEFT, "meta": {"annotator": "x" * 61, "kind": "person"}}]}), "1 to 60 characters"),
    ],
)
def test_what_nobody_can_mean_is_named_and_nothing_is_kept(
    other: Store, tmp_path: Path, bad: dict[str, object], said: str
) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([task({"result": [LEFT]}, prompt="another"), bad]), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        import_label_studio(other, path)
    assert f"{path}, task 2: " in str(raised.value)
    assert said in str(raised.value)
    assert (other.items(), other.labels()) == ([], [])


def test_a_file_nested_without_end_is_named(other: Store, tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as Label Studio's JSON"):
        import_label_studio(other, tmp_path / "tasks.json")


def test_a_dialogue_that_ends_in_two_turns_of_the_assistant_is_named(other: Store, tmp_path: Path) -> None:
    good = {"prompt": "why?", "chosen": "so", "rejected": "no"}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "well"}]
    sides = {side: [*turns, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    path = tmp_path / "trl.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(sides)}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"trl\.jsonl, row 2: field `chosen` has two turns of the assistant at its end"):
        import_trl(other, path, "elsewhere")
    assert other.items() == []


def test_half_a_surrogate_in_a_name_is_named(other: Store, tmp_path: Path) -> None:
    row = {"prompt": "why?", "chosen": "so", "rejected": "no", "labelled_by": ["rule: \ud800"]}
    (tmp_path / "trl.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(UserError, match=r"trl\.jsonl.*surrogate"):
        import_trl(other, tmp_path / "trl.jsonl", "elsewhere")


def test_contrary_rows_of_one_pair_are_named(other: Store, tmp_path: Path) -> None:
    rows = [{"prompt": "why?", "chosen": a, "rejected": b} for a, b in (("so", "no"), ("no", "so"))]
    (tmp_path / "trl.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"trl\.jsonl, row 2: elsewhere has labelled a pair otherwise"):
        import_trl(other, tmp_path / "trl.jsonl", "elsewhere")


def test_contrary_annotations_that_nobody_is_named_for_are_named(other: Store, tmp_path: Path) -> None:
    """They may be two people's."""
    both = [{"result": [chosen("pairwise", selected=side)]} for side in ("left", "right")]
    (tmp_path / "tasks.json").write_text(json.dumps([{**task(), "annotations": both}]), encoding="utf-8")
    with pytest.raises(UserError, match="task 1: unknown annotator has labelled a pair otherwise"):
        import_label_studio(other, tmp_path / "tasks.json")


def test_a_row_that_names_one_person_who_has_labelled_the_pair_otherwise_is_named(
    store: Store, item: Callable[..., Item], tmp_path: Path
) -> None:
    store.add_items([item(0)])
    alice = store.annotator("alice")
    store.record(item(0).id, alice, "first")
    export_trl(store, tmp_path / "trl.jsonl")
    store.undo(item(0).id, alice)
    store.record(item(0).id, alice, "second")
    with pytest.raises(UserError, match="alice has labelled a pair otherwise before"):
        import_trl(store, tmp_path / "trl.jsonl", "trl.jsonl")


def test_pairs_of_equal_responses_are_left_out_but_not_a_whole_file(other: Store, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": rejected} for rejected in ("a", "b")]
    path = tmp_path / "trl.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    assert import_trl(other, path, "elsewhere") == 1
    path.write_text(json.dumps(rows[0]), encoding="utf-8")
    with pytest.raises(UserError, match=r"trl\.jsonl, row 1: field `rejected` is the same as `chosen`"):
        import_trl(other, path, "elsewhere")
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"annotate\.import_labels: .*trl\.jsonl holds no rows"):
        import_trl(other, path, "elsewhere")
