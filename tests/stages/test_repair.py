"""Repair of a reward model that really learns: a weight for each token, trained pair by pair."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import pstdev

import pytest
import torch

from cool_rlhf.config import Config
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.online.attempts import REPEATS
from cool_rlhf.online.lessons import Lessons, pair_id
from cool_rlhf.online.records import StoredPatch
from cool_rlhf.protocols import Message, PreferencePair
from cool_rlhf.stages.new_pairs import MendedPattern, NewPairs
from cool_rlhf.stages.repair import JudgingPairs, Repairing, preferred, sample_pairs, write_repair
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
    expected: int = 0

    def expect(self, steps: int) -> None:
        self.expected = steps

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
    return [StoredPatch(name, n >= 30, False, each) for n, each in enumerate(made)]


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
    beside_start: Sequence[tuple[PreferencePair, float]] = (),
):
    made = lessons or Lessons()
    return Repairing(
        settings,
        tokenizer,
        lambda: start(tokenizer),
        base=base,
        general=judging,
        lessons=made,
        round=0,
        beside_start=beside_start,
        gold_p=0.25,
    )


def turned(each: PreferencePair) -> PreferencePair:
    return replace(each, chosen=each.rejected, rejected=each.chosen)


def test_what_earlier_rounds_mended_is_looked_at_again(tokenizer, caplog):
    held_out = [patch.pair for patch in patches((GOOD,), (GOOD, HACK), "phrases/certainly") if patch.held_out]
    fine = general(20, 5)
    earlier = {
        "phrases/certainly": MendedPattern(held_out),
        "phrases/in part": MendedPattern(held_out, right=0.0),
        "layout/lists": MendedPattern(fine),
        "layout/one pair fewer": MendedPattern([*fine[:3], *map(turned, fine[3:5])], right=4 / 5),
        "layout/two pairs fewer": MendedPattern([*fine[:2], *map(turned, fine[2:5])], right=4 / 5),
    }
    new = NewPairs({}, [], general(20, 3), earlier)
    repair, _ = repairing(tokenizer, config(), general(200, 1), general(100, 2)).run(new, Stage())
    assert repair.relapsed == ["phrases/certainly", "layout/two pairs fewer"], "the model of these tests pays for it"
    assert repair.earlier["layout/lists"] == 1.0
    assert repair.earlier["phrases/certainly"] < 0.9
    assert repair.metrics()["repair/relapsed"] == 2
    assert "phrases/certainly, which an earlier round mended, is back: only" in caplog.text


def test_a_repair_that_mends_is_kept(tokenizer):
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [])
    stage = Stage()
    repair, trainer = repairing(tokenizer, config(epochs=4), general(200, 1), general(100, 2)).run(new, stage)
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


def test_a_repair_tells_what_is_left_of_the_policy_s_rise(tokenizer, tmp_path: Path):
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [])
    starts = [(GOOD,), (BAD,), (BAD, GOOD)]
    cheated = [
        (pair(f"stone {HACK} {' '.join(said)}", f"stone {' '.join(said)}", n), 1 / 36)
        for n in range(12)
        for said in starts
    ]
    repair, trainer = repairing(tokenizer, config(), general(200, 1), general(100, 2), beside_start=cheated).run(
        new, Stage()
    )
    weights = start(tokenizer).weights
    hack = sum(weights[token] for token in tokenizer.encode(f" {HACK}", add_special_tokens=False))
    scores = [sum(weights[t] for word in said for t in tokenizer.encode(f" {word}", add_special_tokens=False))
              for said in starts]  # fmt: skip
    assert repair.rise.before * pstdev(scores) == pytest.approx(hack)
    assert repair.rise.p < 0.01
    assert repair.rise.gold_p == 0.25
    assert repair.rise.after < 0.5 * repair.rise.before
    assert sum(trainer.weights.values()) != sum(weights.values())
    write_repair(tmp_path / "repair.json", repair, new)
    assert json.loads((tmp_path / "repair.json").read_text())["rise"] == asdict(repair.rise)


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


@pytest.mark.parametrize("rate", [0.003, 0.05])
def test_a_repair_that_is_too_weak_is_made_again_with_more_weight(tokenizer, tmp_path: Path, rate: float):
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [])
    settings = config(learning_rate=rate, final_learning_rate=rate, epochs=4)
    stage = Stage()
    repair, _ = repairing(tokenizer, settings, general(200, 1), general(100, 2)).run(new, stage)
    assert repair.kept == ["phrases/certainly"]
    assert repair.verdicts["phrases/certainly"].held_out >= 0.9
    weak = rate < 0.01
    assert (repair.attempts, repair.times) == (2 if weak else 1, {"phrases/certainly": REPEATS if weak else 1})
    write_repair(tmp_path / "repair.json", repair, new)
    repeated = {"phrases/certainly": REPEATS} if weak else {}
    assert json.loads((tmp_path / "repair.json").read_text())["repeated"] == repeated
    assert {attempt for _, attempt in stage.rows} == set(range(1, repair.attempts + 1))
    assert stage.expected == stage.rows[-1][0] + 1, "the steps of all attempts, and the record of the repair"


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
    repair, _ = repairing(tokenizer, settings, general(100, 1), judging).run(new, Stage())
    assert repair.after < repair.before - 0.1, "the labels are wrong, so that a model without the patches is looked at"
    verdict = repair.verdicts["phrases/certainly"]
    untouched = preferred(
        start(tokenizer), encoded(tokenizer, [p.pair for p in new.patches["phrases/certainly"] if p.held_out])
    )
    assert verdict.held_out_before > sum(untouched) / len(untouched) + 0.3


def test_where_no_repair_stays_what_labels_alone_taught_is_not_taught_again(tokenizer):
    new = NewPairs({"layout/poison": patches((BAD,), (GOOD,), "layout/poison")}, [], general(60, 9))
    settings = config(replay=0.0, learning_rate=0.2, epochs=4)
    repair, _ = repairing(tokenizer, settings, general(100, 1), general(100, 2)).run(new, Stage())
    assert repair.kept == []
    assert repair.after == 1.0
    assert repair.attempts == 2, "with the patches, and without them to compare, which is what stays"
    nothing, _ = repairing(tokenizer, settings, general(100, 1), general(100, 2)).run(NewPairs({}, [], []), Stage())
    assert nothing.attempts == 0


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


def test_the_record_says_what_was_kept(tokenizer, tmp_path: Path):
    new = NewPairs({"phrases/certainly": patches((GOOD,), (GOOD, HACK), "phrases/certainly")}, [], [])
    repair, _ = repairing(tokenizer, config(), general(200, 1), general(100, 2)).run(new, Stage())
    write_repair(tmp_path / "repair.json", repair, new)
    written = json.loads((tmp_path / "repair.json").read_text())
    assert written["kept"] == ["phrases/certainly"]
    assert (written["rolled_back"], written["not_judged"]) == ([], [])
    assert (written["earlier"], written["relapsed"]) == ({}, [])
    assert written["pairs"] == {"patches": 30, "earlier_patches": 0, "labels": 0}


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


def test_a_pair_under_several_conditions_judges_once(tokenizer):
    once = patches((GOOD,), (GOOD, HACK), "phrases/certainly")
    under = ("default", "helpful", "harmless")
    often = [replace(patch, pair=replace(patch.pair, domain=name)) for patch in once for name in under]
    settings = config(epochs=4)
    settings.conditions = dict.fromkeys(under, "")
    repair, _ = repairing(tokenizer, settings, general(200, 1), general(100, 2)).run(
        NewPairs({"phrases/certainly": often}, [], []), Stage()
    )
    assert repair.verdicts["phrases/certainly"].held_out_pairs == sum(patch.held_out for patch in once)
    trainer = start(tokenizer)
    good, bad = encoded(tokenizer, [pair(GOOD, BAD, 1), pair(BAD, GOOD, 2)])
    assert JudgingPairs([good, good, good, bad], [0, 0, 1, 1]).right(trainer) == [True, False], "under all of them"
