"""evaluation.html from a whole evaluation.json."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from cool_rlhf.evaluation.comparison import JudgedResponse, means
from cool_rlhf.evaluation.evaluate import best, plain
from cool_rlhf.evaluation.figures import charts, to_figure
from cool_rlhf.evaluation.page import write_evaluation_page
from cool_rlhf.evaluation.reward_model import opposed_rows, reward_tables
from cool_rlhf.evaluation.tables import tables
from cool_rlhf.protocols import PreferencePair
from reward.evaluation import ScoredPairs

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&{{ 7*7 }}\u202e"


def evaluation(domain: str = "brief") -> dict[str, Any]:
    """Of twelve pairs under two domains that judge oppositely, and four responses to each of three prompts."""
    pairs = []
    for k in range(6):
        prompt = {"role": "user", "content": f"{k}?"}
        sides = [[prompt, {"role": "assistant", "content": "x" * length}] for length in (k + 1, 9)]
        pairs.append(PreferencePair(*sides, domain, None, True, True, "alpacaeval-easy"))
        pairs.append(PreferencePair(*sides[::-1], "thorough", None, True, True, "donotanswer"))
    scores = np.random.default_rng(0).normal(size=(12, 2))
    scored = ScoredPairs(
        pairs, np.repeat(np.arange(6), 2), {None: scores, domain: scores + np.array([1.0, 0.0]), "thorough": -scores}
    )
    responses = [JudgedResponse(f"{k // 4}", domain, k % 5 - 2.0, k % 3 / 2, 10, True) for k in range(12)]
    found = {
        "experiment": domain, "seed": 1, "prompts": 3, "prompts_from": "here", "notes": ["a note"], "seconds": 12.0,
        "models": {"sft": None, "reward_model": "somewhere", "chat_model": None},
        **reward_tables(scored, pairs, bound=1.0, seed=0, baseline_pairs=10),
        "opposed_accuracy": opposed_rows(scored), "sft": plain(means(responses)), **best(responses, 4),
    }  # fmt: skip
    return json.loads(json.dumps(found))


def page(folder: Path, found: dict[str, Any]) -> str:
    """Without the library."""
    (folder / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    return write_evaluation_page(folder).read_text(encoding="utf-8").replace(get_plotlyjs(), "", 1)


def test_everything_is_on_a_page_that_needs_no_network(tmp_path: Path) -> None:
    text = page(tmp_path, evaluation())
    for words in (
        "Accuracy by condition", "Pairs that two domains judge oppositely", "Beside the baselines", "RewardBench",
        "Reliability of σ(Δ)", "Score and length", "beyond ±1", "Best of n", "Gold reward", "a note", "somewhere",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("<figure>") == text.count("Plotly.newPlot") == 11
    assert not re.findall(r"(?:src|href)=[\"'](?!#)|https?://|@import|url\(", text)
    assert len(text) < 200_000


def test_text_from_data_stays_text(tmp_path: Path) -> None:
    text = page(tmp_path, evaluation(HOSTILE))
    assert "<img" not in text
    assert "\u202e" not in text
    assert html.escape("</script><img src=x onerror=", quote=True) in text
    assert text.count("<script") == text.count("</script>") == 11 + 2


def test_charts_show_the_numbers() -> None:
    found = evaluation()
    drawn = {chart.title: to_figure(chart) for section in charts(found).values() for chart in section}
    accuracy = drawn["Accuracy by condition"]
    assert list(accuracy.layout.xaxis.ticktext) == ["overall", "brief", "thorough"]
    own = next(trace for trace in accuracy.data if trace.name == "own condition")
    rows = [found["reward_accuracy"][domain]["own"] for domain in ("overall", "brief", "thorough")]
    assert list(own.y) == [row["accuracy"] for row in rows]
    ends = [y + up for y, up in zip(own.y, own.error_y.array, strict=True)]
    assert ends == pytest.approx([row["interval"][1] for row in rows])
    chosen, rejected = drawn["brief"].data
    assert (sum(chosen.y), sum(rejected.y)) == (6, 6)
    reliability = drawn["Reliability of σ(Δ)"].data
    assert [trace.visible for trace in reliability[1:]] == [True, "legendonly", "legendonly"]
    assert sum(reliability[1].customdata) == 12
    gold = drawn["Gold reward"].data
    assert [list(trace.text) for trace in gold] == [["n = 1", "n = 2", "n = 4"]] * 2
    assert list(gold[1].y) == sorted(gold[1].y)  # chosen by gold itself, more to choose from is never worse


def test_both_judges_are_compared_on_the_prompts_that_have_gold() -> None:
    """Four prompts, of which one has gold; the others' scores are higher."""
    responses = [
        JudgedResponse(f"{k // 4}", "chat" if k // 4 else "math", k - 2.0, None if k // 4 else k % 3 / 2, 10, True)
        for k in range(16)
    ]
    found = {**evaluation(), "sft": plain(means(responses)), **best(responses, 4)}
    overall = found["sft"]["overall"]
    assert (overall["prompts"], overall["gold"]["prompts"]) == (4, 1)
    assert "prompts" not in overall["score"]
    assert found["best_of_n"]["by_score"]["1"]["domains"]["overall"]["score"]["mean"] == 5.5

    for chart in charts(found)["Best of n"]:
        by_score, by_gold = chart.traces
        assert by_score["y"][0] == pytest.approx(by_gold["y"][0]), "of one response there is nothing to choose"
        assert chart.explanation.endswith("Over the prompts that have gold (1).")
    cells = {table.title.split(",")[0]: table for table in tables(found)}
    gold, score = cells["Gold reward"], cells["Reward score under the prompt's own condition"]
    assert score.columns[2:] == gold.columns[2:] == ["sft", "sft_best_of_4_by_score", "sft_best_of_4_by_gold"]
    assert [row[:2] for row in gold.rows] == [["overall", "1"], ["overall_with_gold", "1"], ["math", "1"]]
    rows = {row[0]: [cell.split(" ±")[0] for cell in row[1:]] for row in score.rows}
    assert rows["overall"] == ["4", "5.500", "7.000", "–"], "by gold it would be over another prompt"
    assert rows["overall_with_gold"] == ["1", "-0.500", "1.000", "0.000"]
    curve = cells["Best of n SFT responses: mean over prompts that have gold (1)"]
    first = dict(zip(curve.columns, curve.rows[0], strict=True))
    assert first["score, best by score"] == first["score, best by gold"] == "-0.500"


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    found = evaluation()
    for name in list(found):
        if name.startswith(("reward_", "rewardbench", "baselines", "opposed", "best_of_n", "sft")):
            del found[name]
    assert charts(found) == {}
    assert "<figure" not in page(tmp_path, found)
