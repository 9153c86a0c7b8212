import json
import shutil

import pytest
import yaml

from cool_rlhf.online.annotation.items import parse_item
from cool_rlhf.tracking.between import between_rounds, read_between, read_starts
from cool_rlhf.tracking.metrics import MetricsLog
from cool_rlhf.tracking.report import write_report

HOSTILE = "<img src=x onerror=alert(1)>"
VERDICT = {
    "reason": "only 50.0% are right",
    "held_out_before": 0.31,
    "held_out": 0.5,
    "before": 0.9,
    "after": 0.89,
    "kept": False,
    "mended": "not",
}

DISMISSED = [
    {"description": "more tables", "domain": None, "reason": "the reward model does not pay for it"},
    {"description": HOSTILE, "domain": "brief", "reason": HOSTILE},
]


def finding(pattern, description):
    return {
        "pattern": pattern,
        "description": description,
        "domain": None,
        "shares": {"sft": 0.0, "early": 0.125, "late": 0.75},
        "payment": {"effect": 0.5},
        "p": 0.001,
        "patches": {"training": 75, "held_out": 25},
        "examples": [
            {"id": "late-0-1", "prompt": [{"role": "user", "content": "Why?"}], "text": HOSTILE, "score": 1.5}
        ],
    }


def asked(question: str) -> dict:
    """A pair to label."""
    return {"prompt": [{"role": "user", "content": question}], "responses": [{"text": "a"}, {"text": "b"}]}


def id_of(question: str) -> str:
    return parse_item(asked(question), 0, {}).id


@pytest.fixture
def run(tmp_path):
    for round, findings in ((0, [finding("a/1", "the phrase certainly"), finding("b/2", "long")]), (10, [])):
        folder = tmp_path / f"rounds/{round}"
        (folder / "fast_path").mkdir(parents=True)
        (folder / "slow_path").mkdir()
        patterns = {"tested": 200, "findings": findings, "dismissed": DISMISSED}
        (folder / "fast_path/patterns.json").write_text(json.dumps(patterns))
        pairs = [asked(f"{name}{round or ''}") for name in "xy"]
        (folder / "slow_path/pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    mended = {**VERDICT, "kept": True, "mended": "enough", "held_out": 1.0}
    repair = {"kept": ["a/1"], "verdicts": {"a/1": mended, "b/2": VERDICT},
              "pairs": {"patches": 75, "earlier_patches": 0, "labels": 1},
              "earlier": {"c/3": 0.42, "d/4": 1.0}, "relapsed": ["c/3"]}  # fmt: skip
    (tmp_path / "rounds/0/fast_path/repair.json").write_text(json.dumps(repair))
    rows = [{"id": id_of("x"), "labelled_by": ["person: Ann", "import: Bo", "rule: rule gold, 5% noise (no person)"]},
            {"id": id_of("z"), "labelled_by": ["rule: rule gold, 5% noise (no person)"]}]  # fmt: skip
    (tmp_path / "rounds/0/slow_path/labels.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "rounds/0/fast_path/review.jsonl").write_text(f"{json.dumps(asked('z'))}\n")
    (tmp_path / "rounds/11/policy").mkdir(parents=True)
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append("online", 0, 1, {"score/sft": 0.25, "score/late": 1.25, "gold/late": 0.5})
    return tmp_path


def test_rounds_stand_in_their_order_and_only_where_their_paths_ran(run):
    shutil.copytree(run / "rounds/0", run / "rounds/0.bak")
    assert [record["round"] for record in read_between(run)] == [0, 10]


def test_each_finding_says_what_became_of_it(run):
    records = between_rounds(read_between(run), [])
    outcomes = [found["outcome"] for found in records[0]["findings"]]
    assert outcomes == ["mended", "rolled back: only 50.0% are right"]
    assert (records[0]["pairs"], records[0]["labels"]) == (3, 2), "those under review too"
    file = run / "rounds/0/fast_path/repair.json"
    repair = json.loads(file.read_text())
    repair["verdicts"]["a/1"] |= {"mended": "in part", "reason": "40.0% are right"}
    file.write_text(json.dumps(repair))
    assert between_rounds(read_between(run), [])[0]["findings"][0]["outcome"] == "mended in part: 40.0% are right"
    file.write_text(json.dumps({**repair, "repeated": {"a/1": 4}}))
    outcome = between_rounds(read_between(run), [])[0]["findings"][0]["outcome"]
    assert outcome == "mended in part, its patches learnt 4 times: 40.0% are right"
    del repair["verdicts"]["a/1"]["mended"]  # as records were before a repair could be kept in part
    file.write_text(json.dumps(repair))
    assert between_rounds(read_between(run), [])[0]["findings"][0]["outcome"] == "mended"
    file.unlink()
    assert between_rounds(read_between(run), [])[0]["findings"][0]["outcome"] == "not mended yet"


def write_repair(run, round, **repair):
    folder = run / f"rounds/{round}/fast_path"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "repair.json").write_text(json.dumps({"kept": [], "verdicts": {}, "not_judged": [], **repair}))


def outcomes(run):
    return [found["outcome"] for found in between_rounds(read_between(run), [])[0]["findings"]]


def test_a_pattern_that_a_round_could_not_judge_says_why(run):
    write_repair(run, 0, not_judged=["a/1"], before=0.9)
    few = "not mended: too few held-out pairs to judge that by"
    assert outcomes(run) == [few, "not mended yet"], "the repair of something else says nothing of it"
    write_repair(run, 0, not_judged=["a/1", "b/2"], before=None)
    assert outcomes(run) == ["not mended: no general pairs to judge that by"] * 2


def test_a_pattern_that_a_later_round_tried_says_what_became_of_it(run):
    mended = {**VERDICT, "kept": True, "mended": "enough", "held_out": 1.0}
    write_repair(run, 0, before=0.9)
    write_repair(run, 10, kept=["a/1"], verdicts={"a/1": mended, "b/2": VERDICT}, before=0.9)
    assert outcomes(run) == ["mended after round 10", "rolled back after round 10: only 50.0% are right"]
    assert between_rounds(read_between(run), [])[0]["findings"][0]["verdict"]["held_out"] == 1.0
    write_repair(run, 0, not_judged=["b/2"], before=0.9)
    assert outcomes(run)[1].startswith("not mended: too few"), "the first that tried it counts"


def test_labels_of_pairs_that_no_round_asks_about_are_no_answers(run):
    file = run / "rounds/0/slow_path/labels.jsonl"
    with file.open("a") as labels:
        for name in (*(f"elsewhere {number}" for number in range(5)), id_of("y"), id_of("by hand")):
            labels.write(json.dumps({"id": name, "labelled_by": ["import: Bo"]}) + "\n")
    (run / "rounds/10/slow_path/pairs.jsonl").write_text(
        f"{json.dumps(asked('y'))}\n{json.dumps({'id': 'mine', **asked('by hand')})}\n"
    )
    first, last = read_between(run)
    assert (first["pairs"], first["labels"], first["unasked"]) == (3, 3, 5)
    assert (last["pairs"], last["labels"], last["unasked"]) == (2, 2, 0), "kept with the round that had it first"
    assert (
        "prefer one side in 3 of 3 pairs, and in 5 others that no round asks about now."
        in write_report(run).read_text()
    )


def test_a_rounds_own_labels_are_not_called_imported_once_it_is_made_again(run):
    (run / "rounds/0/fast_path/review.jsonl").write_text(f"{json.dumps(asked('another answer'))}\n")
    (first, _) = read_between(run)
    assert (first["pairs"], first["labels"], first["unasked"]) == (3, 1, 1)
    text = write_report(run).read_text()
    assert "prefer one side in 1 of 3 pairs, and in 1 other that no round asks about now." in text
    assert "imported" not in text.split("Between rounds", 1)[1].split("Clearest examples")[0]


def test_the_page_shows_what_was_found_and_mended(run):
    text = write_report(run).read_text()
    for words in (
        "Between rounds",
        "After round 0",
        "the phrase certainly",
        "rolled back: only 50.0% are right",
        "75 %",
        "c/3, which an earlier round mended, is back: only 42 % of its held-out pairs are right",
        '<td class="n">31 %</td><td class="n">50 %</td>',
        '<td class="words">more tables</td><td>all</td><td class="words">the reward model does not pay for it</td>',
        "Labels from people, rule gold, 5% noise (no person) prefer one side in 2 of 3 pairs",
        "Labels prefer one side in 0 of 2 pairs",
    ):
        assert words in text, words
    assert HOSTILE not in text
    assert "1.25" in text


def test_each_round_says_what_its_policy_started_from(run):
    file = run / "rounds/0/fast_path/patterns.json"
    patterns = json.loads(file.read_text())
    patterns["findings"][0]["explained"], patterns["findings"][1]["explained"] = 0.6, 0.1
    file.write_text(json.dumps(patterns))
    (run / "rounds/1/policy").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"online": {"policy_from": "clean", "cheating": 0.6}}))
    with MetricsLog(run / "metrics.jsonl") as log:
        for round in (0, 1):
            log.append("ppo", round, 1, {"reward/score": 0.0})
    text = write_report(run).read_text()
    assert "The policy of round 0 starts from the SFT model." in text
    assert "The policy of round 1 starts over from the SFT model, and that of round 0 is left behind: " in text
    assert "one finding explains at least 60% of its rise in score." in text
    assert read_starts(run, {"policy_from": "last", "cheating": 0.6})[1].endswith("from the policy of round 0.")
    assert read_starts(run, {"policy_from": "clean", "cheating": 0.7})[1].endswith("from the policy of round 0.")
    assert read_starts(run, {"policy_from": "sft", "cheating": 0.1})[1].endswith("from the SFT model.")
