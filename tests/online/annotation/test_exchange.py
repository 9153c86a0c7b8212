from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cool_rlhf.online.annotation.arrived import arrived, labelled
from cool_rlhf.online.annotation.exchange import (
    LABEL_STUDIO_CONFIG,
    export_label_studio,
    export_trl,
    import_label_studio,
    import_trl,
)
from cool_rlhf.online.annotation.items import Item
from cool_rlhf.online.annotation.store import Store


def test_trl_round_trip(full: Store, other: Store, tmp_path: Path) -> None:
    path = tmp_path / "trl.jsonl"
    assert export_trl(full, path) == 2
    assert set(json.loads(path.read_text(encoding="utf-8").splitlines()[0])) >= {"prompt", "chosen", "rejected"}
    assert import_trl(other, path, "people elsewhere") == 2
    assert arrived(other) == sorted(arrived(full), key=lambda pair: pair.domain != "harmless")
    assert import_trl(other, path, "people elsewhere") == 0, "the same file again changes nothing"


def test_trl_rows_of_others(other: Store, tmp_path: Path) -> None:
    path = tmp_path / "trl.jsonl"
    path.write_text(json.dumps({"prompt": "why?", "chosen": "so", "rejected": "no"}), encoding="utf-8")
    assert import_trl(other, path, "elsewhere") == 1
    assert [pair.chosen[-1]["content"] for pair in arrived(other)] == ["so"]


def test_what_rules_and_judges_labelled_does_not_come_back_as_people_s(
    store: Store, other: Store, item: Callable[..., Item], tmp_path: Path
) -> None:
    items = [item(number) for number in range(4)]
    store.add_items(items)
    rule, judge, ada = store.called("a rule", "rule"), store.called("a judge", "judge"), store.annotator("Ada")
    for entry, labellers in zip(items, [[rule], [judge], [rule, judge], [rule, ada]], strict=True):
        for who in labellers:
            store.record(entry.id, who, "first")
    store.record(items[0].id, ada, "skip")  # who skips does not judge
    export_trl(store, tmp_path / "trl.jsonl")
    assert import_trl(other, tmp_path / "trl.jsonl", "elsewhere") == 4
    assert [(label.annotator, label.kind) for label in other.labels()] == [
        ("a rule", "rule"),
        ("a judge", "judge"),
        ("a judge, a rule", "rule"),
        ("Ada", "person"),
    ]
    assert arrived(other) == arrived(store)
    nameless = {"prompt": "why?", "chosen": "so", "rejected": "no", "labelled_by": ["rule"]}
    (tmp_path / "others.jsonl").write_text(json.dumps(nameless), encoding="utf-8")
    assert import_trl(other, tmp_path / "others.jsonl", "elsewhere") == 1, "a column of somebody else's"
    other.record(items[0].id, other.annotator("Bo"), "second")
    winners = {entry.item.id: entry.winner for entry in labelled(other)}
    assert winners[items[0].id] == "second", "where a person has judged, only people count"


def test_what_the_store_has_itself_exported_adds_no_votes(
    store: Store, other: Store, item: Callable[..., Item], tmp_path: Path
) -> None:
    items = [item(number) for number in range(5)]
    store.add_items(items)
    votes = {"alice": "first", "bob": "first", "eve": "second"}
    for entry, names in zip(items, [["alice"], ["alice", "bob"], list(votes), [], []], strict=True):
        for name in names:
            store.record(entry.id, store.annotator(name), votes[name])  # type: ignore[arg-type]
    store.record(items[3].id, store.called("elsewhere.jsonl", "import"), "first")
    for kind in ("rule", "judge"):
        store.record(items[4].id, store.annotator(f"a {kind}", kind), "second")  # type: ignore[arg-type]
    before, agreed = store.labels(), store.agreement()
    assert export_trl(store, tmp_path / "trl.jsonl") == 5
    assert import_trl(store, tmp_path / "trl.jsonl", "trl.jsonl") == 0
    assert (store.labels(), store.agreement()) == (before, agreed)
    other.annotator("alice")
    assert import_trl(other, tmp_path / "trl.jsonl", "trl.jsonl") == 5
    assert [(label.annotator, label.kind) for label in other.labels()] == [
        ("alice", "person"),
        ("trl.jsonl", "import"),
        ("trl.jsonl", "import"),
        ("elsewhere.jsonl", "import"),
        ("a judge, a rule", "rule"),
    ]


def test_an_imported_pair_may_stand_there_the_other_way_round(
    store: Store, other: Store, item: Callable[..., Item], tmp_path: Path
) -> None:
    store.add_items([item(0)])
    store.record(item(0).id, store.annotator("Ada"), "second")
    export_trl(store, tmp_path / "trl.jsonl")
    other.add_items([replace(item(0), first=item(0).second, second=item(0).first)])
    import_trl(other, tmp_path / "trl.jsonl", "elsewhere")
    assert arrived(other) == arrived(store)
    assert [label.winner for label in other.labels()] == ["first"]


def test_label_studio_round_trip(full: Store, other: Store, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    assert export_label_studio(full, path) == 6
    assert import_label_studio(other, path) == 8
    assert other.items() == full.items()
    assert arrived(other) == arrived(full)

    assert sorted(map(str, other.labels())) == sorted(map(str, full.labels())), "kinds and seconds too"
    assert import_label_studio(other, path) == 0
    assert import_label_studio(full, path) == 0, "where they come from they are known"


def test_rules_and_judges_stay_what_they_are(
    full: Store, other: Store, item: Callable[..., Item], tmp_path: Path
) -> None:
    for kind, winner in (("rule", "second"), ("judge", "tie")):
        full.record(item(0).id, full.annotator(f"some {kind}", kind), winner)  # type: ignore[arg-type]
    export_label_studio(full, tmp_path / "tasks.json")
    import_label_studio(other, tmp_path / "tasks.json")
    assert {label.annotator: label.kind for label in other.labels()} == {
        "person 0": "person",
        "person 1": "person",
        "some rule": "rule",
        "some judge": "judge",
    }
    assert arrived(other) == arrived(full), "they do not outvote people"
    assert other.agreement() == full.agreement()


def as_label_studio_gives_it_back(path: Path) -> None:
    """Everything is completed by user 1, who imported it, and has ids."""
    tasks = json.loads(path.read_text(encoding="utf-8"))
    for number, task in enumerate(tasks):
        task["id"] = number
        for place, note in enumerate(task["annotations"]):
            note |= {"id": 10 * number + place, "completed_by": 1}
    path.write_text(json.dumps(tasks), encoding="utf-8")


def test_whoever_imports_into_label_studio_does_not_become_the_annotator(
    full: Store, other: Store, item: Callable[..., Item], tmp_path: Path
) -> None:
    full.record(item(0).id, full.annotator("some rule", "rule"), "second", seconds=0.25)
    full.record(item(5).id, full.annotator("some judge", "judge"), "skip", "refused: too long", 1.5)
    full.record(item(0).id, full.annotator("ada@x.example"), "tie")
    path = tmp_path / "tasks.json"
    export_label_studio(full, path)
    as_label_studio_gives_it_back(path)
    assert import_label_studio(full, path) == 0, "the store has them all"
    import_label_studio(other, path)
    assert sorted(map(str, other.labels())) == sorted(map(str, full.labels())), "skips too, and how long it took"
    asked = other.unlabelled(other.annotator("some judge", "judge"))
    assert item(5).id not in {entry.id for entry in asked}, "a judge that refused a pair is not asked again"


def test_label_studio_takes_what_is_exported(full: Store, item: Callable[..., Item], tmp_path: Path) -> None:
    """Addresses alone are named as users, and nobody but people has annotated."""
    full.record(item(0).id, full.annotator("rule length (no person)", "rule"), "tie")
    full.record(item(0).id, full.annotator("ada@x.example"), "tie")
    export_label_studio(full, tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    task = next(task for task in tasks if task["data"]["text1"] == "good answer 0")
    assert [note.get("completed_by") for note in task["annotations"]] == [None, None, {"email": "ada@x.example"}]
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == "rule length (no person)"
    assert prediction["result"][0]["value"] == {"choices": ["tie"]}


def test_a_person_who_takes_a_prediction_over_has_judged(
    full: Store, item: Callable[..., Item], tmp_path: Path
) -> None:
    full.record(item(5).id, full.annotator("some rule", "rule"), "first")
    export_label_studio(full, tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    (predicted,) = [task for task in tasks if task["predictions"]]
    taken = {"completed_by": {"email": "eve@x.example"}, "result": predicted["predictions"][0]["result"]}
    predicted["annotations"].append(taken)
    predicted["predictions"].append(3)  # some versions give numbers
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    assert import_label_studio(full, tmp_path / "tasks.json") == 1
    assert (full.labels()[-1].annotator, full.labels()[-1].kind) == ("eve@x.example", "import")


def test_all_comments_of_an_annotation_are_taken(other: Store, tmp_path: Path) -> None:
    texts = [{"type": "textarea", "value": {"text": said}} for said in (["one", "", "two"], "three")]
    chosen = {"type": "choices", "value": {"choices": ["tie"]}}
    task = {"data": {"prompt": "q", "text1": "a", "text2": "b"}, "annotations": [{"result": [chosen, *texts]}]}
    (tmp_path / "tasks.json").write_text(json.dumps([task]), encoding="utf-8")
    import_label_studio(other, tmp_path / "tasks.json")
    assert [(label.winner, label.comment) for label in other.labels()] == [("tie", "one\ntwo\nthree")]


def of_user(user: int, selected: str | None, **more: object) -> dict[str, object]:
    result = [{"type": "pairwise", "value": {"selected": selected}}] if selected else []
    return {"completed_by": user, "was_cancelled": False, "result": result, **more}


@pytest.mark.parametrize(
    ("annotations", "kept", "told"),
    [
        ([of_user(1, None)], ["skip"], (1, 0)),
        ([of_user(1, None, result=[{"type": "textarea", "value": {"text": ["hm"]}}])], ["skip"], (1, 0)),
        ([of_user(1, None, was_cancelled=True)], ["skip"], None),
        ([of_user(1, "left"), of_user(2, "right")], ["first", "second"], None),
        ([of_user(1, "left"), of_user(1, "left")], ["first"], None),
        ([of_user(1, "left"), of_user(1, "right")], ["second"], (0, 1)),
        ([of_user(1, None), of_user(1, "right")], ["second"], (0, 1)),
        (
            [
                of_user(1, "left", updated_at="2024-05-01T12:00:00.5Z", created_at="2024-04-01T12:00:00Z"),
                of_user(1, "right", updated_at="2024-05-01T12:00:00Z", created_at="2024-05-01T11:00:00Z"),
            ],
            ["first"],
            (0, 1),
        ),
        (
            [of_user(1, "left", created_at="2024-05-01T12:00:00Z"), of_user(1, "right", created_at="2024-05-01")],
            ["first"],
            (0, 1),
        ),
        (
            [of_user(1, "left", updated_at="2024-05-01T12:00:00Z"), of_user(1, "right", updated_at="yesterday")],
            ["second"],
            (0, 1),
        ),
    ],
)
def test_what_label_studio_accepts_is_taken(
    other: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    annotations: list[object],
    kept: list[str],
    told: tuple[int, int] | None,
) -> None:
    """Annotations that were submitted empty, and several by one user."""
    task = {"data": {"prompt": "q", "text1": "a", "text2": "b"}, "annotations": annotations}
    (tmp_path / "tasks.json").write_text(json.dumps([task]), encoding="utf-8")
    assert import_label_studio(other, tmp_path / "tasks.json") == len(kept)
    assert [label.winner for label in other.labels()] == kept
    messages = [record.getMessage().partition("tasks.json: ")[2] for record in caplog.records]
    said = "annotations without an answer, taken as skips: {}; left out, because the same person has answered otherwise"
    assert messages == ([f"{said.format(told[0])} later: {told[1]}"] if told else [])


@pytest.mark.parametrize(
    "meta", [None, 3, {}, {"annotator": "Ada", "kind": "robot"}, {"annotator": 3, "kind": "person"}]
)
def test_whoever_is_not_known_is_an_import(other: Store, tmp_path: Path, meta: object) -> None:
    result = {"type": "textarea", "value": {"text": ["what?"]}, "meta": meta}
    by = {"email": "b@x.example"}
    annotation = {"completed_by": by, "was_cancelled": True, "lead_time": None, "result": [result]}
    task = {"data": {"prompt": "q", "text1": "a", "text2": "b"}, "annotations": [annotation]}
    (tmp_path / "tasks.json").write_text(json.dumps([task]), encoding="utf-8")
    import_label_studio(other, tmp_path / "tasks.json")
    (label,) = other.labels()
    assert (label.annotator, label.kind, label.seconds) == ("b@x.example", "import", 0.0)


def test_export_of_label_studios_own(other: Store, tmp_path: Path) -> None:
    """The shape that Label Studio gives for its pairwise template."""
    result = {"id": "Aq1", "from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "origin": "manual"}
    task = {
        "id": 7,
        "data": {"prompt": "why?", "text1": "so", "text2": "no"},
        "annotations": [
            {
                "id": 1,
                "completed_by": 3,
                "result": [{**result, "value": {"selected": "right"}}],
                "was_cancelled": False,
            },
            {"id": 2, "completed_by": {"id": 4, "email": "b@x.example"}, "result": [], "was_cancelled": True},
        ],
        "predictions": [],
    }
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task]), encoding="utf-8")
    assert import_label_studio(other, path) == 2
    assert [(label.annotator, label.winner) for label in other.labels()] == [
        ("annotator 3", "second"),
        ("b@x.example", "skip"),
    ]
    assert [pair.chosen[-1]["content"] for pair in arrived(other)] == ["no"]


def test_interface_names_what_tasks_hold(full: Store, tmp_path: Path) -> None:
    export_label_studio(full, tmp_path / "tasks.json")
    task = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))[0]
    tags = list(ElementTree.fromstring(LABEL_STUDIO_CONFIG))
    wanted = {tag.attrib["value"].removeprefix("$") for tag in tags if "value" in tag.attrib}
    assert wanted <= set(task["data"])
    names = {tag.attrib["name"] for tag in tags if "name" in tag.attrib}
    assert {result["from_name"] for note in task["annotations"] for result in note["result"]} <= names


def test_what_was_chosen_elsewhere_is_first_in_half_of_the_pairs(other: Store, tmp_path: Path) -> None:
    rows = [{"prompt": f"why {n}?", "chosen": f"good {n}", "rejected": f"poor {n}"} for n in range(100)]
    (tmp_path / "trl.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    assert import_trl(other, tmp_path / "trl.jsonl", "elsewhere") == 100
    assert 30 <= sum(item.first.text.startswith("good") for item in other.items()) <= 70
    assert all(pair.chosen[-1]["content"].startswith("good") for pair in arrived(other)), "labels go by the response"
    export_label_studio(other, tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert 30 <= sum(task["data"]["text1"].startswith("good") for task in tasks) <= 70
    assert import_trl(other, tmp_path / "trl.jsonl", "elsewhere") == 0, "the same file again changes nothing"


@pytest.mark.parametrize("name", ["tasks.json", "trl.jsonl"])
def test_a_mark_of_the_encoding_is_no_part_of_a_file(other: Store, tmp_path: Path, name: str) -> None:
    chosen = {"type": "choices", "value": {"choices": ["tie"]}}
    task = {"data": {"prompt": "q", "text1": "a", "text2": "b"}, "annotations": [{"result": [chosen]}]}
    content = [task] if name == "tasks.json" else {"prompt": "q", "chosen": "a", "rejected": "b"}
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8-sig")
    count = (
        import_label_studio(other, tmp_path / name)
        if name == "tasks.json"
        else import_trl(other, tmp_path / name, "elsewhere")
    )
    assert count == 1
