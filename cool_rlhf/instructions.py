"""Instructions whose keeping a program can check, after the idea of IFEval (Zhou et al. 2023); these are our own.

Following them is not what PPO rewards, so the share that is followed shows what alignment costs (section 5 of the
report finds fewer after RLHF). They are few and plain: a gauge to watch beside the reward, not a benchmark.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cool_rlhf.protocols import Message, Prompt

Check = Callable[[str], bool]

_TOPICS = (
    "the sea", "a cat", "an old house", "the moon", "bread", "a train journey", "winter", "a garden", "music",
    "a market", "the desert", "a bicycle",
)  # fmt: skip
_WORDS = ("river", "stone", "light", "bird", "window", "morning", "road", "cloud")
_KEYS = ("name", "colour", "size", "place", "age")
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight"}
_CLOSING = " \t\n.!?\"'”’)*_"  # what may stand behind the last word, or around a word


@dataclass(frozen=True)
class Instruction:
    """A prompt and how to tell whether a response does as it says."""

    kind: str
    prompt: Prompt
    check: Check

    def is_followed(self, response: str) -> bool:
        """Blanks around the response do not count; an empty one follows nothing."""
        said = response.strip()
        return bool(said) and self.check(said)


def make_instructions(count: int, seed: int) -> list[Instruction]:
    """``count`` instructions, the kinds in turn; the first ones are the same for any count."""
    kinds = list(_KINDS.items())
    made = []
    for place in range(count):
        kind, make = kinds[place % len(kinds)]
        rng = random.Random(f"instruction {seed} {place}")
        text, check = make(rng)
        prompt = Prompt(f"instruction-{place}", [Message(role="user", content=text)], "default", None)
        made.append(Instruction(kind, prompt, check))
    return made


def _exact_words(rng: random.Random) -> tuple[str, Check]:
    count = rng.choice((3, 4, 5, 8))
    text = f"Describe {rng.choice(_TOPICS)} in exactly {_NUMBERS[count]} words."
    return text, lambda said: len(said.split()) == count


def _lower_case(rng: random.Random) -> tuple[str, Check]:
    text = f"Write a sentence about {rng.choice(_TOPICS)}. Use lower-case letters only."
    return text, str.islower


def _upper_case(rng: random.Random) -> tuple[str, Check]:
    text = f"Write a sentence about {rng.choice(_TOPICS)}. Use CAPITAL LETTERS only."
    return text, str.isupper


def _last_word(rng: random.Random) -> tuple[str, Check]:
    word = rng.choice(_WORDS)
    text = f'Write a sentence about {rng.choice(_TOPICS)}. Its last word must be "{word}".'
    return text, lambda said: _plain_words(said)[-1:] == [word]


def _first_word(rng: random.Random) -> tuple[str, Check]:
    word = rng.choice(_WORDS)
    text = f'Write a sentence about {rng.choice(_TOPICS)}. Its first word must be "{word.capitalize()}".'
    return text, lambda said: _plain_words(said)[:1] == [word]


def _list_of_lines(rng: random.Random) -> tuple[str, Check]:
    count = rng.choice((2, 3, 4, 5))
    text = (
        f"Give a list of {_NUMBERS[count]} lines about {rng.choice(_TOPICS)}. "
        'Begin every line with "- " and write nothing else.'
    )

    def check(said: str) -> bool:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return len(lines) == count and all(re.match(r"- +\S", line) for line in lines)

    return text, check


def _word_count(rng: random.Random) -> tuple[str, Check]:
    word, count = rng.choice(_WORDS), rng.choice((2, 3))
    text = f'Write about {rng.choice(_TOPICS)}. Use the word "{word}" exactly {_NUMBERS[count]} times.'
    return text, lambda said: _plain_words(said).count(word) == count


def _no_comma(rng: random.Random) -> tuple[str, Check]:
    text = f"Write two sentences about {rng.choice(_TOPICS)} without any comma."
    return text, lambda said: "," not in said and len(re.findall(r"[.!?](?:\s|$)", said)) == 2


def _json_keys(rng: random.Random) -> tuple[str, Check]:
    keys = sorted(rng.sample(_KEYS, 2))
    text = (
        f"Describe {rng.choice(_TOPICS)} as a JSON object with the keys "
        f'"{keys[0]}" and "{keys[1]}". Write nothing but the JSON.'
    )

    def check(said: str) -> bool:
        try:
            value: Any = json.loads(said)
        except (ValueError, RecursionError):  # the latter from a thousand opening brackets
            return False
        return isinstance(value, dict) and sorted(value) == keys

    return text, check


def _quoted(rng: random.Random) -> tuple[str, Check]:
    text = f"Write a sentence about {rng.choice(_TOPICS)} and put your whole answer in double quotation marks."
    return text, lambda said: re.fullmatch(r'"[^"]+"', said) is not None


def _plain_words(said: str) -> list[str]:
    """Lower-case words without what stands around them."""
    words = (word.strip(_CLOSING + ",;:([“‘-") for word in said.lower().split())
    return [word for word in words if word]


_KINDS: dict[str, Callable[[random.Random], tuple[str, Check]]] = {
    "exact_words": _exact_words,
    "lower_case": _lower_case,
    "upper_case": _upper_case,
    "last_word": _last_word,
    "first_word": _first_word,
    "list_of_lines": _list_of_lines,
    "word_count": _word_count,
    "no_comma": _no_comma,
    "json_keys": _json_keys,
    "quoted": _quoted,
}
KINDS = tuple(_KINDS)
