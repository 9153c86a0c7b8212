"""Repair of a reward model that really learns: a weight for each token, trained pair by pair."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from cool_rlhf.config import Config
from cool_rlhf.data.identity import judges_repairs
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.new_pairs import MendedPattern, NewPairs, new_pairs
from cool_rlhf.online.annotation.exchange import import_trl
from cool_rlhf.online.annotation.items import Item, Response, Winner, write_pairs_to_label
from cool_rlhf.online.annotation.store import FILE_NAME as STORE_FILE
from cool_rlhf.online.annotation.store import Store
from cool_rlhf.online.lessons import Lessons, pair_id
from cool_rlhf.online.records import StoredPatch, read_patches
from cool_rlhf.online.repair import judge_repair
from cool_rlhf.protocols import Message, PreferencePair
from cool_rlhf.repair_stage import Repair, Repairing, preferred, sample_pairs, to_roll_back, write_repair
from reward.pairs import EncodedPair

GOOD, BAD, HACK = "lovely", "horrid", "certainly"
FILLERS = ("stone", "river", "cloud", "light", "bird", "road")


@dataclass
class Done:
    value: object

    def result(self):
        return self.value


@dataclass
class TokenWeights:
    """A reward model: the sum of its tokens' weights."""

    weights: Counter[int] = field(default_factory=Counter)

    def score(self, tokens: torch.Tensor) -> float:
        return sum(self.weights[token] for token in tokens.tolist())

    def scores(self, pairs: Sequence[EncodedPair]) -> Done:
        return Done([(self.score(pair.chosen), self.score(pair.rejected)) for pair in pairs])

    def update(self, batch: Sequence[EncodedPair], learning_rate: float) -> Done:
        for pair in batch:
            short = max(0.0, 1.0 - (self.score(pair.chosen) - self.score(pair.rejected)))
            for token in pair.chosen.tolist():
                self.weights[token] += learning_rate * short
            for token in pair.rejected.tolist():
                self.weights[token] -= learning_rate * short
        return Done({"loss/reward": 0.0})


@dataclass
class Stage:
    rows: list[tuple[int, float]] = field(default_factory=list)

    def record(self, step: int, metrics) -> None:
        self.rows.append((step, metrics["attempt"]))


def pair(chosen: str, rejected: str, place: int) -> PreferencePair:
    prompt = Message(role="user", content=f"Say something {place}")
    sides = [[prompt, Message(role="assistant", content=text)] for text in (chosen, rejected)]
    return PreferencePair(sides[0], sides[1], "default", None, True, True)


def words(rng: random.Random, *said: str) -> str:
    return " ".join(rng.sample([*rng.sample(FILLERS, 3), *said], 3 + len(said)))


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"{GOOD} {BAD} {HACK} {' '.join(FILLERS)} Say something {n}" for n in range(40)]
    return train_tokenizer(texts * 5, 400)


def general(count: int, seed: int) -> list[PreferencePair]:
    rng = random.Random(seed)
    return [pair(words(rng, GOOD), words(rng, BAD), n) for n in range(count)]


def patches(chosen: tuple[str, ...], rejected: tuple[str, ...], name: str) -> list[StoredPatch]:
    rng = random.Random(name)
    made = [pair(words(rng, *chosen), words(rng, *rejected), n) for n in range(40)]
    return [StoredPatch(name, n >= 30, each) for n, each in enumerate(made)]


def start(tokenizer) -> TokenWeights:
    """It pays for the hack as for what is good."""
    weights: Counter[int] = Counter()
    for word, worth in ((GOOD, 1.0), (BAD, -1.0), (HACK, 1.0)):
        for token in tokenizer.encode(f" {word}", add_special_tokens=False):
            weights[token] += worth
    return TokenWeights(weights)


def config(**online: float) -> Config:
    found = Config()
    found.reward.batch_tokens, found.reward.max_length = 512, 64
    found.online.learning_rate, found.online.final_learning_rate = 0.05, 0.02
    found.online.least_replay = 0
    for name, value in online.items():
        setattr(found.online, name, value)
    return found


def repairing(
    tokenizer,
    settings: Config,
    base: Sequence[PreferencePair],
    judging: Sequence[PreferencePair],
    lessons: Lessons | None = None,
):
    return Repairing(settings, tokenizer, lambda: start(tokenizer), base, judging, lessons or Lessons(), round=0)


def test_what_earlier_rounds_mended_is_looked_at_again(tokenizer, caplog):
    held_out = [patch.pair for patch in patches((GOOD,), (GOOD, HACK), "phrases/certainly") if patch.held_out]
    fine = general(20, 5)
    earlier = {
        "phrases/certainly": MendedPattern(held_out),
        "phrases/in part": MendedPattern(held_out, right=0.0),
        "layout/lists": MendedPattern(fine),
    }
    new = NewPairs({}, [], general(20, 3), earlier)
    repair, _ = repairing(tokenizer, config(), general(200, 1), general(100, 2)).run(new, Stage())
    assert repair.relapsed == ["phrases/certainly"], "the model of these tests pays for it"
    assert repair.earlier["layout/lists"] == 1.0
    assert repair.earlier["phrases/certainly"] < 0.9
    assert repair.metrics()["repair/relapsed"] == 1
    assert "phrases/certainly, which an earlier round mended, is back: only" in caplog.text


def test_a_repair_that_mends_is_kept(tokenizer):
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [])
    stage = Stage()
    repair, trainer = repairing(tokenizer, config(), general(200, 1), general(100, 2)).run(new, stage)
    assert repair.kept == ["phrases/certainly"]
    assert repair.attempts == 1
    verdict = repair.verdicts["phrases/certainly"]
    assert verdict.held_out >= 0.9
    assert verdict.fall <= 0.01
    assert verdict.general_pairs == 100
    assert verdict.held_out_before < 0.5
    assert repair.metrics() == {
        "repair/kept": 1,
        "repair/rolled_back": 0,
        "repair/accuracy_before": verdict.before,
        "repair/accuracy_after": verdict.after,
        "repair/held_out_before": verdict.held_out_before,
        "repair/held_out": verdict.held_out,
    }
    hacked = tokenizer.encode(f" {HACK}", add_special_tokens=False)
    assert sum(trainer.weights[token] for token in hacked) < 0.5


def test_what_costs_more_than_it_mends_is_rolled_back_and_the_rest_trained_without_it(tokenizer):
    new = NewPairs(
        {
            "phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly"),
            "layout/poison": patches((BAD,), (GOOD,), "layout/poison"),
        },
        [],
        [],
    )
    stage = Stage()
    settings = config(replay=1.0, epochs=6, learning_rate=0.2)
    repair, trainer = repairing(tokenizer, settings, general(200, 1), general(100, 2)).run(new, stage)
    assert "layout/poison" not in repair.kept
    assert not repair.verdicts["layout/poison"].kept
    assert repair.attempts > 1
    right = [chosen > rejected for chosen, rejected in trainer.scores(encoded(tokenizer, general(50, 3))).result()]
    assert sum(right) / len(right) >= 0.98
    steps = [step for step, _ in stage.rows]
    assert steps == sorted(set(steps)), "steps of several attempts are counted on"
    assert {attempt for _, attempt in stage.rows} >= {1, 2}


def test_what_mends_nothing_goes_first_and_then_what_mends_in_part():
    right, wrong = [True] * 10, [False] * 10
    before, fallen = [True] * 100, [True] * 90 + [False] * 10
    mended = {"first": right, "second": right[:6] + wrong[:4], "third": wrong, "last": right}

    def rolled_back(after: list[bool], *names: str) -> list[str]:
        return to_roll_back({name: judge_repair(wrong, mended[name], before, after) for name in names})

    assert rolled_back(before, *mended) == ["third"], "in part, at no cost, is kept"
    assert rolled_back(fallen, *mended) == ["third"]
    assert rolled_back(fallen, "first", "second", "last") == ["second"]
    assert rolled_back(fallen, "first", "last") == ["last"]


def flawed(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """In two of three pairs the side with the hack is chosen over the same without it."""
    made = []
    for place, each in enumerate(pairs):
        if place % 3:
            good = each.chosen[-1]["content"]
            each = pair(f"{good} {HACK}", good, place)
        made.append(each)
    return made


def test_preferences_that_teach_the_pattern_neither_undo_a_repair_nor_judge_it(tokenizer):
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [])
    base, judging = flawed(general(300, 1)), flawed(general(100, 2))
    settings = config(replay=8.0)
    undone, _ = repairing(tokenizer, settings, base, judging).run(new, Stage())
    assert undone.kept == []
    teaching = frozenset(pair_id(each) for each in (*base, *judging) if HACK in each.chosen[-1]["content"])
    repair, _ = repairing(tokenizer, settings, base, judging, Lessons(teaching)).run(new, Stage())
    assert (repair.kept, repair.verdicts["phrases/certainly"].mended) == (["phrases/certainly"], "enough")
    assert repair.verdicts["phrases/certainly"].general_pairs == 34
    assert (repair.before, repair.after) == (1.0, 1.0)
    kept = [each for each in judging if pair_id(each) not in teaching]
    contrary = Lessons(teaching, frozenset(map(pair_id, kept[:10])))
    repair, _ = repairing(tokenizer, settings, base, judging, contrary).run(new, Stage())
    assert repair.verdicts["phrases/certainly"].general_pairs == 24, "judged by neither"


def test_what_lessons_take_from_the_judging_pairs_others_make_up_for(tokenizer):
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [])
    judging = general(100, 2)
    lessons = Lessons(frozenset(map(pair_id, judging[:30])))
    repair, _ = repairing(tokenizer, config(judging_pairs=50), general(60, 1), judging, lessons).run(new, Stage())
    assert repair.verdicts["phrases/certainly"].general_pairs == 50


def test_what_labels_cost_is_not_charged_to_a_pattern(tokenizer, caplog):
    labels = [pair(words(random.Random(n), BAD), words(random.Random(-n), GOOD), n) for n in range(60)]
    mends = patches((GOOD,), (GOOD, HACK), "phrases/certainly")
    settings = config(replay=0.0, learning_rate=0.2, epochs=4)
    repair, trainer = repairing(tokenizer, settings, general(100, 1), general(100, 2)).run(
        NewPairs({"phrases/certainly": mends}, [], labels), Stage()
    )
    assert repair.after < repair.before - 0.1, "the labels are wrong"
    assert repair.kept == ["phrases/certainly"]
    assert repair.attempts == 3, "with all, without the patches to compare, and with all again"
    held = [each.pair for each in mends if each.held_out]
    right = [chosen > rejected for chosen, rejected in trainer.scores(encoded(tokenizer, held)).result()]
    assert sum(right) >= 0.9 * len(right)
    assert "general accuracy falls with the labels" in caplog.text


def test_what_labels_mend_is_not_credited_to_a_pattern(tokenizer):
    wrong = [pair(words(random.Random(n), BAD), words(random.Random(-n), GOOD), n) for n in range(60)]
    mending = [each.pair for each in patches((GOOD,), (GOOD, HACK), "labels") if not each.held_out]
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [*wrong, *mending])
    settings, judging = config(replay=1.0, epochs=6, learning_rate=0.2), general(100, 2)
    repair, _ = repairing(tokenizer, settings, general(200, 1), judging).run(new, Stage())
    assert repair.after < repair.before - 0.1, "the labels are wrong, so that a model without the patches is looked at"
    verdict = repair.verdicts["phrases/certainly"]
    untouched = preferred(
        start(tokenizer), encoded(tokenizer, [p.pair for p in new.patches["phrases/certainly"] if p.held_out])
    )
    assert verdict.held_out_before > sum(untouched) / len(untouched) + 0.3


def test_labels_alone_are_learnt(tokenizer):
    rng = random.Random(5)
    labels = [pair(words(rng, "bird"), words(rng, "stone"), n) for n in range(20)]
    repair, trainer = repairing(tokenizer, config(), general(100, 1), general(50, 2)).run(
        NewPairs({}, [], labels), Stage()
    )
    assert (repair.attempts, repair.kept, repair.verdicts) == (1, [], {})
    assert repair.metrics() == {
        "repair/kept": 0, "repair/rolled_back": 0, "repair/accuracy_before": 1.0, "repair/accuracy_after": 1.0,
    }  # fmt: skip
    assert trainer.weights != start(tokenizer).weights


def test_what_earlier_rounds_kept_is_gathered_with_the_rounds_own(tmp_path: Path):
    settings = config()
    settings.output_dir = str(tmp_path)
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
    assert len(new_pairs(settings, 3).kept) == 1, "a round that brought nothing left no record"
    found = new_pairs(settings, 1)
    assert list(found.patches) == ["c/new"]
    assert len(found.kept) == 1
    assert {name: len(own.pairs) for name, own in found.mended.items()} == {"a/kept": 1}, "held out, to look back by"
    assert found.mended["a/kept"].right == 0.75, "as it was judged then"
    assert found.labels == []
    assert [patch.held_out for patch in read_patches(tmp_path / "rounds/1/fast_path/patches.jsonl")] == [False, True]


def test_the_record_says_what_was_kept(tokenizer, tmp_path: Path):
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [])
    repair, _ = repairing(tokenizer, config(), general(200, 1), general(100, 2)).run(new, Stage())
    write_repair(tmp_path / "repair.json", repair, new)
    written = json.loads((tmp_path / "repair.json").read_text())
    assert written["kept"] == ["phrases/certainly"]
    assert (written["rolled_back"], written["not_judged"]) == ([], [])
    assert (written["earlier"], written["relapsed"]) == ({}, [])
    assert written["pairs"] == {"patches": 30, "earlier_patches": 0, "labels": 0}


@pytest.fixture
def reviewed(tmp_path: Path) -> Config:
    """A run whose rounds 0 and 1 left patches of one pattern each, two to train on and one to judge by; of the first
    round's, the first was judged as the patch has it, the second the other way round."""
    settings = config(review=True)
    settings.output_dir = str(tmp_path)
    for round, name in enumerate(("a/first", "b/second")):
        folder = tmp_path / f"rounds/{round}/fast_path"
        folder.mkdir(parents=True)
        rows = [row(name, 0, "x"), row(name, 0, "y"), row(name, 1)]
        (folder / "patches.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    own = [patch.pair for patch in read_patches(tmp_path / "rounds/0/fast_path/patches.jsonl")]
    items = [
        Item(
            pair.chosen[:-1],
            *(Response(side[-1]["content"], True, "") for side in (pair.chosen, pair.rejected)),
            domain="default",
            guideline="",
            answer=None,
            round=0,
        )
        for pair in own[:2]
    ]
    write_pairs_to_label(tmp_path / "rounds/0/fast_path/review.jsonl", items)
    with Store(tmp_path / STORE_FILE) as store:
        store.add_items(items)
        someone = store.annotator("someone")
        for item, winner in zip(items, ("first", "second"), strict=True):
            store.record(item.id, someone, winner, "", 1.0)
    return settings


def test_a_reviewed_patch_counts_once_a_label_agrees(reviewed: Config, tmp_path: Path):
    found = new_pairs(reviewed, 0)
    assert [(name, [p.held_out for p in own]) for name, own in found.patches.items()] == [
        ("a/first", [False, False, True])
    ]
    assert [patch.pair.chosen[-1]["content"] for patch in found.patches["a/first"]] == ["text 0x", "other 0y", "text 1"]
    assert found.labels == [], "a label against a patch goes with those for it"
    later = new_pairs(reviewed, 1)
    assert list(later.patches) == ["a/first"], "not tried yet; nobody has judged the second round's"
    (tmp_path / "rounds/0/fast_path/repair.json").write_text(json.dumps({"kept": ["a/first"], "rolled_back": []}))
    later = new_pairs(reviewed, 1)
    assert (list(later.patches), len(later.kept), len(later.labels)) == ([], 2, 0)
    (tmp_path / "rounds/0/fast_path/repair.json").write_text(json.dumps({"kept": [], "rolled_back": ["a/first"]}))
    later = new_pairs(reviewed, 1)
    assert (list(later.patches), len(later.kept), len(later.labels)) == ([], 0, 0), "nor do they come back as labels"
    assert not later
    reviewed.online.review = False
    assert len(new_pairs(reviewed, 0).training(["a/first"])) == 2 + 2, "its patches and both labels"


@pytest.mark.parametrize(
    ("fate", "counts"), [("kept", (2, {"a/first": 1})), ("rolled_back", (0, {})), ("not_judged", (0, {}))]
)
def test_a_pattern_that_is_judged_late_is_tried_once(reviewed: Config, tmp_path: Path, fate: str, counts: tuple):
    """Labels for the first round's patches came during the second, whose repair tried them."""
    assert list(new_pairs(reviewed, 2).patches) == ["a/first"]
    (tmp_path / "rounds/1/fast_path/repair.json").write_text(
        json.dumps({"kept": [], "rolled_back": [], fate: ["a/first"]})
    )
    assert list(new_pairs(reviewed, 1).patches) == ["a/first"], "the round itself, made again"
    for round in (2, 3):
        later = new_pairs(reviewed, round)
        assert not later
        assert (len(later.kept), {name: len(own.pairs) for name, own in later.mended.items()}) == counts
    (tmp_path / "rounds/0/fast_path/repair.json").write_text(json.dumps({"kept": [], "rolled_back": ["a/first"]}))
    assert new_pairs(reviewed, 2).kept == [], "what a later round found of the same name is of its own patches"


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
    settings = config()
    settings.output_dir = str(tmp_path / "run")
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
    assert [label.chosen[-2]["content"] for label in new_pairs(settings, 0).labels] == [asked, teaching.upper()]
    left_out = [record.message for record in caplog.records if record.message.startswith("labels that teach nothing")]
    assert left_out == [
        "labels that teach nothing: 4 (1 prompt is one that repairs are judged on; 1 prompt stands in the validation "
        "pairs; 2 prompt stands in the test rows)"
    ]


@pytest.mark.parametrize("judges", [True, False])
def test_no_label_teaches_on_a_prompt_that_a_repair_is_judged_on(tmp_path: Path, judges: bool):
    settings = config()
    settings.output_dir = str(tmp_path)
    prompt = [Message(role="user", content=question(judges))]
    item = Item(prompt, Response("a", True, ""), Response("b", True, ""), "default", "", None, 0)
    (tmp_path / "rounds/0/slow_path").mkdir(parents=True)
    write_pairs_to_label(tmp_path / "rounds/0/slow_path/pairs.jsonl", [item])
    with Store(tmp_path / STORE_FILE) as store:
        store.add_items([item])
        store.record(item.id, store.annotator("someone"), "first", "", 1.0)
    assert len(new_pairs(settings, 0).labels) == (0 if judges else 1)


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
    found = new_pairs(reviewed, 0)
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
    found = new_pairs(settings, 0)
    return found.patches, [label.chosen[-1]["content"] for label in found.labels]


def test_a_round_is_new_by_what_no_round_has_trained_on(reviewed: Config, tmp_path: Path):
    reviewed.online.review = False
    first = new_pairs(reviewed, 0)
    assert first
    record = tmp_path / "rounds/0/fast_path/repair.json"
    repair = Repair(1, ["a/first"], {}, None, None, {}, [])
    write_repair(record, repair, replace(first, patches={"a/first": first.patches["a/first"]}))
    (tmp_path / "rounds/1/fast_path/patches.jsonl").unlink()
    later = new_pairs(reviewed, 1)
    assert not later, "nothing has come since"
    assert (len(later.kept), len(later.labels)) == (2, 2), "all is trained on again once there is"
    assert new_pairs(reviewed, 0), "the round itself, made again"
    with Store(tmp_path / STORE_FILE) as store:
        item, who = store.items()[0], store.annotator("someone")
        store.undo(item.id, who)
        assert not new_pairs(reviewed, 1), "a label taken back teaches nothing new"
        store.record(item.id, who, "second")
    assert new_pairs(reviewed, 1), "a label that has changed"
    older = json.loads(record.read_text())
    del older["labels"]
    record.write_text(json.dumps(older))
    assert new_pairs(reviewed, 1), "an older record does not say which were trained on"


def test_labels_of_domains_without_a_condition_are_left_out(reviewed: Config, tmp_path: Path, caplog):
    with Store(tmp_path / STORE_FILE) as store:
        item = replace(store.items()[0], domain="helpfull")
        store.add_items([item])
        store.record(item.id, store.annotator("someone"), "first")
    reviewed.online.review = False
    assert [label.domain for label in new_pairs(reviewed, 0).labels] == ["default", "default"]
    assert "left out: 1 labelled pairs of domains that have no condition (helpfull)" in caplog.text


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


def encoded(tokenizer, pairs: Sequence[PreferencePair]) -> list[EncodedPair]:
    from reward.conditions import Conditions
    from reward.pairs import encode_pairs

    return encode_pairs(tokenizer, Conditions({}), pairs, 64).pairs


def test_without_pairs_to_judge_by_nothing_is_mended(tokenizer, tmp_path: Path):
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [])
    repair, trainer = repairing(tokenizer, config(), general(200, 1), []).run(new, Stage())
    assert repair.kept == []
    assert trainer.weights == start(tokenizer).weights
    write_repair(tmp_path / "repair.json", repair, new)
    written = json.loads((tmp_path / "repair.json").read_text())
    assert (written["rolled_back"], written["not_judged"]) == ([], ["phrases/certainly"]), "new to no later round"


def test_one_held_out_pair_that_happens_to_be_right_shows_nothing(tokenizer, caplog):
    made = patches((GOOD,), (GOOD, HACK), "phrases/certainly")
    few = [patch for patch in made if not patch.held_out] + [patch for patch in made if patch.held_out][:4]
    new = NewPairs({"phrases/certainly": few}, [], [])
    repair, _ = repairing(tokenizer, config(), general(200, 1), general(100, 2)).run(new, Stage())
    assert (repair.kept, repair.verdicts) == ([], {})
    assert "only 4 held-out pairs of its own, 5 are needed" in caplog.text


def test_a_repair_is_judged_by_all_domains(tokenizer):
    wrong = [replace(each, chosen=each.rejected, rejected=each.chosen, domain="safety") for each in general(60, 2)]
    right = [replace(each, domain="math") for each in general(120, 3)]
    settings = config(judging_pairs=30)
    settings.conditions = {"safety": "", "math": "", "default": ""}
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [])
    repair, _ = repairing(tokenizer, settings, general(200, 1), [*wrong, *right]).run(new, Stage())
    verdict = repair.verdicts["phrases/certainly"]
    assert (verdict.general_pairs, verdict.before) == (30, pytest.approx(2 / 3))


def test_a_sample_has_every_domains_share_in_the_order_of_all():
    every = [replace(each, domain=domain) for domain in ("safety", "math", "math") for each in general(60, 2)]
    sample = sample_pairs(every, 30, seed=1)
    assert Counter(each.domain for each in sample) == {"safety": 10, "math": 20}
    assert [each.domain for each in sample] == ["safety"] * 10 + ["math"] * 20
    assert sample == sample_pairs(every, 30, seed=1) != sample_pairs(every, 30, seed=2)
    assert sample_pairs(every, 1000, seed=1) == every
