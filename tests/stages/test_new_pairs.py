"""Which pairs a round learns from that no round has learnt from before."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from cool_rlhf.config import Config
from cool_rlhf.data.identity import judges_repairs
from cool_rlhf.online.annotation.exchange import import_trl
from cool_rlhf.online.annotation.items import Item, ShownResponse, Winner, write_pairs_to_label
from cool_rlhf.online.annotation.store import FILE_NAME as STORE_FILE
from cool_rlhf.online.annotation.store import Store
from cool_rlhf.online.attempts import REPEATS
from cool_rlhf.online.records import read_patches
from cool_rlhf.protocols import Message, PreferencePair
from cool_rlhf.stages.inputs import Inputs
from cool_rlhf.stages.new_pairs import new_pairs
from cool_rlhf.stages.repair import Repair, Rise, write_repair


def test_what_earlier_rounds_kept_is_gathered_with_the_rounds_own(tmp_path: Path):
    settings = Config(output_dir=str(tmp_path))
    for round, names in ((0, ("a/kept", "b/rolled")), (1, ("c/new",))):
        folder = tmp_path / f"rounds/{round}/fast_path"
        folder.mkdir(parents=True)
        (folder / "patches.jsonl").write_text(
            "".join(f"{json.dumps(row(name, n))}\n" for name in names for n in (0, 1))
        )
    repair_file = tmp_path / "rounds/0/fast_path/repair.json"
    record = {"kept": ["a/kept"], "rolled_back": ["b/rolled"], "verdicts": {"a/kept": {"held_out": 0.75}}}
    repair_file.write_text(json.dumps(record))
    (tmp_path / "rounds/2/fast_path").mkdir(parents=True)
    assert len(new_pairs(Inputs(settings), 3).kept) == 1, "a round that brought nothing left no record"
    found = new_pairs(Inputs(settings), 1)
    assert list(found.patches) == ["c/new"]
    assert len(found.kept) == 1
    assert {name: len(own.pairs) for name, own in found.mended.items()} == {"a/kept": 1}, "held out, to look back by"
    assert found.mended["a/kept"].right == 0.75, "as it was judged then"
    assert found.labels == []
    assert [patch.held_out for patch in read_patches(tmp_path / "rounds/1/fast_path/patches.jsonl")] == [False, True]


@pytest.fixture
def reviewed(tmp_path: Path) -> Config:
    """A run whose rounds 0 and 1 left patches of one pattern each, two to train on and one to judge by; of the first
    round's, the first was judged as the patch has it, the second the other way round."""
    settings = Config(output_dir=str(tmp_path))
    settings.online.review = True
    for round, name in enumerate(("a/first", "b/second")):
        folder = tmp_path / f"rounds/{round}/fast_path"
        folder.mkdir(parents=True)
        rows = [row(name, 0, "x"), row(name, 0, "y"), row(name, 1)]
        (folder / "patches.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    own = [patch.pair for patch in read_patches(tmp_path / "rounds/0/fast_path/patches.jsonl")]
    items = to_label(own[:2])
    write_pairs_to_label(tmp_path / "rounds/0/fast_path/review.jsonl", items)
    with Store(tmp_path / STORE_FILE) as store:
        store.add_items(items)
        someone = store.annotator("someone")
        for item, winner in zip(items, ("first", "second"), strict=True):
            store.record(item.id, someone, winner, "", 1.0)
    return settings


def test_a_reviewed_patch_counts_once_a_label_agrees(reviewed: Config, tmp_path: Path):
    found = new_pairs(Inputs(reviewed), 0)
    assert [(name, [p.held_out for p in own]) for name, own in found.patches.items()] == [
        ("a/first", [False, False, True])
    ]
    assert [patch.pair.chosen[-1]["content"] for patch in found.patches["a/first"]] == ["text 0x", "other 0y", "text 1"]
    assert found.labels == [], "a label against a patch goes with those for it"
    later = new_pairs(Inputs(reviewed), 1)
    assert list(later.patches) == ["a/first"], "not tried yet; nobody has judged the second round's"
    (tmp_path / "rounds/0/fast_path/repair.json").write_text(json.dumps({"kept": ["a/first"], "rolled_back": []}))
    later = new_pairs(Inputs(reviewed), 1)
    assert (list(later.patches), len(later.kept), len(later.labels)) == ([], 2, 0)
    for repeated, times in (({"a/first": 3}, 3), (["a/first"], REPEATS), ([], 1)):  # names alone in older records
        often = {"kept": ["a/first"], "repeated": repeated}
        (tmp_path / "rounds/0/fast_path/repair.json").write_text(json.dumps(often))
        assert len(new_pairs(Inputs(reviewed), 1).kept) == 2 * times, "learnt as often as then"
    again = {"kept": ["a/first"], "repeated": {"a/first": 4}}  # found again, other patches of it learnt more often
    (tmp_path / "rounds/1/fast_path/repair.json").write_text(json.dumps(again))
    assert len([pair for pair in new_pairs(Inputs(reviewed), 2).kept if "0" in pair.chosen[-1]["content"]]) == 2
    (tmp_path / "rounds/1/fast_path/repair.json").unlink()
    (tmp_path / "rounds/0/fast_path/repair.json").write_text(json.dumps({"kept": [], "rolled_back": ["a/first"]}))
    later = new_pairs(Inputs(reviewed), 1)
    assert (list(later.patches), len(later.kept), len(later.labels)) == ([], 0, 0), "nor do they come back as labels"
    assert not later
    reviewed.online.review = False
    assert len(new_pairs(Inputs(reviewed), 0).training({"a/first": 1})) == 2 + 2, "its patches and both labels"


@pytest.mark.parametrize(("judged", "counts"), [("both", False), ("balance", False), ("pattern for", True)])
def test_patches_that_keep_lengths_even_do_not_vote(tmp_path: Path, judged: str, counts: bool):
    """A label against the pattern and two for what balances it: people want the pattern."""
    settings = Config(output_dir=str(tmp_path))
    settings.online.review = True
    folder = tmp_path / "rounds/0/fast_path"
    folder.mkdir(parents=True)
    balance = [row("a/first", 0, tag) | {"role": "balance"} for tag in "xy"]
    rows = [row("a/first", 0, "p"), *balance, row("a/first", 1)]
    (folder / "patches.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    pattern, *balancing = to_label([patch.pair for patch in read_patches(folder / "patches.jsonl")[:3]])
    winners: dict[str, Winner] = {} if judged == "balance" else {pattern.id: "first" if counts else "second"}
    winners |= {} if judged == "pattern for" else {item.id: "first" for item in balancing}
    write_pairs_to_label(folder / "review.jsonl", [pattern, *balancing])
    with Store(tmp_path / STORE_FILE) as store:
        store.add_items([pattern, *balancing])
        someone = store.annotator("someone")
        for name, winner in winners.items():
            store.record(name, someone, winner, "", 1.0)
    found = new_pairs(Inputs(settings), 0)
    assert list(found.patches) == (["a/first"] if counts else [])
    assert len(found.labels) == (0 if counts else len(winners)), "what people said teaches as any label does"


@pytest.mark.parametrize(
    ("fate", "counts"), [("kept", (2, {"a/first": 1})), ("rolled_back", (0, {})), ("not_judged", (0, {}))]
)
def test_a_pattern_that_is_judged_late_is_tried_once(reviewed: Config, tmp_path: Path, fate: str, counts: tuple):
    """Labels for the first round's patches came during the second, whose repair tried them."""
    assert list(new_pairs(Inputs(reviewed), 2).patches) == ["a/first"]
    (tmp_path / "rounds/1/fast_path/repair.json").write_text(
        json.dumps({"kept": [], "rolled_back": [], fate: ["a/first"]})
    )
    assert list(new_pairs(Inputs(reviewed), 1).patches) == ["a/first"], "the round itself, made again"
    for round in (2, 3):
        later = new_pairs(Inputs(reviewed), round)
        assert not later
        assert (len(later.kept), {name: len(own.pairs) for name, own in later.mended.items()}) == counts
    (tmp_path / "rounds/0/fast_path/repair.json").write_text(json.dumps({"kept": [], "rolled_back": ["a/first"]}))
    assert new_pairs(Inputs(reviewed), 2).kept == [], "what a later round found of the same name is of its own patches"


def question(judges: bool, place: int = 0) -> str:
    """One on which repairs are judged, or one of which pairs teach."""
    texts = (f"Question {number}?" for number in range(1000))
    found = (text for text in texts if judges_repairs([Message(role="user", content=text)]) == judges)
    return next(islice(found, place, None))


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_imported_labels_teach_nothing_that_is_tested_or_held_out_or_judges_repairs(tmp_path: Path, caplog, system):
    def write(name: str, *questions: str, said: bool = True) -> list[str]:
        sides = {"chosen": f"a {name}", "rejected": "b"} if said else {}
        rows = ({"prompt": question, **sides} for question in questions)
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return [str(tmp_path / name)]

    teaching, tested, also_tested, held, asked = (question(False, place) for place in range(5))
    settings = Config(output_dir=str(tmp_path / "run"))
    settings.sampling.system_prompt = system
    settings.data.preferences = write("preferences.jsonl", "Something else?")
    settings.data.prompts = write("prompts.jsonl", "Something else?", said=False)
    settings.data.validation_prompts = write("asked.jsonl", asked, said=False)
    settings.data.test_preferences = write("tested.jsonl", tested)
    settings.data.test_prompts = write("tested_prompts.jsonl", also_tested, said=False)
    settings.data.validation_preferences = write("held.jsonl", held, asked)
    imported = write("labels.jsonl", question(True), asked, held, also_tested, tested, teaching.upper())
    (tmp_path / "run/rounds/0/slow_path").mkdir(parents=True)
    with Store(tmp_path / "run" / STORE_FILE) as store:
        assert import_trl(store, Path(imported[0]), "elsewhere") == 6
    assert [label.chosen[-2]["content"] for label in new_pairs(Inputs(settings), 0).labels] == [asked, teaching.upper()]
    left_out = [record.message for record in caplog.records if record.message.startswith("labels that teach nothing")]
    assert left_out == [
        "labels that teach nothing: 4 (1 prompt is one that repairs are judged on; 1 prompt stands in the validation "
        "pairs; 2 prompt stands in the test rows)"
    ]


@pytest.mark.parametrize("judges", [True, False])
def test_no_label_teaches_on_a_prompt_that_a_repair_is_judged_on(tmp_path: Path, judges: bool):
    settings = Config(output_dir=str(tmp_path))
    prompt = [Message(role="user", content=question(judges))]
    item = Item(prompt, ShownResponse("a", True, ""), ShownResponse("b", True, ""), "default", "", None, 0)
    (tmp_path / "rounds/0/slow_path").mkdir(parents=True)
    write_pairs_to_label(tmp_path / "rounds/0/slow_path/pairs.jsonl", [item])
    with Store(tmp_path / STORE_FILE) as store:
        store.add_items([item])
        store.record(item.id, store.annotator("someone"), "first", "", 1.0)
    assert len(new_pairs(Inputs(settings), 0).labels) == (0 if judges else 1)


@pytest.mark.parametrize(("verdict", "counts"), [("tie", 2), ("first", 2), ("second", 1)])
def test_a_rules_tie_lets_a_patch_count_and_its_contrary_does_not(
    reviewed: Config, tmp_path: Path, verdict: Winner, counts: int
):
    with Store(tmp_path / STORE_FILE) as store:
        first, second = store.items()
        store.undo(first.id, store.annotator("someone"))
        store.undo(second.id, store.annotator("someone"))
        rule = store.annotator("rule", "rule")
        store.record(first.id, rule, "tie")
        store.record(second.id, rule, verdict)
    found = new_pairs(Inputs(reviewed), 0)
    agreeing = [patch.pair.chosen[-1]["content"].startswith("text") for patch in found.patches["a/first"]]
    assert agreeing.count(True) == counts + 1, "the held-out one too"
    assert (len(agreeing), found.labels) == (3, []), "a tie is no label"


def test_a_pattern_that_more_labels_want_than_not_is_not_mended(reviewed: Config, tmp_path: Path):
    """All labels stay then, those for its patches too: either half alone would teach what people did not say."""
    with Store(tmp_path / STORE_FILE) as store:
        first, _ = store.items()
        store.undo(first.id, store.annotator("someone"))
        assert new_pairs_of(reviewed) == ({}, ["other 0y"])
        store.record(first.id, store.annotator("someone"), "second")
    assert new_pairs_of(reviewed) == ({}, ["other 0x", "other 0y"])


def new_pairs_of(settings: Config):
    found = new_pairs(Inputs(settings), 0)
    return found.patches, [label.chosen[-1]["content"] for label in found.labels]


def test_a_round_is_new_by_what_no_round_has_trained_on(reviewed: Config, tmp_path: Path):
    reviewed.online.review = False
    first = new_pairs(Inputs(reviewed), 0)
    assert first
    record = tmp_path / "rounds/0/fast_path/repair.json"
    repair = Repair(1, {"a/first": 1}, {}, None, None, {}, [], Rise(0.0, 0.0, 1.0, 1.0))
    write_repair(record, repair, replace(first, patches={"a/first": first.patches["a/first"]}))
    (tmp_path / "rounds/1/fast_path/patches.jsonl").unlink()
    later = new_pairs(Inputs(reviewed), 1)
    assert not later, "nothing has come since"
    assert (len(later.kept), len(later.labels)) == (2, 2), "all is trained on again once there is"
    assert new_pairs(Inputs(reviewed), 0), "the round itself, made again"
    with Store(tmp_path / STORE_FILE) as store:
        item, who = store.items()[0], store.annotator("someone")
        store.undo(item.id, who)
        assert not new_pairs(Inputs(reviewed), 1), "a label taken back teaches nothing new"
        store.record(item.id, who, "second")
    assert new_pairs(Inputs(reviewed), 1), "a label that has changed"
    older = json.loads(record.read_text())
    del older["labels"]
    record.write_text(json.dumps(older))
    assert new_pairs(Inputs(reviewed), 1), "an older record does not say which were trained on"


def test_labels_of_domains_without_a_condition_are_left_out(reviewed: Config, tmp_path: Path, caplog):
    with Store(tmp_path / STORE_FILE) as store:
        item = replace(store.items()[0], domain="helpfull")
        store.add_items([item])
        store.record(item.id, store.annotator("someone"), "first")
    reviewed.online.review = False
    assert [label.domain for label in new_pairs(Inputs(reviewed), 0).labels] == ["default", "default"]
    assert "left out: 1 labelled pairs of domains that have no condition (helpfull)" in caplog.text


def to_label(pairs: list[PreferencePair]) -> list[Item]:
    return [
        Item(
            pair.chosen[:-1],
            *(ShownResponse(side[-1]["content"], True, "") for side in (pair.chosen, pair.rejected)),
            domain="default",
            guideline="",
            answer=None,
            round=0,
        )
        for pair in pairs
    ]


def row(name: str, place: int, tag: str = "") -> dict[str, object]:
    chosen, rejected = ([{"role": "assistant", "content": f"{kind} {place}{tag}"}] for kind in ("text", "other"))
    return {
        "prompt": [{"role": "user", "content": question(judges=place > 0)}],
        "chosen": chosen,
        "rejected": rejected,
        "domain": "default",
        "chosen_finished": True,
        "rejected_finished": True,
        "pattern": name,
        "role": "pattern",
        "split": "held_out" if place else "training",
    }
