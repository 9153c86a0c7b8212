"""The yardsticks learn what they can, and nothing else."""

from __future__ import annotations

import random

import numpy as np

from cool_rlhf.protocols import PreferencePair
from reward.baselines import WORD, longer_wins, ngram_margins
from reward.statistics import hits


def pair(chosen: str, rejected: str, domain: str = "default", prompt: str = "?") -> PreferencePair:
    question = {"role": "user", "content": prompt}
    sides = [[question, {"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return PreferencePair(*sides, domain, None, True, True)


def texts(seed: int, count: int) -> list[tuple[str, str]]:
    """Two texts of random words, of which only the first one says please."""
    generator = random.Random(seed)
    words = [f"w{k}" for k in range(60)]
    drawn = [[generator.choices(words, k=generator.randint(4, 9)) for _ in range(2)] for _ in range(count)]
    return [(" ".join([*a[:2], "please", *a[2:]]), " ".join(b)) for a, b in drawn]


def test_longer_wins():
    assert longer_wins([pair("abc", "a"), pair("a", "b"), pair("", "ab")]).tolist() == [2, 0, -2]


def test_ngrams_find_a_word():
    train = [pair(*sides, prompt=str(k)) for k, sides in enumerate(texts(1, 200))]
    test = [pair(*sides) for sides in texts(2, 100)]
    margins = ngram_margins(train, test, 0, 1000)
    assert hits(margins).mean() > 0.9
    swapped = [pair(p.rejected[-1]["content"], p.chosen[-1]["content"]) for p in test]
    np.testing.assert_allclose(ngram_margins(train, swapped, 0, 1000), -margins, atol=1e-9)


def test_the_domain_tells_opposite_tastes_apart():
    def opposed(seed: int, count: int) -> list[PreferencePair]:
        rows = [(a, b, str(k)) for k, (a, b) in enumerate(texts(seed, count))]
        return [pair(a, b, "polite", p) for a, b, p in rows] + [pair(b, a, "curt", p) for a, b, p in rows]

    test = opposed(2, 100)
    assert hits(ngram_margins(opposed(1, 200), test, 0, 1000)).mean() > 0.9
    blind = [PreferencePair(p.chosen, p.rejected, "one", None, True, True) for p in opposed(1, 200)]
    assert abs(hits(ngram_margins(blind, test, 0, 1000)).mean() - 0.5) < 0.05


def test_of_a_domain_never_seen_the_common_part_is_known():
    train = [pair(*sides, prompt=str(k)) for k, sides in enumerate(texts(1, 200))]
    assert hits(ngram_margins(train, [pair(*sides, "new") for sides in texts(2, 100)], 0, 1000)).mean() > 0.85


def test_few_pairs_and_a_limit():
    train = [pair(*sides, prompt=str(k)) for k, sides in enumerate(texts(1, 200))]
    test = [pair(*sides) for sides in texts(2, 40)]
    assert np.isfinite(ngram_margins(train[:1], test, 0, 1000)).all()
    few = ngram_margins(train, test, 0, 20)
    np.testing.assert_array_equal(few, ngram_margins(train, test, 0, 20))
    assert not np.array_equal(few, ngram_margins(train, test, 1, 20))


def test_a_vowel_sign_is_part_of_its_word():
    """Words that differ in their vowel signs alone."""
    sides = [("हाँ यह काला है", "हाँ यह कीला है"), ("यह घर काला था", "यह घर कीला था")]
    train = [pair(*sides[k % 2], prompt=str(k)) for k in range(40)]
    assert WORD.findall("कीला है, été!") == ["कीला", "है", ",", "été", "!"]
    assert ngram_margins(train, [pair("काला", "कीला")], 0, 1000)[0] > 0.5
