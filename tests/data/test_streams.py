from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cool_rlhf.data.streams import ShuffledStream, TextPosition, TextStream, WeightedStream, token_batches


def test_each_epoch_holds_every_item_once_in_its_own_order():
    taken = ShuffledStream(list("abcdefgh"), seed=1).take(0, 24)
    epochs = [taken[:8], taken[8:16], taken[16:]]
    assert all(sorted(epoch) == list("abcdefgh") for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_a_position_is_all_that_is_needed_to_go_on():
    stream = ShuffledStream(list(range(10)), seed=1)
    assert stream.take(0, 25) == stream.take(0, 7) + ShuffledStream(list(range(10)), seed=1).take(7, 18)


def test_seeds_give_different_orders():
    assert ShuffledStream(list(range(30)), seed=1).take(0, 30) != ShuffledStream(list(range(30)), seed=2).take(0, 30)


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        ShuffledStream([], seed=1)


@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=6), amounts=st.lists(st.integers(0, 40), max_size=12))
def test_texts_come_in_the_amounts_asked_for_and_lose_no_more_than_single_tokens(lengths, amounts):
    texts = [torch.arange(length) + 100 * index for index, length in enumerate(lengths)]
    stream, position = TextStream(texts, seed=3), TextPosition()
    taken: list[int] = []
    for amount in amounts:
        pieces, position = stream.take(position, amount)
        assert all(len(piece) >= 2 for piece in pieces)
        assert sum(map(len, pieces)) <= amount
        taken += [token for piece in pieces for token in piece.tolist()]
    # In order of the stream: each text's tokens ascend, and none comes twice in an epoch.
    for epoch_tokens in [taken[: sum(lengths) - len(lengths)]]:
        assert len(set(epoch_tokens)) == len(epoch_tokens)


def test_text_is_cut_and_goes_on_where_it_stopped():
    stream = TextStream([torch.arange(10)], seed=1)
    first, position = stream.take(TextPosition(), 4)
    assert [piece.tolist() for piece in first] == [[0, 1, 2, 3]]
    assert position == TextPosition(item=0, offset=4)
    second, position = stream.take(position, 9)
    assert [piece.tolist() for piece in second] == [[4, 5, 6, 7, 8, 9], [0, 1, 2]]
    assert position == TextPosition(item=1, offset=3)


def test_texts_too_short_to_predict_anything_are_passed_over():
    pieces, _ = TextStream([torch.arange(1), torch.arange(3)], seed=1).take(TextPosition(), 6)
    assert [piece.tolist() for piece in pieces] == [[0, 1, 2], [0, 1, 2]]


def test_a_stream_without_texts_has_no_pieces():
    position = TextPosition(3, 1)
    assert TextStream([], seed=1).take(position, 6) == ([], position)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    budget=st.integers(10, 80),
    epochs=st.integers(1, 3),
)
def test_batches_hold_everything_once_an_epoch_within_the_budget(lengths, budget, epochs):
    batches = token_batches(lengths, budget, seed=1, epochs=epochs)
    seen = [index for batch in batches for index in batch]
    for epoch in range(epochs):
        assert sorted(seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= budget


def test_weights_say_how_often_a_groups_items_come():
    items = [f"a{k}" for k in range(10)] + [f"b{k}" for k in range(20)] + [f"c{k}" for k in range(6)] + ["d"]
    for unit in (1.0, 100.0):  # ratios alone matter
        weights = {"a": 2.0 * unit, "b": 0.25 * unit, "c": unit, "d": 0.0}
        stream = WeightedStream(items, [item[0] for item in items], weights, seed=1)
        taken = stream.take(0, 124)
        for start, end, b in ((0, 15, 2), (15, 31, 3), (31, 46, 2), (46, 62, 3)):  # 20 at an eighth: 2.5 an epoch
            assert Counter(item[0] for item in taken[start:end]) == {"a": 10, "b": b, "c": 3}
        # Over eight epochs every item has come in proportion.
        assert Counter(taken) == {item: {"a": 8, "b": 1, "c": 4}[item[0]] for item in items if item != "d"}
        assert taken[:15] != taken[15:30]


@given(position=st.integers(0, 300), weight=st.floats(0.01, 3.0))
def test_a_weighted_stream_goes_on_from_any_position(position, weight):
    items = list(range(17))
    groups = ["even" if item % 2 == 0 else "odd" for item in items]
    whole = WeightedStream(items, groups, {"odd": weight}, seed=4).take(0, 320)
    assert WeightedStream(items, groups, {"odd": weight}, seed=4).take(position, 20) == whole[position : position + 20]


def test_a_lone_item_of_small_weight_comes_as_seldom_as_asked():
    items = ["rare", *map(str, range(50))]
    stream = WeightedStream(items, ["rare", *["often"] * 50], {"rare": 0.01}, seed=2)
    assert stream.take(0, 5001 * 2).count("rare") == 2


def test_weights_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="weight above 0"):
        WeightedStream([1], ["a"], {"a": 0.0}, seed=1)


def test_a_batch_may_fill_its_budget_to_the_last_token():
    assert [len(batch) for batch in token_batches([3] * 6, 6, seed=1, epochs=2)] == [2] * 6
    assert [len(batch) for batch in token_batches([3] * 6, 5, seed=1, epochs=1)] == [1] * 6
