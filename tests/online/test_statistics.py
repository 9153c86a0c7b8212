"""The statistics against numbers worked by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from cool_rlhf.online.overoptimisation import fit_reward, parting
from cool_rlhf.online.repair import effect, judge_repair, mix_with_replay
from cool_rlhf.online.statistics import benjamini_hochberg, exceeds, gold_departure, holm, log_odds, paired_rise
from cool_rlhf.online.text import overlap, repeated_share, sentences, without, words
from cool_rlhf.protocols import Message, PreferencePair


def test_log_odds_by_hand() -> None:
    counts, prior = np.array([[3.0, 1.0], [1.0, 3.0]]), np.array([1.0, 1.0])
    delta, z = log_odds(*counts, prior, [np.full(2, total) for total in (4.0, 4.0, 2.0)])
    # (3 + 1) / (4 + 2 - 3 - 1) = 2 against (1 + 1) / (4 + 2 - 1 - 1) = 1/2; variance 1/4 + 1/2
    assert delta == pytest.approx([math.log(4), -math.log(4)])
    assert z[0] == pytest.approx(math.log(4) / math.sqrt(0.75))
    longer, _ = log_odds(*counts, prior, [np.array([4.0, 12.0]), np.array([4.0, 4.0]), np.array([2.0, 2.0])])
    # the second word's first total: (1 + 1) / (12 + 2 - 1 - 1) = 1/6 against (3 + 1) / (4 + 2 - 3 - 1) = 2
    assert longer == pytest.approx([math.log(4), -math.log(12)])


def test_paired_rise_by_hand() -> None:
    assert paired_rise([1.0] * 5 + [0.0] * 7) == pytest.approx(1 / 32)  # sign test: all five of five
    assert paired_rise([1, 2, 3, 4.0]) == pytest.approx(1 / 16)  # signed ranks: one of 2⁴ sign patterns
    assert paired_rise([0.0, 0.0]) == 1


def test_corrections_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])


def test_exceeds() -> None:
    assert exceeds([1.0, 2.0, 3.0], 2.0) == pytest.approx(0.5)
    assert exceeds([1.0, 1.0, 1.0], 0.5) == 1 / 8
    assert exceeds([1.0, 1.0, 1.0], 1.0) == 1
    assert exceeds([1.0, 1.0], 0.0) == 1


def test_gold_departs_only_where_score_rises_and_gold_does_not() -> None:
    rng = np.random.default_rng(0)
    up, flat = rng.normal(1, 0.5, 100), rng.normal(0, 0.3, 100)
    assert gold_departure(up, flat - 0.2, 1.0, 1.0) < 1e-3
    assert gold_departure(up, up, 1.0, 1.0) > 0.5
    assert gold_departure(flat, flat - 0.2, 1.0, 1.0) > 0.5
    still = rng.normal(0, 0.01, 100)  # a quarter of the score's deviation, a tenth of gold's: on which side of them?
    assert gold_departure(0.3 + still, 0.05 + still, 1.0, 1.0) < 1e-3
    assert gold_departure(0.3 + still, 0.15 + still, 1.0, 1.0) > 0.5
    assert gold_departure(0.2 + still, 0.05 + still, 1.0, 1.0) > 0.5


def test_text_statistics_by_hand() -> None:
    assert repeated_share("a b c a b c") == 1 / 4  # abc bca cab abc
    assert sentences("One is 3.5 wide. Two!\nThree") == ["One is 3.5 wide.", "Two!", "Three"]
    assert without("Yes, well, no.", [(5, 10)]) == "Yes, no."


def test_chinese_and_japanese_are_read_without_blanks() -> None:
    answer = "好的，没问题。首都是北京。希望这有帮助！"
    assert sentences(answer) == ["好的，没问题。", "首都是北京。", "希望这有帮助！"]
    assert sentences("他说：“是吗？！”她点头。Version 2.5。Yes") == [
        "他说：“是吗？！”",
        "她点头。",
        "Version 2.5。",
        "Yes",
    ]
    assert words("首都是 Rome・カフェ") == ["首", "都", "是", "rome", "カ", "フ", "ェ"]
    assert without(answer, [(7, 13)]) == "好的，没问题。希望这有帮助！"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("नमस्ते दुनिया। ठीक है!", ["नमस्ते", "दुनिया", "ठीक", "है"]),
        ("வணக்கம் உலகம்", ["வணக்கம்", "உலகம்"]),
        ("اَلسَّلَامُ عَلَيْكُم", ["اَلسَّلَامُ", "عَلَيْكُم"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("e\u0301te\u0301 d’e\u0301te\u0301", ["e\u0301te\u0301", "d’e\u0301te\u0301"]),
        ("ดีมั่น 25", ["ดี", "มั่", "น", "25"]),
        ("か\u3099く", ["か\u3099", "く"]),
        ("❤\ufe0f x² __a b_c", ["x²", "a", "b_c"]),
    ],
)
def test_a_word_keeps_its_marks(text: str, said: list[str]) -> None:
    assert words(text) == said


def test_two_texts_without_a_word_are_alike() -> None:
    assert overlap(set(), set()) == 1.0
    assert overlap(set(), {"a"}) == overlap({"a"}, set()) == 0.0
    assert overlap({"a", "b"}, {"b", "c"}) == pytest.approx(1 / 3)


def test_sentences_of_other_scripts_end_too() -> None:
    assert sentences("यह अच्छा है। क्या? हाँ॥") == ["यह अच्छा है।", "क्या?", "हाँ॥"]
    assert sentences("کیا حال ہے؟ ٹھیک ہے۔") == ["کیا حال ہے؟", "ٹھیک ہے۔"]
    assert without("यह अच्छा है।", [(3, 8)]) == "यह है।"
    assert without("यह है अच्छा।", [(6, 11)]) == "यह है।"


def test_the_fit_recovers_its_numbers_and_its_peak() -> None:
    kl = np.linspace(0, 60, 40)
    d = np.sqrt(kl)
    fit = fit_reward(kl, d * (1.2 - 0.3 * np.log(np.maximum(d, 1e-9))))
    assert (fit.alpha, fit.beta) == pytest.approx((1.2, 0.3))
    assert fit.peak == pytest.approx(math.exp(3))
    assert fit(fit.peak) > max(fit(fit.peak * 0.95), fit(fit.peak * 1.05))
    assert fit(0.0) == 0


def test_fit_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(ValueError, match="three points"):
        fit_reward([0.0, 1.0, 2.0], [0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="negative"):
        fit_reward([-1.0, 1.0, 2.0], [0.0, 1.0, 1.0])


def test_warning_when_score_and_gold_part() -> None:
    rng = np.random.default_rng(1)
    kl = np.linspace(0.1, 20, 30)
    score = np.sqrt(kl) + rng.normal(0, 0.05, 30)
    good = fit_reward(kl, np.sqrt(kl) * 0.3)
    gold = np.sqrt(kl) * (0.9 - 0.5 * np.log(np.sqrt(kl))) + rng.normal(0, 0.02, 30)
    assert parting(kl, score, gold).parted
    assert parting(kl, score, gold).best < 20
    assert not parting(kl[:8], score[:8], gold[:8]).parted
    assert not parting(kl, score, [good(math.sqrt(k)) for k in kl]).parted
    assert not parting([1.0], [1.0], [1.0]).parted


def test_warning_is_rare_where_gold_rises_too() -> None:
    rng = np.random.default_rng(2)
    kl = np.linspace(0.1, 20, 30)
    warned = [
        parting(kl, np.sqrt(kl) + rng.normal(0, 1, 30), np.sqrt(kl) + rng.normal(0, 1, 30)).parted for _ in range(300)
    ]
    assert np.mean(warned) <= 0.05


def test_repair_is_kept_at_its_bounds_and_rolled_back_beyond() -> None:
    held = [True] * 9 + [False]
    before = [True] * 75 + [False] * 25
    fallen = [True] * 74 + [False] * 26
    kept = judge_repair([True] + [False] * 9, held, before, fallen)
    assert (kept.kept, kept.mended) == (True, "enough")
    assert (kept.held_out_before, kept.held_out) == (0.1, 0.9)
    assert kept.fall == pytest.approx(0.01)
    assert kept.mcnemar_p == 1
    assert not judge_repair(held, [True] * 8 + [False] * 2, before, before).kept
    part = judge_repair([True] + [False] * 9, [True] * 6 + [False] * 4, before, before)
    assert (part.kept, part.mended) == (True, "in part"), "five of five turned right: p = 1/32"
    assert "60.0% of the pattern's held-out pairs are right, 10.0% were before" in part.reason
    chance = judge_repair([True] + [False] * 9, [True] * 5 + [False] * 5, before, before)
    assert (chance.kept, chance.mended) == (False, "not"), "four of four: p = 1/16"
    costly = judge_repair([True] + [False] * 99, [True] * 2 + [False] * 98, before, fallen)
    assert (costly.kept, costly.mended) == (False, "not"), "one of a hundred mended, one of a hundred lost"
    undone = judge_repair([True] * 20, [True] * 18 + [False] * 2, before, fallen)
    assert (undone.kept, undone.mended) == (False, "not"), "as many as are asked for, but fewer than before"
    assert "asked for" not in undone.reason
    assert judge_repair([True] * 20, [True] * 20, before, fallen).kept, "nothing to mend, at no cost that counts"
    worse = judge_repair(held, held, before, [True] * 69 + [False] * 31)
    assert not worse.kept
    assert worse.mcnemar_p == pytest.approx(2 / 64)  # six lost, none won
    assert worse.fall_interval[0] < 0.06 < worse.fall_interval[1]
    with pytest.raises(ValueError, match="judged by"):
        judge_repair([], [], before, before)
    with pytest.raises(ValueError, match="got 1 and 2 held-out, 100 and 100 general"):
        judge_repair([True], [True, True], before, before)


def _pair(name: str) -> PreferencePair:
    asked = Message(role="user", content=name)
    sides = [[asked, Message(role="assistant", content=text)] for text in ("a", "b")]
    return PreferencePair(sides[0], sides[1], "facts", None, True, True)


def test_replay_is_drawn_once_each_and_repeats_with_its_seed() -> None:
    patches, base = [_pair(f"p{i}") for i in range(10)], [_pair(f"b{i}") for i in range(50)]
    mixed = mix_with_replay(patches, base, 3.0, seed=1)
    names = [pair.chosen[0]["content"] for pair in mixed]
    assert len(names) == len(set(names)) == 40
    assert {f"p{i}" for i in range(10)} <= set(names)
    assert mixed == mix_with_replay(patches, base, 3.0, seed=1) != mix_with_replay(patches, base, 3.0, seed=2)
    assert len(mix_with_replay(patches, base, 9.0, seed=1)) == 60
    assert len(mix_with_replay([*patches, *patches[:5] * 3], base, 3.0, seed=1)) == 25 + 30, (
        "as many beside repeated ones"
    )
    assert len(mix_with_replay(patches, base, 0.0, seed=1, least=7)) == len(patches) + 7
    assert sorted(mix_with_replay(patches, [], 1.0, seed=1), key=str) == sorted(patches, key=str)
    with pytest.raises(ValueError, match="negative"):
        mix_with_replay(patches, base, -1.0, seed=1)


@pytest.mark.parametrize(("epochs", "most"), [(2, 1), (3, 2)], ids=["enough", "drawn again"])
def test_each_epoch_replays_other_pairs_as_long_as_there_are_any(epochs: int, most: int) -> None:
    patches, base = [_pair(f"p{i}") for i in range(10)], [_pair(f"b{i}") for i in range(50)]
    mixed = mix_with_replay(patches, base, 2.0, seed=1, epochs=epochs)
    each = [[pair.chosen[0]["content"] for pair in mixed[k : k + 30]] for k in range(0, len(mixed), 30)]
    assert [len(set(names)) for names in each] == [30] * epochs, "none twice in one epoch"
    assert all({f"p{i}" for i in range(10)} <= set(names) for names in each)
    times = Counter(name for names in each for name in names if name.startswith("b"))
    assert len(times) == min(50, 20 * epochs)
    assert max(times.values()) == most


def test_conditions_of_one_answer_do_not_make_a_rise_surer() -> None:
    rng = np.random.default_rng(5)
    scores = [(float(late), float(start)) for late, start in rng.normal(loc=(0.3, 0.0), size=(60, 2))]
    prompts = [f"q{n}" for n in range(60)]
    gain, p = effect(scores, [1 / 60] * 60, prompts)
    differences = [late - start for late, start in scores]
    assert gain == pytest.approx(np.mean(differences) / np.std([start for _, start in scores]))
    assert p == pytest.approx(exceeds(differences, 0.0))
    thrice = effect(scores * 3, [1 / 180] * 180, prompts * 3)
    assert thrice == pytest.approx((gain, p))
