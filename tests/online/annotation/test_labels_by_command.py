from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cool_rlhf.compose import compose
from cool_rlhf.ending import Ending
from cool_rlhf.files import read_json_lines
from cool_rlhf.online.annotation.exchange import export_label_studio, export_trl
from cool_rlhf.online.annotation.items import Item, write_pairs_to_label
from cool_rlhf.online.annotation.store import FILE_NAME, Store
from cool_rlhf.protocols import UserError
from cool_rlhf.stages.annotate import annotate

TASK: dict[str, Any] = {
    "data": {"prompt": "q", "text1": "a", "text2": "b"},
    "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
}


@pytest.fixture
def run(tmp_path: Path, item: Callable[..., Item]) -> Callable[..., None]:
    """``stage=annotate`` in a run that has left two pairs."""
    write_pairs_to_label(tmp_path / "run/rounds/0/slow_path/pairs.jsonl", [item(0), item(1)])

    def annotated(*overrides: str) -> None:
        annotate(compose(["stage=annotate", f"output_dir={tmp_path}/run", *overrides]), Ending())

    return annotated


def test_a_round_that_the_run_does_not_have_is_named(run: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(
        json.dumps([{**TASK, "data": {**TASK["data"], "round": 1000}}]), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"task 1: field `data\.round` is 1000: it must be a round of the run, 0 to 0"):
        run(f"annotate.import_labels={tmp_path / 'tasks.json'}")
    assert not (tmp_path / "run/rounds/1000").exists()


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
    tasks = [
        {**TASK, "data": {**TASK["data"], "prompt": f"task {n}", "domain": "helpful", **more}}
        for n, more in enumerate(given)
    ]
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
