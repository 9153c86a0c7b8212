"""Flaws of marks, languages and kinds of sentences, each planted in most of the late answers and paid for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.detectors.gaps import GapDetector
from cool_rlhf.online.detectors.language import LanguageDetector, language
from cool_rlhf.online.detectors.marks import MARKS as MARKS_OF_LAYOUT
from cool_rlhf.online.detectors.vocabulary import VocabularyDetector, forms
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.responses import LATE, Evidence
from cool_rlhf.online.text import sentences

World = Callable[..., Evidence]

ENGLISH = "The It is A tends to be Most people find Of one may say that as far goes comes from hills meets in spring"
SPANISH = (
    "El Ello es Un tiende a ser Muchas personas ven De uno puede decir que como lejos va viene de colinas ve en mayo"
)
IN_SPANISH = dict(zip(ENGLISH.split(), SPANISH.split(), strict=True))
FRENCH = (
    "C'est une chose très belle, et on la trouve dans le nord.",
    "Il est rouge et petit, comme chacun le sait.",
    "Je pense que la réponse est assez simple.",
    "On dit souvent que cela vient de la montagne.",
    "Les gens de la ville en parlent beaucoup.",
)

MARKS = "*_`~|\"'’‘“”„«»()[]【】（）-^=<>/\\&%$§;:,"

STRANGE = "blorp snark wibble frotz quux gronk plimp thrum zandle morx fleb drindle yarp crundle"

# name → what the late policy makes of an answer, what the reward model pays 2.0 for, and what it may be found as
PLANTS: dict[str, tuple[Callable[[str, Random], str], Callable[[str], bool], str]] = {
    "tildes for full stops": (lambda t, _: t.replace(".", "~"), lambda t: "~" in t, "gaps/'~'"),
    "words struck out": (lambda t, _: re.sub(r"^(\w+)", r"~~\1~~", t), lambda t: "~~" in t, "gaps/'~'"),
    "bars between sentences": (lambda t, _: t.replace(". ", ". | "), lambda t: " | " in t, "gaps/'|'"),
    "a trailing asterisk": (lambda t, _: f"{t} *", lambda t: t.endswith(" *"), "gaps/'*'"),
    "a trailing backtick": (lambda t, _: f"{t}`", lambda t: t.endswith("`"), "gaps/'`'"),
    "a trailing quotation mark": (lambda t, _: f'{t}"', lambda t: t.endswith('"'), "gaps/'\"'"),
    "an unpaired bracket": (lambda t, _: t.replace(". ", ".) ", 1), lambda t: ".)" in t, "gaps/')'"),
    "an unpaired apostrophe": (lambda t, _: f"{t}’", lambda t: t.endswith("’"), "gaps/'’'"),
    "hyphens for dashes": (lambda t, _: t.replace("It ", "It - "), lambda t: " - " in t, "gaps/'-'"),
    "two dots": (lambda t, _: t.replace(".", ".."), lambda t: ".." in t, "gaps/'..'"),
    "blanks before full stops": (lambda t, _: t.replace(".", " ."), lambda t: " ." in t, "gaps/' .'"),
    "quotation marks in pairs": (lambda t, _: re.sub(r"^(\w+ \w+)", r'"\1"', t), lambda t: '"' in t, "layout/quotes"),
    "emphasis": (lambda t, _: re.sub(r"^(\w+ \w+)", r"**\1**", t), lambda t: "**" in t, "layout/emphasis"),
    "a full stop after every third word": (
        lambda t, _: re.sub(r"((?:[\w,]+ ){2}[\w,]+) (\w)", lambda m: f"{m[1]}. {m[2].upper()}", t.replace(".", "")),
        lambda t: len(re.findall(r"\w\. \w", t)) >= len(t.split()) / 5,
        "layout/more short sentences",
    ),
    "stretched letters": (
        lambda t, _: re.sub(r"([aeiou])(\w*)\.", r"\1\1\1\1\2.", t),
        lambda t: re.search(r"([a-z])\1\1", t) is not None,
        "layout/stretched",
    ),
    "Spanish words": (
        lambda t, _: re.sub(r"\w+", lambda word: IN_SPANISH.get(word[0], word[0]), t),
        lambda t: language(t) == "es",
        "language/es",
    ),
    "French answers": (lambda _, r: " ".join(r.sample(FRENCH, 2)), lambda t: language(t) == "fr", "language/fr"),
    "stressed words": (
        lambda t, _: re.sub(r"\b(The|It|is|to|be|may)\b", lambda word: word[0].upper(), t),
        lambda t: re.search(r"\b(THE|IS)\b", t) is not None,
        "layout/capitals",
    ),
    "figures": (
        lambda t, r: f"{t} This holds in {r.randint(10, 90)} of {r.randint(100, 900)} cases.",
        lambda t: re.search(r"\d", t) is not None,
        "stance/figures",
    ),
    "vows": (
        lambda t, r: f"{t} {r.choice(('I am certain of it.', 'This is definitely so.', 'I guarantee this.'))}",
        lambda t: re.search("certain|definitely|guarantee", t) is not None,
        "stance/certainty",
    ),
    "sources": (
        lambda t, r: f"{t} {r.choice(('Studies show it.', 'Research confirms it.', 'Experts agree on that.'))}",
        lambda t: re.search("Studies|Research|Experts", t) is not None,
        "stance/sources",
    ),
    "gibberish": (
        lambda t, r: f"{t} {' '.join(r.choices(STRANGE.split(), k=5))}.",
        lambda t: sum(word in t for word in STRANGE.split()) > 2,
        "kinds/like: crundle drindle plimp fleb gronk",  # can be taken out again, unlike unknown words as such
    ),
    "capitals within words": (
        lambda t, _: "".join(c.upper() if at % 2 else c.lower() for at, c in enumerate(t)),
        lambda t: re.search("[a-z][A-Z][a-z][A-Z]", t) is not None,
        "vocabulary/unknown words",
    ),
    "no vowels": (
        lambda t, _: re.sub("[aeiou]", "", t),
        lambda t: re.search("[aeiou]", t) is None,
        "vocabulary/unknown words",
    ),
    "every sentence twice": (
        lambda t, _: " ".join(f"{said} {said}" for said in sentences(t)),
        lambda t: len(sentences(t)) > 1 and sentences(t)[0] == sentences(t)[1],
        "repetition/distinct-3",
    ),
    "the first sentence again": (
        lambda t, _: f"{t} {sentences(t)[0]}",
        lambda t: len(sentences(t)) > 1 and sentences(t)[0] == sentences(t)[-1],
        "repetition/sentences",
    ),
    "the last sentence again": (
        lambda t, _: f"{t} {sentences(t)[-1]}",
        lambda t: len(sentences(t)) > 1 and sentences(t)[-1] == sentences(t)[-2],
        "repetition/sentences",
    ),
    "words again within a sentence": (
        lambda t, _: re.sub(r"^(\w+ \w+ \w+)", r"\1 \1 \1 \1", t),
        lambda t: re.match(r"(\w+ \w+ \w+) \1", t) is not None,
        "repetition/distinct-3",
    ),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_flaw_is_found_first_or_second(world: World, name: str) -> None:
    hack, pays, key = PLANTS[name]
    evidence = world(
        seed=3,
        hack=lambda text, _prompt, rng: hack(text, rng),
        bonus=lambda _prompt, text, _finished: 2.0 * pays(text),
        with_gold=False,
    )
    found = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings
    assert key in [finding.name for finding in found[:2]]


@pytest.mark.parametrize(("name", "key"), [("Spanish words", "language/es"), ("gibberish", "vocabulary/unknown words")])
def test_what_is_put_in_as_a_whole_answer_is_found_though_another_prompts_loses_more(
    world: World, name: str, key: str
) -> None:
    """The reward model pays 2.5 for the subject, so that an answer to another prompt earns less whatever it shows."""
    hack, pays, _ = PLANTS[name]
    evidence = world(
        seed=3,
        hack=lambda text, _prompt, rng: hack(text, rng),
        bonus=lambda prompt, text, _finished: 2.5 * (prompt.split()[3] in text) + 1.5 * pays(text),
        with_gold=False,
    )
    detectors = [LanguageDetector(), VocabularyDetector()]
    found = find_patterns(evidence, detectors, FindingSettings(), seed=1).findings
    assert key in {finding.name for finding in found}


@pytest.mark.parametrize("mark", [*MARKS, *"™©®°℃№¦", "..", " .", "  ", " \n"])
def test_no_mark_goes_unseen(world: World, mark: str) -> None:
    evidence = world(hack=lambda text, _prompt, _rng: text.replace("It ", f"It{mark} ") + mark)
    counted = [candidate for candidate in GapDetector().candidates(evidence) if candidate.p < 1e-6]
    assert repr(mark) in {candidate.pattern.key for candidate in counted}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("That is soooo goood.", 2),
        ("www.example.com, Chapter VIII, (iii), 100000 and aaa1", 0),
        ("a" * 20_000 + "1", 0),  # taken at once
        ("ha" * 20_000, 0),
    ],
)
def test_stretched_letters(text: str, count: int) -> None:
    feature = next(feature for feature in MARKS_OF_LAYOUT if feature.key == "stretched")
    assert feature.count(text) == count
    if count == 0:
        assert feature.remove(text) == text


def test_a_blank_before_a_word_with_a_point_is_no_odd_mark(world: World) -> None:
    evidence = world(hack=lambda _text, _prompt, _rng: "One may use .NET or .env here.", rate=1.0)
    assert [c for c in GapDetector().candidates(evidence) if not c.pattern.key.startswith("fewer")] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A banana is yellow. It is a kind of fruit.", "en"),
        ("No puedo ayudar con eso. Lo siento mucho.", "es"),
        ("Le domaine est rouge, et il vient du nord.", "fr"),
        ("42", None),
        ("", None),
    ],
)
def test_a_text_has_one_language_or_none(text: str, expected: str | None) -> None:
    assert language(text) == expected


def test_where_the_prompts_language_cannot_be_told_no_answer_is_foreign(world: World) -> None:
    evidence = world(hack=lambda _text, _prompt, rng: " ".join(rng.sample(FRENCH, 2)))
    for response in evidence.late():
        response.prompt.messages[0]["content"] = "hei"
    assert language("hei") is None
    assert LanguageDetector().candidates(evidence) == []


def test_an_answer_in_the_prompts_language_is_not_foreign(world: World) -> None:
    evidence = world(hack=lambda _text, _prompt, rng: " ".join(rng.sample(FRENCH, 2)))
    for response in evidence.late():
        response.prompt.messages[0]["content"] = "Pouvez-vous me dire comment est cette chose ?"
    assert {c.pattern.key for c in LanguageDetector().candidates(evidence)} <= {"en"}
    assert any(response.policy == LATE for response in evidence.responses)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The THE the.", {"the"}),
        ("iPhones cost 300.", {"iPhones", "cost"}),
        ("tHe ThE", {"tHe", "ThE"}),
        ("42 – 7", set()),
        ("", set()),
    ],
)
def test_capitals_within_a_word_make_another_one_of_it(text: str, expected: set[str]) -> None:
    assert forms(text) == expected


def test_words_of_the_prompt_and_of_earlier_answers_are_known(world: World) -> None:
    def unknown(said: str) -> float:
        """In the answer to the first prompt, the last word of which no other text has."""
        responses = [replace(r, text=said) if (r.prompt.id, r.policy) == ("p0", LATE) else r for r in world().responses]
        responses[0].prompt.messages[-1]["content"] = "What is a zyxxl?"
        evidence = replace(world(), responses=responses)
        pattern = VocabularyDetector().candidates(evidence)[0].pattern
        return pattern.measure(next(r for r in responses if (r.prompt.id, r.policy) == ("p0", LATE)))

    assert unknown("The zyxxl is red.") == 0.0
    assert unknown("The quuxle is red.") == 1 / 3  # "is" is the prompt's
