import html
import json
import re
import subprocess

import pytest
import yaml
from plotly.offline import get_plotlyjs

from cool_rlhf.tracking import evaluated
from cool_rlhf.tracking.figures import Chart, Curve, figure
from cool_rlhf.tracking.metrics import MetricsLog, read_metrics
from cool_rlhf.tracking.report import write_report
from cool_rlhf.tracking.summary import Best, best_step, domain_changes, phase_times, ppo_changes, stage_times
from cool_rlhf.tracking.text import number_text

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
        "Response length", "Time by phase", "seconds per step", "round 1", "critic warm-up", "clip",
        "Sampled conversations", "Evaluation", "480", "Where the time went",
    ):  # fmt: skip
        assert words in text, words
    own = text.replace(get_plotlyjs(), "", 1)
    assert len(text) - len(own) > 1_000_000
    assert not re.findall(r"(?:src|href)=[\"'](?!#)|https?://|@import|url\(", own)
    assert len(own) < 400_000
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


def test_a_round_says_that_score_and_gold_part(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for step in range(1, 6):
            fields = {"validation/score": float(step), "validation/gold": -float(step), "validation/kl": step**2.0}
            log.append("ppo", 0, step, {**fields, "overoptimisation/parted": float(step == 5)})
    assert "Score and gold part at step 5" in page(tmp_path)


def test_gold_may_be_what_rules_that_are_trained_on_say(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for step in (1, 2):
            names = ("gold", "gold/math", "validation/gold", "validation/gold/math", "validation/kl")
            log.append(
                "ppo", 0, step, {**dict.fromkeys(names, 3.0), "validation/score": 1.0, "overoptimisation/score": 1.5}
            )
    text = page(tmp_path)
    assert "never trained on" not in text
    assert "0 to 1" not in text, "a rule's weight may be any"
    assert "PPO learns from it only as far as rules in ppo.rewards have a weight" in text
    assert "validation, where gold is known" in text


def test_an_evaluation_says_what_the_run_was_like_when_it_was_made(tmp_path):
    """Else the numbers of a run that goes on pass for those of its new models."""
    write_run(tmp_path)
    assert "When it was measured is not known" in page(tmp_path), "earlier versions wrote no stamp"

    when = evaluated.stamp(read_metrics(tmp_path / "metrics.jsonl"))
    (tmp_path / "evaluation.json").write_text(json.dumps({"measured": when, "prompts": 480, "notes": ["few <rows>"]}))
    text = page(tmp_path)
    assert re.search(r"Measured \d{4}-\d\d-\d\d \d\d:\d\d .*, after PPO, round 1, step 12\.", text)
    assert "Note: few &lt;rows&gt;" in text
    assert "gone on since" not in text
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append("ppo", 1, 13, {"reward/score": 1.0})
    text = page(tmp_path)
    assert "after PPO, round 1, step 12. <span" in text
    assert "The run has gone on since" in text
    assert "480" in text.split('id="evaluation"')[1]


def test_an_evaluations_estimates_are_cells_of_their_own(tmp_path):
    write_run(tmp_path)
    share = {"accuracy": 0.97083, "interval": [0.941034, 0.985801], "ties": 0.0}
    score = {"mean": -0.5, "standard_error": 0.25}
    found = {"sft": {"overall": {"prompts": 4, "score": score, "gold": {**score, "prompts": 3}}},
             "reward_accuracy": {"brief": {"pairs": 9, "own": share, "none": {**share, "interval": None}}}}  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    cells = re.findall(r'<td class="n">([^<]*)</td>', page(tmp_path).split('id="evaluation"')[1].split("<h2")[0])
    assert cells == ["4", "−0.5 ± 0.25", "−0.5 ± 0.25 (3 prompts)", "9", "0.971 [0.941, 0.986]", "0.971"]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_run_that_has_hardly_begun(tmp_path, rows):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for step in range(1, rows + 1):
            log.append("ppo", 0, step, {"reward/score": 0.0, "kl": 0.0, "time/generate": 0.0, "warmup": True})
    text = page(tmp_path)
    assert ("Nothing recorded yet" in text) == (rows == 0)
    assert text.count("<figure") == text.count("Plotly.newPlot") == (3 if rows == 2 else 0)
    assert ('<div class="name">kl</div>' in text) == (rows == 1)
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def page(folder):
    """The report without the library."""
    return write_report(folder).read_text().replace(get_plotlyjs(), "", 1)


def test_text_from_data_stays_text(tmp_path):
    write_run(tmp_path, domain=HOSTILE)
    text = page(tmp_path)
    figures = text.count("<figure>")
    assert figures > 10
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == figures + 2
    assert html.escape("</script><img src=x onerror=", quote=True) in text
    assert "{{ 7*7 }}" in text
    samples = text.split('<div class="samples">')[1]
    assert "\\u202e\\u0000 12" in samples
    assert "\u202e" not in text


def test_names_reach_plotly_as_plain_text():
    name = figure(chart([1.0, 2.0], name=HOSTILE)).data[0].name
    assert name.startswith("&lt;/script&gt;&lt;img src=x")
    assert not set(name) & set("<>\u202e\x00")
    assert len(html.unescape(figure(chart([1.0], name="a" * 100)).data[0].name)) == 40


def test_the_policy_admits_the_pages_own_scripts_only(tmp_path):
    write_run(tmp_path)
    text = write_report(tmp_path).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    admitted = set(re.findall(r"'sha256-[^']*'", html.unescape(policy)))
    digests = set()
    for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL):
        command = "openssl dgst -sha256 -binary | base64"
        done = subprocess.run(command, shell=True, input=script, capture_output=True, text=True, check=True)
        digests.add(f"'sha256-{done.stdout.strip()}'")
    assert len(digests) > 10
    assert admitted == digests
    assert "unsafe-inline" not in policy.split("script-src")[1]


def chart(values, rounds=None, name="a", **more):
    x = list(range(1, len(values) + 1))
    return Chart("t", "", "step", "score", [Curve(name, x, values, rounds or [0] * len(x))], **more)


def test_few_points_are_drawn_as_they_are_under_named_axes():
    drawn = figure(chart([0.0, 1.0, 2.0]))
    (line,) = drawn.data
    assert (list(line.x), list(line.y), line.mode) == ([1, 2, 3], [0, 1, 2], "lines+markers")
    assert (drawn.layout.xaxis.title.text, drawn.layout.yaxis.title.text) == ("step", "score")


def test_no_line_runs_from_one_round_to_the_next():
    (line,) = figure(chart([1.0, 3.0, 4.0, 5.0], rounds=[0, 0, 1, 1])).data
    assert list(line.x) == [1, 2, None, 3, 4]
    assert list(line.y) == [1, 3, None, 4, 5]
    assert not line.connectgaps


def test_long_curves_get_a_running_mean_that_keeps_within_its_round():
    values = [float(i % 2) for i in range(60)] + [10.0] * 60
    raw, mean = figure(chart(values, rounds=[0] * 60 + [1] * 60)).data
    assert [y for y in raw.y if y is not None] == values
    assert list(mean.customdata) == list(raw.y)  # the pointer shows what was measured
    means = [y for y in mean.y if y is not None]
    assert all(0.3 < y < 0.7 for y in means[:60])
    assert set(means[60:]) == {10.0}


def test_one_wild_step_does_not_flatten_the_curve():
    wave = [1.0 + 0.1 * (i % 3) for i in range(120)]
    assert figure(chart(wave)).layout.yaxis.range is None
    wave[50] = 1e6
    low, high = figure(chart(wave)).layout.yaxis.range
    assert low < 1.0 < 1.2 < high < 2


def test_phases_are_stacked():
    curves = [Curve("a", [1, 2], [1.0, 1.0], [0, 0]), Curve("b", [1], [2.0], [0])]
    drawn = figure(Chart("t", "", "step", "seconds", curves, stacked=True))
    assert drawn.layout.barmode == "stack"
    assert [(bar.type, bar.name, list(bar.y)) for bar in drawn.data] == [("bar", "a", [1, 1]), ("bar", "b", [2])]


def test_samples_show_the_first_the_best_and_the_last(tmp_path):
    write_run(tmp_path, rounds=1)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    scores = {2: 0.9, 6: 0.5, 12: 0.4}
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if row["stage"] == "ppo" and row["step"] in scores:
            row["validation/score"] = scores[row["step"]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = re.findall(r"<small>(\w+, step \d+)", page(tmp_path))
    assert labels == ["first, step 1", "best, step 6", "last, step 12"]  # step 2 is the warm-up's
    (tmp_path / "config.yaml").write_text("ppo: {best_metric: validation/score, best_mode: min}\n")
    assert "best, step 12" in page(tmp_path)


def test_numbers_as_people_write_them():
    assert [number_text(v) for v in (0, 1.0, 0.12345, -12.345, 1234.5, 2e-5, 123.4)] == [
        "0", "1", "0.123", "−12.3", "1,234", "2.00e-5", "123",
    ]  # fmt: skip


def test_headline_compares_the_first_validation_with_the_best():
    scores = {1: -0.1, 5: 0.6, 10: 0.4}
    rows = [ppo_row(s, kl=0.1 * s, response_length=40.0 - s) for s in range(1, 11)]
    for row in rows:
        if row["step"] in scores:
            row |= {"validation/score": scores[row["step"]], "validation/gold": row["step"] / 10}
    rows[0]["validation/kl"], rows[4]["validation/kl"] = 0.0, 0.75
    held_out = {change.name: change for change in ppo_changes(rows, Best())}["KL from SFT"]
    assert (held_out.before, held_out.after, held_out.verdict) == (0.0, 0.75, "")
    del rows[4]["validation/kl"]
    changes = {change.name: change for change in ppo_changes(rows, Best())}
    score, gold = changes["Reward score, validation"], changes["Gold, validation"]
    assert (score.before, score.after, score.after_note, score.verdict) == (-0.1, 0.6, "best, step 5", "good")
    assert score.before_note == "step 1"
    rows[0]["warmup"] = True
    assert {c.before_note for c in ppo_changes(rows, Best()) if c.name == score.name} == {"start"}, "nothing learnt yet"
    assert (gold.before, gold.after) == (0.1, 0.5)
    assert changes["KL from SFT"].after == pytest.approx(0.5)
    assert changes["KL from SFT"].verdict == ""


def test_the_best_may_be_the_least():
    rows = [
        ppo_row(step, **{"validation/kl": kl, "validation/score/math": float(step)})
        for step, kl in ((1, 3.0), (2, 1.0), (3, 1.0), (4, 2.0))
    ]
    least = Best("validation/kl", "min")
    assert best_step(rows, least) == 2, "of two alike the earlier"
    assert {change.after_note for change in ppo_changes(rows, least) if "KL" in change.name} == {"best, step 2"}
    assert domain_changes(rows, least)["math"]["score"].after == 2.0


def test_without_validation_first_steps_are_compared_with_the_last():
    rows = [ppo_row(s, **{"reward/score": float(s), "gold/math": 1.0 - s / 20}) for s in range(1, 21)]
    changes = {change.name: change for change in ppo_changes(rows, Best())}
    assert (changes["Reward score"].before, changes["Reward score"].after) == (1.5, 19.5)
    assert domain_changes(rows, Best())["math"]["gold"].verdict == "bad"


def test_time_is_accounted_for():
    rows = [ppo_row(s, **{"time/generate": 1.0, "time/train": 0.5, "time/other": 0.5}) for s in range(1, 6)]
    timings = {t.name: t for t in phase_times(rows)}
    assert (timings["generate"].seconds, timings["train"].seconds, timings["other"].seconds) == (4.0, 2.0, 2.0)
    assert sum(t.share for t in timings.values()) == pytest.approx(1.0)
    sft = [{"stage": "sft", "round": 0, "step": s, "seconds": float(s)} for s in (1, 2, 3)]
    assert [(t.stage, t.steps, t.seconds) for t in stage_times([*sft, *rows])] == [("sft", 3, 3.0), ("ppo", 5, 17.0)]
