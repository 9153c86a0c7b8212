from __future__ import annotations

import pytest

from cool_rlhf.instructions import KINDS, Instruction, make_instructions


def first(kind: str, seed: int = 1) -> Instruction:
    return next(each for each in make_instructions(len(KINDS), seed) if each.kind == kind)


def asked(instruction: Instruction) -> str:
    return instruction.prompt.messages[0]["content"]


def quoted(text: str) -> list[str]:
    return text.split('"')[1::2]


NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "eight": 8}


def number(text: str) -> int:
    return next(value for name, value in NUMBERS.items() if f" {name} " in text)


def test_they_are_the_same_for_a_seed_and_differ_for_another():
    def texts(count: int, seed: int) -> list[str]:
        return [asked(each) for each in make_instructions(count, seed)]

    assert texts(40, 1) == texts(40, 1)
    assert texts(40, 1)[:7] == texts(7, 1)
    assert texts(40, 1) != texts(40, 2)
    assert len(set(texts(40, 1))) > 35
    assert {each.kind for each in make_instructions(40, 1)} == set(KINDS)
    assert len({each.prompt.id for each in make_instructions(40, 1)}) == 40


@pytest.mark.parametrize("seed", range(5))
def test_exact_words(seed):
    instruction = first("exact_words", seed)
    count = number(asked(instruction))
    assert instruction.is_followed(" ".join(["word"] * count) + ".")
    assert not instruction.is_followed(" ".join(["word"] * (count - 1)))
    assert not instruction.is_followed(" ".join(["word"] * (count + 1)))


def test_cases():
    assert first("lower_case").is_followed("the sea is 3 miles off.")
    assert not first("lower_case").is_followed("The sea is wide.")
    assert not first("lower_case").is_followed("123")
    assert first("upper_case").is_followed("THE SEA IS 3 MILES OFF!")
    assert not first("upper_case").is_followed("THE SEA is WIDE.")


@pytest.mark.parametrize("seed", range(5))
def test_first_and_last_word(seed):
    last, start = first("last_word", seed), first("first_word", seed)
    (word,) = quoted(asked(last))
    assert last.is_followed(f"It lay by the {word}.")
    assert last.is_followed(f"“It lay by the {word.upper()}!”")
    assert not last.is_followed(f"The {word} lay there.")
    assert not last.is_followed(f"It lay by the {word}s.")
    (word,) = quoted(asked(start))
    assert start.is_followed(f"{word}, they said, was far.")
    assert not start.is_followed(f"The {word} was far.")


@pytest.mark.parametrize("seed", range(5))
def test_list_of_lines(seed):
    instruction = first("list_of_lines", seed)
    count = number(asked(instruction))
    lines = [f"- line {k}" for k in range(count)]
    assert instruction.is_followed("\n".join(lines))
    assert instruction.is_followed("\n\n".join(lines))
    assert not instruction.is_followed("\n".join(lines[1:]))
    assert not instruction.is_followed("\n".join(["Here is a list:", *lines]))
    assert not instruction.is_followed("\n".join(["-", *lines[1:]]))


@pytest.mark.parametrize("seed", range(5))
def test_word_count(seed):
    instruction = first("word_count", seed)
    (word,), count = quoted(asked(instruction)), number(asked(instruction))
    assert instruction.is_followed(f"See: {', '.join([word] * count)}; and some{word}.")
    assert not instruction.is_followed(" ".join([word] * (count + 1)))
    assert not instruction.is_followed(" ".join([word] * (count - 1)) or "none")


def test_no_comma():
    assert first("no_comma").is_followed("It was late. They left 2.5 hours ago!")
    assert not first("no_comma").is_followed("Late, it was. They left.")
    assert not first("no_comma").is_followed("It was late.")


@pytest.mark.parametrize("seed", range(5))
def test_json_keys(seed):
    instruction = first("json_keys", seed)
    one, two = quoted(asked(instruction))
    assert instruction.is_followed(f'{{"{two}": 1, "{one}": "x"}}')
    assert not instruction.is_followed(f'{{"{one}": "x"}}')
    assert not instruction.is_followed(f'Here: {{"{two}": 1, "{one}": "x"}}')
    assert not instruction.is_followed(f'["{one}", "{two}"]')
    assert not instruction.is_followed("[" * 5000)


def test_quotes():
    assert first("quoted").is_followed(' "The bread is warm." ')
    assert not first("quoted").is_followed('The "bread" is warm.')
    assert not first("quoted").is_followed('"The bread" is "warm"')


def test_nothing_follows_nothing():
    for instruction in make_instructions(40, 3):
        assert not instruction.is_followed(" \n")
