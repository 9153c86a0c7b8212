from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cool_rlhf.compose import compose
from cool_rlhf.ending import Ending
from cool_rlhf.files import read_json_lines
from cool_rlhf.online.annotation.arrived import arrived, labelled
from cool_rlhf.online.annotation.exchange import (
    LABEL_STUDIO_CONFIG,
    export_label_studio,
    export_trl,
    import_label_studio,
    import_trl,
)
from cool_rlhf.online.annotation.items import Item, write_pairs_to_label
from cool_rlhf.online.annotation.store import FILE_NAME, Store
from cool_rlhf.protocols import UserError
from cool_rlhf.stages.annotate import annotate


@pytest.fixture
def full(store: Store, item: Callable[..., Item]) -> Store:
    """Every kind of answer, by two people, over two rounds."""
    items = [item(0), item(1, domain="harmless"), item(2, answer="x"), item(3, round=1), item(4, round=1), item(5)]
    store.add_items(items)
    for entry, answers in zip(items, ["first second", "second", "tie", "both_bad", "first first", "skip"], strict=True):
        for number, winner in enumerate(answers.split()):
            store.record(entry.id, store.annotator(f"person {number}"), winner, f"says {winner}", 2.5)  # type: ignore[arg-type]
    return store


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "other.sqlite") as opened:
        yield opened


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
        ("elsewhere", "import"),
    ]
    assert arrived(other) == arrived(store)
    nameless = {"prompt": "why?", "chosen": "so", "rejected": "no", "labelled_by": ["rule"]}
    (tmp_path / "others.jsonl").write_text(json.dumps(nameless), encoding="utf-8")
    assert import_trl(other, tmp_path / "others.jsonl", "elsewhere") == 1, "a column of somebody else's"
    other.record(items[0].id, other.annotator("Bo"), "second")
    winners = {entry.item.id: entry.winner for entry in labelled(other)}
    assert winners[items[0].id] == "second", "where a person has judged, only people count"


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
            '[{"data": {"prompt": "q", "text1": "a", "text2": "b"}, "annotations": [{"result": []}]}]',
            "task 1: field `annotations.result`",
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


def test_a_round_that_the_run_does_not_have_is_named(run: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps([task({"result": [LEFT]}, round=1000)]), encoding="utf-8")
    with pytest.raises(UserError, match=r"task 1: field `data\.round` is 1000: it must be a round of the run, 0 to 0"):
        run(f"annotate.import_labels={tmp_path / 'tasks.json'}")
    assert not (tmp_path / "run/rounds/1000").exists()


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


@pytest.fixture
def run(tmp_path: Path, item: Callable[..., Item]) -> Callable[..., None]:
    """``stage=annotate`` in a run that has left two pairs."""
    write_pairs_to_label(tmp_path / "run/rounds/0/slow_path/pairs.jsonl", [item(0), item(1)])

    def annotated(*overrides: str) -> None:
        annotate(compose(["stage=annotate", f"output_dir={tmp_path}/run", *overrides]), Ending())

    return annotated


@pytest.mark.parametrize(("name", "kept"), [("labels.json", 2), ("labels.jsonl", 1)])
def test_labels_go_out_and_come_in_by_command(
    run: Callable[..., None], store: Store, item: Callable[..., Item], tmp_path: Path, name: str, kept: int
) -> None:
    store.add_items([item(0), item(1)])
    for number, winner in enumerate(("second", "tie")):
        store.record(item(number).id, store.annotator("Ada"), winner)  # type: ignore[arg-type]
    (export_label_studio if name.endswith(".json") else export_trl)(store, tmp_path / name)
    (tmp_path / "again").mkdir()
    for _ in range(2):
        run(f"annotate.import_labels={tmp_path / name}", f"annotate.export_labels={tmp_path / 'again' / name}")
    with Store(tmp_path / "run" / FILE_NAME) as own:
        assert len(own.labels()) == kept
    assert len(read_json_lines(tmp_path / "run/rounds/0/slow_path/labels.jsonl")) == 1, "for the round that takes them"
    assert (tmp_path / "again" / name).read_bytes().count(b"poor answer 0") > 0


def test_a_file_of_labels_that_is_not_there_or_of_no_known_kind_is_named(run: Callable[..., None]) -> None:
    for name in ("nowhere.json", "nowhere.jsonl", "labels.csv"):
        with pytest.raises(UserError, match=re.escape(name)):
            run(f"annotate.import_labels={name}")


@pytest.mark.parametrize("name", ["labels.json", "labels.jsonl"])
@pytest.mark.parametrize("left", ["config.yaml", "rounds/0/reward_model/conditions.json", None])
def test_a_domain_without_a_condition_is_named(run: Callable[..., None], tmp_path: Path, name: str, left: str | None):
    """By what the run has left, not by the settings now; where it has left nothing, nobody can tell."""
    known = {"helpful": "Prefer what helps."}
    if left is not None:
        (tmp_path / "run" / left).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / left).write_text(json.dumps({"conditions": known} if left == "config.yaml" else known))
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": str(n), "domain": d} for n, d in enumerate(("helpful", "helpfull"))
    ]
    tasks = [{"data": {"prompt": "q", "text1": "a", "text2": row["rejected"], "domain": row["domain"]}} for row in rows]
    content = json.dumps(tasks) if name == "labels.json" else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(content, encoding="utf-8")
    if left is None:
        run(f"annotate.import_labels={tmp_path / name}")
        return
    where = "task 2: field `data.domain`" if name == "labels.json" else r"(row|line) 2: field `domain`"
    with pytest.raises(UserError, match=rf"{name}.*{where} is 'helpfull', which has no condition: is `helpful` meant"):
        run(f"annotate.import_labels={tmp_path / name}")


@pytest.mark.parametrize("source", ["the run", "the settings"])
def test_imported_pairs_without_a_guideline_are_judged_by_their_domains_condition(
    run: Callable[..., None], tmp_path: Path, source: str
) -> None:
    """By that of the settings where the run has left none, as the pairs that it asks about itself."""
    if source == "the run":
        (tmp_path / "run/config.yaml").write_text(json.dumps({"conditions": {"helpful": "Prefer what helps."}}))
    given = [{}, {"guideline": ""}, {"guideline": None}, {"guideline": "Prefer rhymes."}]
    tasks = [task({"result": [LEFT]}, prompt=f"task {n}", domain="helpful", **more) for n, more in enumerate(given)]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    row = {"prompt": "pair", "chosen": "a", "rejected": "b", "domain": "helpful"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row), encoding="utf-8")
    for name in ("tasks.json", "pairs.jsonl"):
        settings = [] if source == "the run" else ["conditions.helpful=Prefer what helps."]
        run(f"annotate.import_labels={tmp_path / name}", *settings)
    with Store(tmp_path / "run" / FILE_NAME) as own:
        imported = [item for item in own.items() if not str(item.prompt[0]["content"]).startswith("question")]
    assert sorted((item.prompt[0]["content"], item.guideline) for item in imported) == [
        ("pair", "Prefer what helps."),
        ("task 0", "Prefer what helps."),
        ("task 1", "Prefer what helps."),
        ("task 2", "Prefer what helps."),
        ("task 3", "Prefer rhymes."),
    ]


@pytest.mark.parametrize("name", ["tasks.json", "trl.jsonl"])
def test_a_mark_of_the_encoding_is_no_part_of_a_file(other: Store, tmp_path: Path, name: str) -> None:
    content = [task({"result": [LEFT]})] if name == "tasks.json" else {"prompt": "q", "chosen": "a", "rejected": "b"}
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8-sig")
    count = (
        import_label_studio(other, tmp_path / name)
        if name == "tasks.json"
        else import_trl(other, tmp_path / name, "elsewhere")
    )
    assert count == 1


@pytest.mark.parametrize("rows", ["refuse", "drop"])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": "q", "chosen": "a"}', ": field `rejected` is missing"),
        ("{", " is not valid JSON"),
        ("[1]", " is not a JSON object but a list"),
    ],
)
def test_a_bad_row_is_named_and_never_left_out(
    run: Callable[..., None], tmp_path: Path, rows: str, row: str, said: str
) -> None:
    (tmp_path / "trl.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n' + row + "\n")
    with pytest.raises(UserError) as raised:
        run(f"annotate.import_labels={tmp_path / 'trl.jsonl'}", f"data.bad_rows={rows}")
    assert f"annotate.import_labels: {tmp_path / 'trl.jsonl'}, row 2{said}" in str(raised.value)
    assert "bad_rows" not in str(raised.value)
    with Store(tmp_path / "run" / FILE_NAME) as own:
        assert own.labels() == []


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


def test_a_mistyped_folder_for_labels_is_named_before_anything_is_taken_in(
    run: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "trl.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}', encoding="utf-8")
    with pytest.raises(
        UserError, match=rf"annotate\.export_labels: there is no folder {re.escape(str(tmp_path))}/nodir"
    ):
        run(f"annotate.import_labels={tmp_path / 'trl.jsonl'}", f"annotate.export_labels={tmp_path / 'nodir/x.json'}")
    assert not (tmp_path / "nodir").exists()
    with Store(tmp_path / "run" / FILE_NAME) as own:
        assert own.labels() == []


@pytest.mark.parametrize("name", ["folder.json", "file/labels.jsonl"])
def test_a_file_of_labels_that_cannot_be_written_is_named(run: Callable[..., None], tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"annotate.export_labels: .*{re.escape(name)} cannot be written"):
        run(f"annotate.export_labels={tmp_path / name}")
