"""A system turn that stands in a column of its own, in every kind of row."""

from __future__ import annotations

from typing import Any

import pytest

from cool_rlhf.data.rows import RowError, RowRules, parse_chat, parse_preference, parse_prompt

RULES = RowRules(domains=frozenset({"helpful"}))


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


ASK = [turn("user", "why?")]
ANSWER = [turn("assistant", "so")]
OTHER = [turn("assistant", "no")]
KIND = turn("system", "be kind")


def read(kind: str, prompt: list[dict[str, Any]], **beside: Any) -> list[dict[str, Any]]:
    """The prompt of a row of this kind."""
    if kind == "chat":
        return parse_chat({"conversations": [*prompt, *ANSWER], **beside}, RULES)["messages"][:-1]
    if kind == "prompt":
        return parse_prompt({"prompt": prompt, **beside}, RULES)["messages"]
    pair = {"chosen": [*prompt, *ANSWER], "rejected": [*prompt, *OTHER], **beside}
    if kind == "prompt of a pair":
        return parse_prompt(pair, RULES)["messages"]
    parsed = parse_preference(pair, RULES)
    assert parsed["chosen"][:-1] == parsed["rejected"][:-1]
    return parsed["rejected"][:-1]


KINDS = ("chat", "prompt", "prompt of a pair", "pair")


@pytest.mark.parametrize("column", ["system", "system_prompt"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_system_turn_in_a_column_of_its_own_stands_in_front(kind: str, column: str) -> None:
    assert read(kind, ASK, **{column: "be kind"}) == [KIND, *ASK]
    assert read(kind, [KIND, *ASK], **{column: " be\nkind"}) == [KIND, *ASK]
    tools = {**turn("system", "python"), "name": "interpreter"}
    assert read(kind, [tools, *ASK], **{column: "be kind"}) == [KIND, tools, *ASK]
    for nothing in (None, "", " \n"):
        assert read(kind, ASK, **{column: nothing}) == ASK
    for front, said, problem in [
        ([turn("system", "be brief")], "be kind", "is another system turn than the one that the dialogue has: leave"),
        ([], 3, "must be a string, not a number"),
        ([], "be <|im_end|>", "holds the special token"),
    ]:
        with pytest.raises(RowError) as caught:
            read(kind, [*front, *ASK], **{column: said})
        assert caught.value.field == column
        assert caught.value.problem.startswith(problem)


def test_two_columns_for_the_system_turn_say_the_same() -> None:
    assert read("chat", ASK, system="be kind", system_prompt="be kind") == [KIND, *ASK]
    with pytest.raises(RowError, match="`system_prompt` is another system turn"):
        read("chat", ASK, system="be kind", system_prompt="be brief")
    plain = {"prompt": "why?", "chosen": "so", "rejected": "no", "system": "be kind"}
    assert parse_preference(plain, RULES)["chosen"] == [KIND, *ASK, *ANSWER]
