import html
import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest
import yaml

from cool_rlhf.tracking.charts import MAX_POINTS, Chart, Series, draw, nice_ticks, number_text
from cool_rlhf.tracking.metrics import MetricsLog
from cool_rlhf.tracking.report import write_report
from cool_rlhf.tracking.summary import domain_changes, phase_times, ppo_changes, stage_times

HOSTILE = '</script><img src=x onerror="alert(1)">\'"&{{ 7*7 }}\u202e\x00'


def ppo_row(step, **fields):
    return {"stage": "ppo", "round": 0, "step": step, "seconds": 10.0 + 2.0 * step, **fields}


def write_run(folder, rounds=2, domain="brief"):
    clock = iter(float(i) for i in range(10000))
    with MetricsLog(folder / "metrics.jsonl", clock=lambda: next(clock)) as log:
        for step in range(1, 31):
            log.append("sft", 0, step, {"loss": 3 / step, "odd": 1.0})
        for round in range(rounds):
            for step in range(1, 5):
                log.append("reward", round, step, {"loss": 0.7, "loss/rank": 0.5, f"accuracy/{domain}": 0.9})
            for step in range(1, 13):
                fields = {"reward/score": 0.1 * step, f"reward/score/{domain}": 0.1, f"gold/{domain}": 0.5, "kl": 0.01,
                          "response_length": 30.0, "time/generate": 0.5, "time/train": 0.25}  # fmt: skip
                if step <= 2:
                    fields["warmup"] = True
                else:
                    fields["loss/policy"] = -0.1
                log.append("ppo", round, step, fields)
    (folder / "config.yaml").write_text(yaml.safe_dump({"experiment": domain, "ppo": {"clip": 0.2}, "seed": 7}))
    sample = {"stage": "ppo", "round": 0, "domain": domain, "messages": [{"role": "user", "content": domain}],
              "score": 0.1, "gold": None, "finished": False}  # fmt: skip
    lines = [json.dumps({**sample, "step": step, "response": f"{domain} {step}"}) for step in (1, 6, 12)]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    evaluation = {"gold": {"sft": {domain: 0.5}, "ppo": {domain: 0.75}}, "prompts": 480, domain: {"a": None}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))


def test_a_whole_run_is_on_one_page_that_needs_no_network(tmp_path):
    write_run(tmp_path)
    text = write_report(tmp_path).read_text()
    for words in (
        "Before and after PPO", "Supervised fine-tuning", "Reward model", "Gold by domain", "KL from the SFT model",
        "Response length", "Seconds per step by phase", "round 1", "critic warm-up", "Sampled conversations", "clip",
        "Evaluation", "480", "Where the time went",
    ):  # fmt: skip
        assert words in text, words
    assert not re.findall(r"(?:src|href)=[\"'](?!#)|https?://|@import|url\(", text)
    assert len(text) < 400_000
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_run_that_has_hardly_begun(tmp_path, rows):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for step in range(1, rows + 1):
            log.append("ppo", 0, step, {"reward/score": 0.0, "kl": 0.0, "time/generate": 0.0, "warmup": True})
    text = write_report(tmp_path).read_text()
    assert ("Nothing recorded yet" in text) == (rows == 0)
    assert text.count("<figure") == (3 if rows else 0)
    assert "nan" not in text


def test_text_from_data_stays_text(tmp_path):
    write_run(tmp_path, domain=HOSTILE)
    text = write_report(tmp_path).read_text()
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == 1
    assert html.escape("</script><img src=x onerror=", quote=True) in text
    assert "{{ 7*7 }}" in text
    samples = text.split('<div class="samples">')[1]
    assert "\\u202e\\u0000 12" in samples
    assert "\u202e" not in text
    hovers = re.findall(r'data-hover="([^"]*)"', text)
    assert len(hovers) > 10
    assert all(json.loads(html.unescape(hover))["labels"] for hover in hovers)


def test_the_policy_admits_the_pages_own_script_only(tmp_path):
    write_run(tmp_path)
    text = write_report(tmp_path).read_text()
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = subprocess.run(
        "openssl dgst -sha256 -binary | base64", shell=True, input=script, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert f"script-src 'sha256-{digest}'" in html.unescape(text)


def test_every_drawing_is_well_formed(tmp_path):
    write_run(tmp_path)
    drawings = re.findall(
        r"<svg viewBox.*?</svg>\s*<line[^>]*>\s*</svg>", write_report(tmp_path).read_text(), re.DOTALL
    )
    assert len(drawings) > 10
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).findall(".//path")


def chart(values, **more):
    x = list(range(1, len(values) + 1))
    return Chart("t", "", x, [f"step {i}" for i in x], [Series("a", values)], **more)


def points(path):
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path.rstrip("Z")) if pair]


def test_a_straight_line_is_drawn_where_it_belongs():
    drawing = draw(chart([0.0, 1.0, 2.0]))
    (x1, y1), (x2, y2), (x3, y3) = points(drawing.lines[0].path)
    assert x1 < x2 < x3
    assert y2 == pytest.approx((y1 + y3) / 2, abs=0.1)
    assert {tick.label: tick.at for tick in drawing.y_ticks}["2"] == y3
    assert {tick.label: tick.at for tick in drawing.y_ticks}["0"] == y1


def test_gaps_are_bridged_within_a_round_and_left_between_rounds():
    drawing = draw(chart([1.0, None, 3.0, 4.0, 5.0], pieces=[0, 0, 0, 1, 1]))
    path = drawing.lines[0].path
    assert path.count("M") == 2
    assert len(points(path)) == 4
    assert drawing.hover["values"] == [["1", None, "3", "4", "5"]]


def test_a_long_curve_is_averaged_not_sampled():
    drawing = draw(chart([float(i % 2) for i in range(10 * MAX_POINTS)]))
    assert len(drawing.hover["x"]) == MAX_POINTS
    assert set(drawing.hover["values"][0]) == {"0.5"}


def test_one_wild_step_does_not_flatten_the_curve():
    drawing = draw(chart([1.0] * 50 + [1e6] + [1.1] * 49 + [0.9] * 10))
    assert drawing.y_ticks[-1].label != "1.00e6"
    assert max(float(v.replace(",", "")) for v in drawing.hover["values"][0]) == 1e6


def test_stacked_areas_add_up():
    stacked = Chart("t", "", [1, 2], ["1", "2"], [Series("a", [1.0, 1.0]), Series("b", [2.0, None])], stacked=True)
    drawing = draw(stacked)
    top = points(drawing.lines[1].path)
    heights = {tick.label: tick.at for tick in drawing.y_ticks}
    assert [y for _, y in top[:2]] == [heights["3"], heights["1"]]


@pytest.mark.parametrize("span", [(0, 1), (-0.37, 0.46), (3, 3), (0, 0), (1e-7, 3e-7), (0, 123456)])
def test_ticks_span_the_values_in_round_steps(span):
    ticks = nice_ticks(*span, 5)
    assert ticks[0] <= span[0] <= span[1] <= ticks[-1]
    assert 2 <= len(ticks) <= 8


def test_numbers_as_people_write_them():
    assert [number_text(v) for v in (0, 1.0, 0.12345, -12.345, 1234.5, 2e-5, 123.4)] == [
        "0", "1", "0.123", "-12.3", "1,234", "2.00e-5", "123",
    ]  # fmt: skip


def test_headline_compares_the_first_validation_with_the_best():
    scores = {1: -0.1, 5: 0.6, 10: 0.4}
    rows = [ppo_row(s, kl=0.1 * s, response_length=40.0 - s) for s in range(1, 11)]
    for row in rows:
        if row["step"] in scores:
            row |= {"validation/score": scores[row["step"]], "validation/gold": row["step"] / 10}
    changes = {change.name: change for change in ppo_changes(rows, "validation/score")}
    score, gold = changes["Reward score, validation"], changes["Gold, validation"]
    assert (score.before, score.after, score.after_note, score.verdict) == (-0.1, 0.6, "best, step 5", "good")
    assert (gold.before, gold.after) == (0.1, 0.5)
    assert changes["KL from SFT"].after == pytest.approx(0.5)
    assert changes["KL from SFT"].verdict == ""


def test_without_validation_first_steps_are_compared_with_the_last():
    rows = [ppo_row(s, **{"reward/score": float(s), "gold/math": 1.0 - s / 20}) for s in range(1, 21)]
    changes = {change.name: change for change in ppo_changes(rows, "validation/score")}
    assert (changes["Reward score"].before, changes["Reward score"].after) == (1.5, 19.5)
    assert domain_changes(rows, "validation/score")["math"]["gold"].verdict == "bad"


def test_time_is_accounted_for():
    rows = [ppo_row(s, **{"time/generate": 1.0, "time/train": 0.5}) for s in range(1, 6)]
    timings = {t.name: t for t in phase_times(rows)}
    assert (timings["generate"].seconds, timings["train"].seconds, timings["other"].seconds) == (4.0, 2.0, 2.0)
    assert sum(t.share for t in timings.values()) == pytest.approx(1.0)
    sft = [{"stage": "sft", "round": 0, "step": s, "seconds": float(s)} for s in (1, 2, 3)]
    assert [(t.stage, t.steps, t.seconds) for t in stage_times([*sft, *rows])] == [("sft", 3, 3.0), ("ppo", 5, 17.0)]
