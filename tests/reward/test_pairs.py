"""Pairs in tokens: under which condition, how long, and which are left out."""

from __future__ import annotations

import itertools

import pytest
import torch

from cool_rlhf.config import RewardConfig
from cool_rlhf.data.chat import encode_reward
from cool_rlhf.data.packing import common_prefix
from cool_rlhf.data.preferences import split_pairs
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.protocols import PreferencePair, UserError
from reward.conditions import Conditions
from reward.pairs import TOO_LONG, encode_pairs
from reward.preparation import prepare
from reward.summary import describe, summarise

CONDITIONS = Conditions({"helpful": "Prefer what helps.", "harmless": "Prefer what harms nobody.", "default": ""})
TOKENIZER = train_tokenizer(["a few words about nothing, and a few more", "two and two"], 300)


def pair(question: str, chosen: str, rejected: str, domain: str = "helpful", margin: float | None = None):
    sides = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": text}] for text in (chosen, rejected)
    ]
    return PreferencePair(sides[0], sides[1], domain, margin, True, domain != "harmless")


MANY = [
    pair(f"a few words about {number}", "two and two", "nothing", domain)
    for number, domain in zip(range(400), itertools.cycle(["helpful", "harmless", "default"]), strict=False)
]


def tokens_of(conversation, prompt, finished=True, length=4096):
    return encode_reward(TOKENIZER, conversation, prompt, finished, length).tolist()


def test_each_side_stands_under_the_condition_of_its_domain():
    encoded = encode_pairs(TOKENIZER, CONDITIONS, MANY[:3], 4096)
    assert [pair.domain for pair in encoded.pairs] == ["helpful", "harmless", "default"]
    for given, made in zip(MANY, encoded.pairs, strict=False):
        prompt = CONDITIONS.prompt(given.domain)
        assert made.chosen.tolist() == tokens_of(given.chosen, prompt, given.chosen_finished)
        assert made.rejected.tolist() == tokens_of(given.rejected, prompt, given.rejected_finished)
    assert not encoded.cut
    assert not encoded.drops


def test_a_long_pair_is_cut_or_dropped_and_counted():
    pairs = [pair("a", "b", "c", margin=0.5), pair("nothing " * 60, "two", "and more"), pair("b", "two " * 60, "two")]
    cut = encode_pairs(TOKENIZER, CONDITIONS, pairs, 60)
    assert [made.margin for made in cut.pairs] == [0.5, 0.0, 0.0]
    assert (cut.cut, cut.drops) == ({"helpful": 2}, {})
    prompt = CONDITIONS.prompt("helpful")
    for made, given in zip(cut.pairs[1:], pairs[1:], strict=True):
        assert max(len(made.chosen), len(made.rejected)) == 60
        longer = max((given.chosen, given.rejected), key=lambda side: len(tokens_of(side, prompt)))
        assert tokens_of(longer, prompt, length=60) in (made.chosen.tolist(), made.rejected.tolist())
    dropped = encode_pairs(TOKENIZER, CONDITIONS, pairs, 60, drop_too_long=True)
    assert [made.margin for made in dropped.pairs] == [0.5]
    assert (dropped.cut, dropped.drops) == ({}, {("helpful", TOO_LONG): 2})
    longest = max(
        max(len(made.chosen), len(made.rejected)) for made in encode_pairs(TOKENIZER, CONDITIONS, pairs, 999).pairs
    )
    for room, count in ((longest, 0), (longest - 1, 1)):
        assert encode_pairs(TOKENIZER, CONDITIONS, pairs, room).cut.total() == count


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_both_sides_of_a_long_pair_lose_the_same_of_their_prompt(longer: str):
    texts = {"chosen": "two", "rejected": "two", longer: "and more " * 4}
    whole = pair("nothing " * 60, **texts)
    (made,) = encode_pairs(TOKENIZER, CONDITIONS, [whole], 60).pairs
    prompt = CONDITIONS.prompt("helpful")
    for given, cut in ((whole.chosen, made.chosen), (whole.rejected, made.rejected)):
        uncut = tokens_of(given, prompt)
        lost = len(uncut) - len(cut)
        assert lost == len(tokens_of(getattr(whole, longer), prompt)) - 60
        head = common_prefix(torch.tensor(uncut), cut)
        assert TOKENIZER.decode(uncut[:head]).startswith(f"<s><|im_start|>system\n{prompt}<|im_end|>\n")
        assert cut.tolist() == uncut[:head] + uncut[head + lost :]


def test_a_response_that_is_too_long_by_itself_keeps_its_end():
    long = pair("nothing " * 60, "two " * 60, "and")
    (made,) = encode_pairs(TOKENIZER, CONDITIONS, [long], 60).pairs
    prompt = CONDITIONS.prompt("helpful")
    assert made.chosen.tolist() == tokens_of(long.chosen, prompt, length=60)
    end = TOKENIZER.decode(made.rejected.tolist()).removeprefix(f"<s><|im_start|>system\n{prompt}<|im_end|>\n")
    assert end == "<|im_start|>assistant\nand<|im_end|>\n<|reward|>"


@pytest.mark.parametrize("excess", [0, 1, 9])
def test_the_shorter_response_stays_whole_where_both_begin_alike(excess: int):
    """The prompt has as many tokens as are too many, or a few less, as the turn's opening and the first words have."""
    long = pair("nothing", "two " * 60 + "words", "two " * 9 + "words")
    prompt = CONDITIONS.prompt("helpful")
    asked = len(tokens_of(long.chosen[:-1], prompt)) - len(tokens_of([], prompt))
    room = len(tokens_of(long.chosen, prompt)) - asked - excess
    (made,) = encode_pairs(TOKENIZER, CONDITIONS, [long], room).pairs
    assert made.rejected.tolist() == tokens_of(long.rejected[1:], prompt, long.rejected_finished)
    assert made.chosen.tolist() == tokens_of(long.chosen, prompt, length=room)


def test_condition_dropout_takes_whole_pairs_by_the_seed():
    def bare(seed: int) -> list[bool]:
        encoded = encode_pairs(TOKENIZER, CONDITIONS, MANY, 4096, condition_dropout=0.25, seed=seed).pairs
        found = []
        for given, made in zip(MANY, encoded, strict=True):
            sides = ((given.chosen, given.chosen_finished), (given.rejected, given.rejected_finished))
            prompt = CONDITIONS.prompt(given.domain)
            whole, without = ([tokens_of(side, text, ended) for side, ended in sides] for text in (prompt, None))
            pair_made = [made.chosen.tolist(), made.rejected.tolist()]
            assert pair_made in (whole, without), "one side with its condition and one without"
            found.append(given.domain != "default" and pair_made == without)
        return found

    first = bare(1)
    share = sum(first) / sum(given.domain != "default" for given in MANY)
    assert share == pytest.approx(0.25, abs=0.08)
    assert first == bare(1) != bare(2)


def test_all_or_no_conditions_may_be_dropped():
    none = encode_pairs(TOKENIZER, CONDITIONS, MANY[:30], 4096, condition_dropout=1.0).pairs
    bare = encode_pairs(TOKENIZER, Conditions(dict.fromkeys(CONDITIONS.prompts, "")), MANY[:30], 4096).pairs
    assert [pair.chosen.tolist() for pair in none] == [pair.chosen.tolist() for pair in bare]


def test_a_condition_that_leaves_no_room_is_refused():
    with pytest.raises(UserError, match="leaves no room"):
        encode_pairs(TOKENIZER, CONDITIONS, MANY[:1], 20)


def test_held_out_pairs_keep_their_conditions():
    settings = RewardConfig(validation_share=0.3, condition_dropout=1.0)
    split = split_pairs(MANY, settings.validation_share)
    prepared = prepare(TOKENIZER, CONDITIONS, split, settings, seed=1)
    assert len(prepared.training) + len(prepared.validation) == len(MANY)
    for given, made in zip(split.validation, prepared.validation, strict=True):
        assert made.chosen.tolist() == tokens_of(given.chosen, CONDITIONS.prompt(given.domain))


def test_nothing_short_enough_is_the_users_mistake():
    with pytest.raises(UserError, match=r"reward\.max_length \(30\)"):
        prepare(TOKENIZER, CONDITIONS, split_pairs(MANY[:2], 0.0), RewardConfig(max_length=30, too_long="drop"), seed=1)


def test_the_summary_counts_every_row_once():
    pairs = [pair("a", "b", "cc"), pair("a", "two and two", "c"), pair("nothing " * 60, "two", "and", "harmless")]
    training = encode_pairs(TOKENIZER, CONDITIONS, pairs, 60, drop_too_long=True)
    validation = encode_pairs(TOKENIZER, CONDITIONS, [pair("d", "e", "f", "harmless")], 60)
    harmless, helpful, every = summarise(
        {"helpful": 3, "harmless": 2}, training, validation, {("helpful", "equal responses"): 1}
    )
    lengths = sorted(len(side) for made in training.pairs for side in (made.chosen, made.rejected))
    assert (helpful.rows, helpful.pairs, helpful.prompts, helpful.tokens) == (3, 2, 1, sum(lengths))
    assert helpful.lengths == [lengths[0], lengths[1], lengths[3], lengths[3]]
    assert helpful.chosen_longer == 0.5
    assert (harmless.pairs, harmless.validation, harmless.lengths, harmless.chosen_longer) == (0, 1, [], None)
    assert every.left_out == {"equal responses": 1, TOO_LONG: 1}
    for entry in (helpful, harmless, every):
        assert entry.rows == entry.pairs + entry.validation + sum(entry.left_out.values())


def test_the_table_has_a_line_for_each_domain_and_for_each_reason():
    encoded = encode_pairs(TOKENIZER, CONDITIONS, MANY, 4096)
    drops = {("helpful", "equal responses"): 1234, ("default", "malformed"): 2}
    table = describe(summarise({"helpful": 1368, "harmless": 133, "default": 135}, encoded, encoded, drops))
    lines = [line.split() for line in table.splitlines()]
    assert next(line for line in lines if line[0] == "helpful")[1:4] == ["1,368", "134", "134"]
    assert ["default", "2", "malformed"] in lines
    assert [line for line in lines if line[0] == "all"][1:] == [
        ["all", "1,234", "equal", "responses"],
        ["all", "2", "malformed"],
    ]
    assert max(map(len, table.splitlines())) <= 120


def test_a_prompt_of_two_domains_counts_once_among_all():
    pairs = [pair("a", "b", "c"), pair("a", "c", "b", "harmless"), pair("b", "c", "d", "harmless")]
    training, nothing = encode_pairs(TOKENIZER, CONDITIONS, pairs, 4096), encode_pairs(TOKENIZER, CONDITIONS, [], 4096)
    entries = summarise({"helpful": 1, "harmless": 2}, training, nothing, {})
    assert {entry.domain: entry.prompts for entry in entries} == {"harmless": 2, "helpful": 1, "all": 2}


def test_the_table_of_one_domain_has_no_line_of_all():
    encoded = encode_pairs(TOKENIZER, CONDITIONS, [pair("a", "b", "c")], 4096)
    nothing = encode_pairs(TOKENIZER, CONDITIONS, [], 4096)
    assert [entry.domain for entry in summarise({"helpful": 1}, encoded, nothing, {})] == ["helpful"]
