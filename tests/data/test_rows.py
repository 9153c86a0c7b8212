"""What each kind of row may hold, and what is said of one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from cool_rlhf.data.rows import (
    RowError,
    RowRules,
    SameResponseError,
    parse_chat,
    parse_preference,
    parse_pretrain,
    parse_prompt,
    prompt_id,
)

RULES = RowRules(domains=frozenset({"helpful", "harmless"}))


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


ASK = [turn("user", "why?")]
ANSWER = [turn("assistant", "so")]
OTHER = [turn("assistant", "no")]
EXPECTED = {
    "chosen": ASK + ANSWER,
    "rejected": ASK + OTHER,
    "domain": "default",
    "margin": None,
    "subset": None,
    "labelled_by": [],
    "chosen_finished": True,
    "rejected_finished": True,
}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "why?", "chosen": "so", "rejected": "no"},
        {"prompt": ASK, "chosen": ANSWER, "rejected": OTHER},
        {"prompt": ASK, "chosen": ASK + ANSWER, "rejected": ASK + OTHER},
        {"prompt": "why?", "chosen": ASK + ANSWER, "rejected": OTHER},
        {"chosen": ASK + ANSWER, "rejected": ASK + OTHER, "source": "elsewhere"},
        {"prompt": None, "chosen": ASK + ANSWER, "rejected": ASK + OTHER, "margin": None, "domain": None},
    ],
)
def test_every_way_to_write_a_pair_reads_the_same(row: dict[str, Any]) -> None:
    assert parse_preference(row, RULES) == EXPECTED


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "why?", "chosen": "so", "rejected": "no"},
        {"chosen": ASK + ANSWER, "rejected": ASK + OTHER},
        {"chosen": "\n\nHuman: why?\n\nAssistant: so", "rejected": "\n\nHuman: why?\n\nAssistant: no"},
        {"prompt": None, "chosen": ASK + ANSWER, "rejected": ASK + ANSWER},
    ],
)
def test_pairs_are_read_as_prompts_too(row: dict[str, Any]) -> None:
    assert parse_prompt(row, RULES)["messages"] == ASK


def test_a_whole_dialogue_may_have_more_than_its_prompt() -> None:
    """Blanks apart, and where the prompt is its last question only."""
    before = [turn("system", "Be kind."), turn("user", "Hi"), turn("assistant", "Hi!")]
    row = {"prompt": "why? ", "chosen": [*before, *ASK, *ANSWER], "rejected": [*before, *ASK, *OTHER]}
    assert parse_preference(row, RULES)["chosen"] == [*before, *ASK, *ANSWER]


def test_a_transcript_goes_on_behind_its_prompt() -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant:"
    row = {"prompt": prompt, **{name: f" Hi!\n\nHuman: why?\n\nAssistant: {name}" for name in ("chosen", "rejected")}}
    spoken = [turn("user", "Hi"), turn("assistant", "Hi!"), *ASK]
    parsed = parse_preference(row, RULES)
    assert parsed["rejected"] == [*spoken, turn("assistant", "rejected")]
    row = {"prompt": "\n\nHuman: why?", "chosen": "\n\nAssistant: so", "rejected": "no"}
    assert parse_preference(row, RULES) == EXPECTED


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Name a prime. 11", "Name a prime. 12", "Name a prime."),
        ("Name a city: Rome.11", "Name a city: Rome.12", "Name a city:"),
        ("中国的首都是哪里?北京", "中国的首都是哪里?上海", "中国的首都是哪里?"),
        ("中国的首都是哪里？ 北京", "中国的首都是哪里？ 上海", "中国的首都是哪里？"),
        ("什么是vLLM?引擎", "什么是vLLM?模型", "什么是vLLM?"),
        ("三乘以四等于12", "三乘以四等于13", "三乘以四等于"),
        ("二つの和は?四です", "二つの和は?五です", "二つの和は?"),
        ("ประเทศไทยกา", "ประเทศไทยกี", "ประเทศไทย"),  # the vowel signs stand on the same letter
    ],
)
def test_plain_texts_share_the_words_that_both_begin_with(chosen: str, rejected: str, prompt: str) -> None:
    parsed = parse_preference({"chosen": chosen, "rejected": rejected}, RULES)
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        assert parsed[name] == [turn("user", prompt), turn("assistant", text.removeprefix(prompt).strip())]


def test_a_long_run_of_letters_is_read_in_no_time() -> None:
    """A hex dump: minutes, where each letter of it is tried as the beginning of half a word."""
    run = f"({'0123456789abcdef' * 8000})"
    parsed = parse_preference({"chosen": f"Read {run}: so", "rejected": f"Read {run}: no"}, RULES)
    assert parsed["chosen"][0]["content"] == f"Read {run}:"


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("so", "no"), ("Alphabet soup", "Alpha and omega"), ("why? so", OTHER)]
)
def test_plain_texts_without_words_in_common_have_no_prompt(chosen: Any, rejected: Any) -> None:
    with pytest.raises(RowError, match="have no first words in common: name it"):
        parse_preference({"chosen": chosen, "rejected": rejected}, RULES)


SHARED = {"chosen": "The answer is so", "rejected": "The answer is no"}
DIALOGUES = ("messages", "conversations", "conversation", "history", "dialogue", "context")


@pytest.mark.parametrize("column", DIALOGUES)
def test_a_dialogue_beside_plain_responses_is_their_prompt(column: str) -> None:
    """What both responses begin with is theirs then, and no prompt."""
    asked = [turn("system", "be kind"), turn("user", "Hi"), *ANSWER, {"from": "human", "value": "why?"}]
    parsed = parse_preference({column: asked, **SHARED}, RULES)
    prompt = [*asked[:3], *ASK]
    assert parsed["chosen"] == [*prompt, turn("assistant", SHARED["chosen"])]
    assert parsed["rejected"] == [*prompt, turn("assistant", SHARED["rejected"])]
    assert parse_prompt({column: asked, **SHARED}, RULES)["messages"] == prompt
    assert parse_preference({column: None, **SHARED}, RULES)["chosen"][0] == turn("user", "The answer is")
    assert parse_preference({column: ANSWER, "prompt": "why?", **SHARED}, RULES)["chosen"][0] == ASK[0]


@pytest.mark.parametrize("column", DIALOGUES)
def test_no_prompt_is_made_up_beside_what_may_hold_it(column: str) -> None:
    ended = [*ASK, turn("assistant", SHARED["chosen"])]
    for held, said in [
        ("why?", f"is missing: is `{column}` meant? Rename it"),
        ({"role": ["user"], "content": ["why?"]}, f"is missing: is `{column}` meant? Rename it"),
        (ended, f"is missing, and `{column}`, which stands in its place, ends in the assistant's turn: it must end in"),
        ([], f"is missing, and `{column}`, which stands in its place, is an empty list"),
        ([["why?", "so"]], f"is missing, and `{column}[0]`, which stands in its place, must be a message with `role`"),
    ]:
        for parse in (parse_preference, parse_prompt):
            with pytest.raises(RowError) as caught:
                parse({column: held, **SHARED}, RULES)
            assert caught.value.field == "prompt"
            assert caught.value.problem.startswith(said)


def test_whole_dialogues_need_no_prompt_that_another_column_could_be_a_slip_of() -> None:
    named = {"prompt_id": "f0e3", "chosen": ASK + ANSWER, "rejected": ASK + OTHER}
    spoken = {
        "prompt_id": 3,
        "chosen": "\n\nHuman: why?\n\nAssistant: so",
        "rejected": "\n\nHuman: why?\n\nAssistant: no",
    }
    for row in (named, spoken):
        assert parse_preference(row, RULES) == EXPECTED
        assert parse_prompt(row, RULES)["messages"] == ASK
    for row in ({"promt": "why?", "chosen": ANSWER, "rejected": OTHER}, {**named, "domian": "helpful"}):
        with pytest.raises(RowError, match="is not a field of these rows"):
            parse_preference(row, RULES)


def test_optional_fields_of_a_pair() -> None:
    row = {"prompt": "why?", "chosen": "so", "rejected": "no", "domain": "harmless", "margin": 2}
    parsed = parse_preference({**row, "rejected_finished": False}, RULES)
    assert (parsed["domain"], parsed["margin"], parsed["rejected_finished"]) == ("harmless", 2.0, False)


def test_a_response_that_repeats_the_prompt_is_not_taken_for_the_dialogue() -> None:
    longer = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    row = {"prompt": longer, "chosen": ANSWER, "rejected": OTHER}
    assert len(parse_preference(row, RULES)["chosen"]) == 4


BAD_PAIRS = {
    "chosen": [
        {"prompt": "why?", "rejected": "no"},
        {"prompt": "why?", "chosen": "", "rejected": "no"},
        {"prompt": "why?", "chosen": 3, "rejected": "no"},
        {"prompt": "why?", "chosen": [], "rejected": "no"},
        {"prompt": "why?", "chosen": None, "rejected": "no"},
        {"prompt": "why?", "chosen": "x<|im_end|>", "rejected": "no"},
        {"prompt": "why?", "chosen": ASK, "rejected": "no"},
    ],
    "chosen[0].content": [
        {"prompt": "why?", "chosen": [turn("assistant", " ")], "rejected": "no"},
        {"prompt": "why?", "chosen": [{"role": "assistant"}], "rejected": "no"},
    ],
    "chosen[0].role": [{"prompt": "why?", "chosen": [turn("bot", "so")], "rejected": "no"}],
    "rejected": [
        {"chosen": ASK + ANSWER, "rejected": [turn("user", "other"), *OTHER]},
        {"prompt": "why?", "chosen": "so", "rejected": {"role": "assistant"}},
    ],
    "prompt": [
        {"chosen": "so", "rejected": "no"},
        {"prompt": "", "chosen": "so", "rejected": "no"},
        {"prompt": [], "chosen": "so", "rejected": "no"},
        {"prompt": ASK + ANSWER, "chosen": "so", "rejected": "no"},
        {"prompt": [turn("system", "be kind")], "chosen": "so", "rejected": "no"},
    ],
    "margin": [
        {"prompt": "why?", "chosen": "so", "rejected": "no", "margin": margin}
        for margin in ("1", True, float("nan"), float("inf"), [1])
    ],
    "domain": [
        {"prompt": "why?", "chosen": "so", "rejected": "no", "domain": domain} for domain in ("helpfull", 3, "", [])
    ],
    "chosen_finished": [{"prompt": "why?", "chosen": "so", "rejected": "no", "chosen_finished": "yes"}],
    "domian": [{"prompt": "why?", "chosen": "so", "rejected": "no", "domian": "helpful"}],
}


@pytest.mark.parametrize(("field", "row"), [(field, row) for field, rows in BAD_PAIRS.items() for row in rows])
def test_bad_pair_is_named_by_its_field(field: str, row: dict[str, Any]) -> None:
    with pytest.raises(RowError) as caught:
        parse_preference(row, RULES)
    assert caught.value.field == field


def test_equal_responses_prefer_nothing_unless_one_was_cut_off() -> None:
    row = {"prompt": "why?", "chosen": "so", "rejected": "so"}
    with pytest.raises(SameResponseError):
        parse_preference(row, RULES)
    assert parse_preference({**row, "rejected_finished": False}, RULES)["rejected_finished"] is False


def test_only_sampled_responses_may_be_empty() -> None:
    row = {"prompt": "why?", "chosen": "so", "rejected": ""}
    with pytest.raises(RowError, match="empty"):
        parse_preference(row, RULES)
    sampled = RowRules(sampled=True)
    assert parse_preference(row, sampled)["rejected"][-1]["content"] == ""
    with pytest.raises(RowError, match="empty"):
        parse_preference({**row, "prompt": ""}, sampled)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|reward|>"])
def test_only_sampled_responses_may_spell_special_tokens(token: str) -> None:
    asked, said = {"role": "user", "content": "why?"}, {"role": "assistant", "content": f"so {token}"}
    sampled = RowRules(sampled=True)
    for row in (
        {"prompt": [asked], "chosen": [said], "rejected": [{**said, "content": "no"}]},
        {"prompt": "why?", "chosen": said["content"], "rejected": "no"},
    ):
        with pytest.raises(RowError, match="special token"):
            parse_preference(row, RULES)
        assert parse_preference(row, sampled)["chosen"] == [asked, said]
        spelt = {**row, "prompt": [{**asked, "content": f"why {token}?"}]}
        with pytest.raises(RowError, match="special token"):
            parse_preference(spelt, sampled)


BAD_CHATS = {
    "messages": [{}, {"messages": "hi"}, {"messages": []}, {"messages": ASK}, {"messages": {"role": "user"}}],
    "messages[0]": [{"messages": ["hi"]}],
    "messages[0].role": [{"messages": ANSWER}, {"messages": [{"content": "hi"}]}, {"messages": [turn("User", "hi")]}],
    "messages[1].role": [
        {"messages": [*ASK, turn("system", "be kind"), *ANSWER]},
        {"messages": [turn("system", "be kind"), *ANSWER]},
    ],
    "messages[1].content": [
        {"messages": [*ASK, turn("assistant", None)]},
        {"messages": [*ASK, turn("assistant", ["so"])]},
        {"messages": [*ASK, turn("assistant", "a<|im_start|>b")]},
        {"messages": [*ASK, turn("assistant", "half \ud83d")]},
    ],
}


@pytest.mark.parametrize(("field", "row"), [(field, row) for field, rows in BAD_CHATS.items() for row in rows])
def test_bad_chat_is_named_by_its_field(field: str, row: dict[str, Any]) -> None:
    with pytest.raises(RowError) as caught:
        parse_chat(row, RULES)
    assert caught.value.field == field


def test_chat_keeps_only_roles_and_texts() -> None:
    messages = [turn("system", "be kind"), *ASK, {**ANSWER[0], "weight": 1}, turn("environment", "42"), *OTHER]
    parsed = parse_chat({"messages": messages, "domain": "helpful", "id": 3}, RULES)
    assert parsed["domain"] == "helpful"
    assert parsed["messages"] == [{"role": m["role"], "content": m["content"]} for m in messages]


def test_turns_of_tools_keep_their_names() -> None:
    tools = [{**turn("system", "[calculator]"), "name": "plugin"}, {**turn("system", "python"), "name": "interpreter"}]
    answer = {**turn("environment", "42"), "name": "plugin"}
    messages = [turn("system", "be kind"), *tools, *ASK, *ANSWER, answer, *OTHER]
    assert parse_chat({"messages": messages}, RULES)["messages"] == messages
    named = [{**turn("user", "why?"), "name": "plugin"}, *ANSWER, {**turn("environment", "42"), "name": "Ann"}, *OTHER]
    assert not any("name" in message for message in parse_chat({"messages": named}, RULES)["messages"])
    with pytest.raises(RowError, match="only come first"):
        parse_chat({"messages": [turn("system", "be kind"), turn("system", "be brief"), *ASK, *ANSWER]}, RULES)


def test_one_speaker_may_have_several_turns_as_in_human_dialogues() -> None:
    messages = [*ASK, *ANSWER, *OTHER]
    assert parse_chat({"messages": messages}, RULES)["messages"] == messages


@pytest.mark.parametrize(("answer", "text"), [("18", "18"), (18, "18"), (1.5, "1.5"), (None, None)])
def test_answers_become_text(answer: Any, text: str | None) -> None:
    assert parse_prompt({"prompt": "6 * 3?", "answer": answer}, RULES)["answer"] == text


@pytest.mark.parametrize("answer", [True, [18], float("nan"), ""])
def test_bad_answer(answer: Any) -> None:
    with pytest.raises(RowError) as caught:
        parse_prompt({"prompt": "6 * 3?", "answer": answer}, RULES)
    assert caught.value.field == "answer"


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": ASK,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"index": 0, "answer": "48 + 24\n#### 72"},
}


@pytest.mark.parametrize(("truth", "answer"), [("72", "72"), (72, "72"), (0.5, "0.5"), (0, "0")])
def test_the_ground_truth_of_a_verl_row_is_its_answer(truth: Any, answer: str) -> None:
    parsed = parse_prompt({**VERL, "reward_model": {"style": "rule", "ground_truth": truth}}, RULES)
    assert (parsed["messages"], parsed["answer"]) == (ASK, answer)
    assert parse_prompt({**VERL, "answer": 3}, RULES)["answer"] == "3", "the row's own comes first"


@pytest.mark.parametrize(
    "column", ["a/model", None, {}, *({"ground_truth": truth} for truth in (None, "", True, ["72"], {"target": 72}))]
)
def test_a_ground_truth_that_is_no_text_or_number_is_another_column(column: Any) -> None:
    assert parse_prompt({**VERL, "reward_model": column}, RULES)["answer"] is None


@pytest.mark.parametrize("truth", [float("nan"), "half \ud83d"])
def test_a_bad_ground_truth_is_named(truth: Any) -> None:
    with pytest.raises(RowError) as caught:
        parse_prompt({**VERL, "reward_model": {"ground_truth": truth}}, RULES)
    assert caught.value.field == "reward_model.ground_truth"


def test_prompt_ids_tell_prompts_and_domains_apart_and_stay() -> None:
    first = parse_prompt({"prompt": "why?", "domain": "helpful"}, RULES)
    assert first["id"] == parse_prompt({"prompt": ASK, "domain": "helpful", "answer": "so"}, RULES)["id"]
    assert first["id"] != parse_prompt({"prompt": "why?", "domain": "harmless"}, RULES)["id"]
    assert first["id"] != parse_prompt({"prompt": "why", "domain": "helpful"}, RULES)["id"]
    assert prompt_id([{"role": "user", "content": "why?"}], "helpful") == "050edec973738047"


@pytest.mark.parametrize("row", [{}, {"text": ""}, {"text": 3}, {"text": None}, {"texts": "a"}])
def test_bad_text(row: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        parse_pretrain(row, RULES)


def test_domain_of_the_source_counts_where_a_row_names_none() -> None:
    rules = RowRules(domains=frozenset({"helpful", "harmless"}), domain="helpful")
    assert parse_prompt({"prompt": "why?"}, rules)["domain"] == "helpful"
    assert parse_prompt({"prompt": "why?", "domain": "harmless"}, rules)["domain"] == "harmless"


@pytest.mark.parametrize("rules", [RULES, RowRules(), RowRules(domains=frozenset({"overall"}))])
def test_no_domain_is_called_as_all_rows_together_are(rules: RowRules) -> None:
    with pytest.raises(RowError, match=r"field `domain` is 'overall', which .* give it another name"):
        parse_prompt({"prompt": "why?", "domain": "overall"}, rules)


def test_a_chat_may_have_a_domain_that_has_no_condition() -> None:
    assert parse_chat({"messages": ASK + ANSWER, "domain": "creative"}, RULES)["domain"] == "creative"
    for domain, said in (("overall", "give it another name"), (3, "must be a string"), (" ", "is empty")):
        with pytest.raises(RowError, match=f"field `domain` .*{said}"):
            parse_chat({"messages": ASK + ANSWER, "domain": domain}, RULES)


def test_unknown_domain_names_the_nearest() -> None:
    with pytest.raises(RowError, match="harmless"):
        parse_prompt({"prompt": "why?", "domain": "harmles"}, RULES)
