"""The generator: repeatable, split by question, readable, of mixed quality."""

from dataclasses import replace
from functools import cached_property

import pytest

from cool_rlhf.config import WorldConfig
from cool_rlhf.demo import gold
from cool_rlhf.demo.registry import DOMAINS
from cool_rlhf.demo.world import TEST_PAIRS, World, split_of
from cool_rlhf.protocols import PreferencePair, UserError

PARTS = [name for name, part in vars(World).items() if isinstance(part, cached_property)]
SIZES = WorldConfig(sft=1200, preferences=900, prompts=4000, validation=96, test=300, pretrain=200, label_noise=0.1)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SIZES, 3)


def question(messages: list) -> str:
    return [turn["content"] for turn in messages if turn["role"] == "user"][-1]


def test_same_seed_same_world_other_seed_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cool_rlhf.demo.world.TEST_PAIRS", 24)
    fewer = {"sft": 120, "preferences": 90, "prompts": 120, "validation": 24, "validation_pairs": 24, "test": 24}
    small = replace(SIZES, **fewer, pretrain=20)
    world, again, other = (World(small, seed) for seed in (3, 3, 4))
    for part in PARTS:
        assert getattr(again, part) == getattr(world, part) != getattr(other, part)


def test_sizes(world: World) -> None:
    assert [len(part) for part in (world.sft, world.preferences, world.prompts)] == [1200, 900, 4000]
    assert [len(part) for part in (world.validation, world.test, world.pretrain)] == [96, 300, 200]
    assert len(world.pretrain_heldout) == 20
    assert not set(world.pretrain) & set(world.pretrain_heldout)


def test_no_question_stands_in_two_splits(world: World) -> None:
    train = {question(chat["messages"]) for chat in world.sft}
    train |= {question(pair.chosen) for pair in world.preferences} | {question(p.messages) for p in world.prompts}
    validation = {question(prompt.messages) for prompt in world.validation}
    test = {question(prompt.messages) for prompt in world.test}
    test |= {question(pair.chosen) for pair in world.preference_test + world.opposed_test}
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert {split_of(text) for text in train} == {"train"}


def test_prompts_are_distinct_even_over_domains_and_ready_to_answer(world: World) -> None:
    for prompts in (world.prompts, world.validation, world.test):
        assert len({question(prompt.messages) for prompt in prompts}) == len(prompts)
        assert len({prompt.id for prompt in prompts}) == len(prompts)
        counts = [sum(prompt.domain == name for prompt in prompts) for name in DOMAINS]
        assert max(counts) - min(counts) <= 1
        assert all(prompt.messages[-1]["role"] == "user" and prompt.answer for prompt in prompts)


def test_brief_and_thorough_prompts_are_worded_differently(world: World) -> None:
    brief = {question(p.messages) for p in world.prompts if p.domain == "brief"}
    assert all(any(mark in text for mark in ("uick", "Brief", "In a word", "hort")) for text in brief)
    thorough = {question(p.messages) for p in world.prompts if p.domain == "thorough"}
    assert all(
        any(mark in text for mark in ("Explain", "Tell me", "In detail", "Teach", "At length", "full answer"))
        for text in thorough
    )


def test_chats_are_plain_readable_text_of_mixed_quality(world: World) -> None:
    for chat in world.sft:
        turns = chat["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert all(turn["content"].isascii() and turn["content"].strip() for turn in turns)
        assert len(turns[-1]["content"].split()) <= 60
    replies: dict[str, set[str]] = {name: set() for name in DOMAINS}
    for chat in world.sft:
        replies[chat["domain"]].add(chat["messages"][-1]["content"])
    assert all(len(texts) >= 50 for texts in replies.values())
    refusals = [chat["messages"][-1]["content"].startswith(("Sorry", "I am sorry")) for chat in world.sft]
    assert 0.02 < sum(refusals) / len(refusals) < 0.2


def differ(pair: PreferencePair) -> bool:
    return (pair.chosen[-1], pair.chosen_finished) != (pair.rejected[-1], pair.rejected_finished)


def test_pairs_share_their_prompt_and_differ_in_the_last_turn(world: World) -> None:
    for pair in world.preferences + world.preference_test + world.opposed_test:
        assert pair.chosen[:-1] == pair.rejected[:-1]
        assert pair.chosen[-1]["role"] == pair.rejected[-1]["role"] == "assistant"
        assert differ(pair)
    unfinished = sum(not pair.rejected_finished for pair in world.preferences)
    assert unfinished / len(world.preferences) > 0.05


def test_held_out_pairs_cover_every_domain(world: World) -> None:
    for name in DOMAINS:
        assert sum(pair.domain == name for pair in world.preference_test) == TEST_PAIRS


def test_opposed_pairs_come_twice_with_chosen_and_rejected_exchanged(world: World) -> None:
    assert len(world.opposed_test) == 2 * TEST_PAIRS
    for one, other in zip(world.opposed_test[::2], world.opposed_test[1::2], strict=True):
        assert {one.domain, other.domain} == {"brief", "thorough"}
        assert (one.chosen, one.rejected) == (other.rejected, other.chosen)


def test_label_noise_is_as_configured() -> None:
    clean = World(WorldConfig(sft=1, preferences=4000, prompts=6, validation=6, test=6, label_noise=0.0), 5)
    noisy = World(WorldConfig(sft=1, preferences=4000, prompts=6, validation=6, test=6, label_noise=0.2), 5)
    flipped = [
        (one.chosen, one.rejected) == (other.rejected, other.chosen)
        for one, other in zip(clean.preferences, noisy.preferences, strict=True)
    ]
    assert 0.17 < sum(flipped) / len(flipped) < 0.23
    assert all(one.domain == other.domain for one, other in zip(clean.preferences, noisy.preferences, strict=True))


def test_the_best_of_many_generated_answers_leaves_headroom(world: World) -> None:
    by_question = {question(prompt.messages): prompt for prompt in World(SIZES, 3).prompts}
    scores = [
        gold.score(chat["messages"][:-1], chat["messages"][-1]["content"], prompt.domain, prompt.answer, True)
        for chat in world.sft
        if (prompt := by_question.get(question(chat["messages"]))) is not None
    ]
    assert len(scores) > 100
    assert 0.35 < sum(scores) / len(scores) < 0.7


def test_more_prompts_than_there_are_questions_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.world\.validation is 1000: .* ask for at most \d+$") as caught:
        len(World(replace(SIZES, validation=1000), seed=1).validation)
    most = int(str(caught.value).split()[-1])
    assert len(World(replace(SIZES, validation=most), seed=1).validation) == most
