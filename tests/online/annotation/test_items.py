from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cool_rlhf.online.annotation.items import Item, pair_files, read_pairs_to_label, write_pairs_to_label
from cool_rlhf.protocols import UserError


def test_round_trip(tmp_path: Path, item: Callable[..., Item]) -> None:
    items = [item(1), item(2, answer="4|four", guideline=""), item(3, domain="harmless")]
    path = tmp_path / "rounds/2/slow_path/pairs.jsonl"
    write_pairs_to_label(path, items)
    write_pairs_to_label(tmp_path / "rounds/2.bak/slow_path/pairs.jsonl", items)
    assert pair_files(tmp_path) == [(2, path)]
    assert list(read_pairs_to_label(path, 0, {})) == items


def test_guideline_of_the_domain(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "q"}], "responses": [{"text": "a"}, {"text": ""}], "domain": "brief"}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    (read,) = read_pairs_to_label(path, 1, {"brief": "Be brief."})
    assert (read.guideline, read.round, read.first.finished, read.second.text) == ("Be brief.", 1, True, "")


def test_id_is_that_of_the_pair_in_either_order(item: Callable[..., Item]) -> None:
    one = item(1)
    swapped = replace(one, first=one.second, second=one.first)
    assert one.id == swapped.id == item(1, round=3).id
    assert len({one.id, item(2).id, item(1, domain="harmless").id}) == 3


def test_the_drawn_order_goes_by_the_pair_and_is_fair(item: Callable[..., Item]) -> None:
    items = [item(number) for number in range(200)]
    drawn = [entry.in_drawn_order() for entry in items]
    swapped = [replace(entry, first=entry.second, second=entry.first) for entry in items]
    assert [entry.in_drawn_order() for entry in swapped] == drawn, "whichever side stood first"
    assert [entry.id for entry in drawn] == [entry.id for entry in items]
    assert 70 <= sum(entry == before for entry, before in zip(drawn, items, strict=True)) <= 130


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": None}, "field `prompt`"),
        ({"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "field `prompt` ends"),
        ({"responses": [{"text": "a"}]}, "field `responses` must be a list of two"),
        ({"responses": [{"text": "a"}, {"text": "a"}]}, "field `responses` are the same"),
        ({"responses": [{"text": "a"}, {"text": 3}]}, "field `responses[1].text` must be a string"),
        ({"responses": [{"text": "a", "finished": "no"}, {"text": "b"}]}, "field `responses[0].finished`"),
        ({"domain": 3}, "field `domain` must be a string"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, item: Callable[..., Item], change: dict[str, object], said: str) -> None:
    path = tmp_path / "pairs.jsonl"
    write_pairs_to_label(path, [item(1)])
    good = json.loads(path.read_text(encoding="utf-8"))
    path.write_text("\n".join(json.dumps(row) for row in (good, {**good, **change})), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        list(read_pairs_to_label(path, 0, {}))
    assert f"{path}, row 2" in str(raised.value)
    assert said in str(raised.value)
