"""What stage=evaluate holds out, and what it notes about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cool_rlhf.checkpoint import RunState
from cool_rlhf.compose import compose
from cool_rlhf.evaluation.held_out import HeldOut
from cool_rlhf.preflight import check_data, with_earlier_stages
from cool_rlhf.protocols import UserError


def test_alone_without_an_experiment(tmp_path: Path, checkpoint: Any, rows: Any) -> None:
    own = rows("own.jsonl", {"prompt": "why?", "chosen": "because", "rejected": "no", "domain": "law"})
    named = [f"reward.path={checkpoint('rm')}", f"data.test_preferences=[{own}]", f"output_dir={tmp_path}"]
    checkpoint("sft")  # which would have nothing to answer
    (leg,) = with_earlier_stages(compose(["stage=evaluate", *named]))
    check_data(leg)  # a reward model without conditions knows no domains, and takes any
    held_out = HeldOut.of(leg)
    assert ([pair.domain for pair in held_out.preferences], list(held_out.prompts)) == (["law"], [])
    assert [note.split(":")[0] for note in held_out.notes] == ["no n-gram baseline", "no responses"]
    (tmp_path / "rm" / "conditions.json").write_text(json.dumps({"default": "", "lay": "As a layman."}))
    with pytest.raises(UserError, match=r"own\.jsonl.*'law'.*is `lay` meant"):
        check_data(leg)
    (tmp_path / "rm" / "conditions.json").write_text(json.dumps({"default": "", "law": "As a lawyer."}))
    check_data(leg)


def test_doubtful_test_pairs_are_noted(tmp_path: Path, checkpoint: Any, rows: Any) -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    test = rows("test.jsonl", pair("why?", "so", "no"), pair("why?", "so", "no"), pair("who?", "I", "you"),
        pair("who?", "you", "I"), pair("when?", "now", "never"),
    )  # fmt: skip
    train = rows("train.jsonl", pair("Why?", "perhaps", "no"), pair("where?", "here", "there"))
    named = [f"reward.path={checkpoint('rm')}", f"output_dir={tmp_path}", "evaluate.samples_per_prompt=0"]
    config = compose(["stage=evaluate", *named, f"data.test_preferences=[{test}]", f"data.preferences=[{train}]"])
    held_out = HeldOut.of(replace(config, reward=replace(config.reward, validation_share=0.0)))
    assert [note.split(":")[0] for note in held_out.notes][:3] == [
        "1 of the test pairs stand there more than once",
        "1 test pairs are labelled both ways in their domain",
        "1 of 3 test prompts stand in the training pairs",
    ]
    assert [pair.chosen[0]["content"] for pair in held_out.training] == ["where?"]
    RunState(tmp_path).begin("reward_0", {"data": {"test_preferences": [str(test)]}})
    told = HeldOut.of(replace(config, reward=replace(config.reward, validation_share=0.0)))
    assert not [note for note in told.notes if "stand in the training pairs" in note], "it was kept apart by the run"
    assert told.training == held_out.training


def test_what_was_learnt_is_noted_without_a_baseline_too(config_of: Any, checkpoint: Any, rows: Any) -> None:
    checkpoint("sft")
    own = rows("own.jsonl", {"prompt": "why?", "chosen": "because", "rejected": "no", "domain": "brief"})
    named = [f"data.test_preferences=[{own}]", f"data.preferences=[{own}]", "evaluate.samples_per_prompt=0"]
    held_out = HeldOut.of(config_of(*named, "evaluate.baseline_pairs=0"))
    assert "1 of 1 test prompts stand in the training pairs: the model has learnt from them" in held_out.notes
    assert held_out.training == []
    gone = [*named, "data.preferences=[nowhere.jsonl]"]
    (told,) = [note for note in HeldOut.of(config_of(*gone, "evaluate.baseline_pairs=0")).notes if "nowhere" in note]
    assert told.startswith("whether test prompts stand in the training pairs cannot be told: ")
    with pytest.raises(UserError, match="nowhere"):
        HeldOut.of(config_of(*gone))


def test_what_the_rounds_taught_is_noted(tmp_path: Path, config_of: Any, checkpoint: Any, rows: Any) -> None:
    """Patches of patterns that stayed and labels that were trained on; not what was taken back or only judges."""

    def pair(prompt: str, **more: Any) -> dict[str, Any]:
        sides = [{"role": "assistant", "content": text} for text in ("so", "no")]
        row = {"prompt": [{"role": "user", "content": prompt}], "domain": "brief", **more}
        return {**row, "chosen": sides[:1], "rejected": sides[1:], "chosen_finished": True, "rejected_finished": True}

    checkpoint("sft")
    for folder in ("fast_path", "slow_path"):
        (tmp_path / "rounds" / "0" / folder).mkdir(parents=True)
    rows("rounds/0/fast_path/patches.jsonl", *(
        {**pair(prompt, pattern=pattern, split=split), "role": "pattern"} for prompt, pattern, split in (
            ("kept?", "phrase/a", "training"), ("judging?", "phrase/a", "held_out"), ("back?", "phrase/b", "training")
        )
    ))  # fmt: skip
    rows("rounds/0/slow_path/labels.jsonl", pair("labelled?", id="1-brief"), pair("too late?", id="2-brief"))
    learnt = {"kept": ["phrase/a"], "rolled_back": ["phrase/b"], "labels": {"1-brief": "first"}}
    rows("rounds/0/fast_path/repair.json", learnt)
    asked = ["kept?", "Judging?", "back?", "labelled?", "too late?", "new?"]
    test = rows("test.jsonl", *({"prompt": prompt, "chosen": "so", "rejected": "no"} for prompt in asked))
    prompts = rows("prompts.jsonl", *({"prompt": prompt} for prompt in (*asked, "Kept?")))
    told = "stand in patches or labels of the rounds: the reward model has learnt from them"

    held_out = HeldOut.of(config_of(f"data.test_preferences=[{test}]", f"data.test_prompts=[{prompts}]"))
    assert [note for note in held_out.notes if "rounds" in note] == [
        f"2 of 6 prompts of test pairs {told}",
        f"2 of 6 prompts asked {told}",
    ]
    held_out = HeldOut.of(config_of(f"data.validation_prompts=[{prompts}]"))
    assert held_out.prompts_from == "validation prompts"
    assert f"2 of 6 prompts asked {told}" in held_out.notes


def test_test_rows_that_are_left_out_are_noted(config_of: Any, rows: Any) -> None:
    pairs = [{"prompt": "why?", "chosen": "so", "rejected": rejected} for rejected in ("no", "so", "so", "")]
    test = rows("test.jsonl", *pairs)
    asked = rows("asked.jsonl", {"prompt": "why?"}, {"prompt": ""})
    named = [f"data.test_preferences=[{test}]", f"data.test_prompts=[{asked}]", "data.bad_rows=drop"]
    held_out = HeldOut.of(config_of(*named))
    assert (len(held_out.preferences), len(held_out.prompts)) == (1, 1)
    assert [note for note in held_out.notes if "left out" in note] == [
        "3 rows of data.test_preferences are left out: 2 equal responses, 1 malformed",
        "1 rows of data.test_prompts are left out: 1 malformed",
    ]


def test_a_prompt_that_is_listed_twice_is_asked_once(config_of: Any, rows: Any) -> None:
    """Else the best of its answers would be chosen among twice as many."""
    asked = rows("asked.jsonl", {"prompt": "why?"}, {"prompt": "who?"}, {"prompt": "why?"})
    held_out = HeldOut.of(config_of(f"data.test_prompts=[{asked}]"))
    assert [prompt.messages[-1]["content"] for prompt in held_out.prompts] == ["why?", "who?"]
    assert "1 prompts that are listed again are asked once" in held_out.notes


def test_world_supplies_what_no_stage_has_seen(config_of: Any) -> None:
    held_out = HeldOut.of(config_of())
    assert {len(held_out.prompts), len({prompt.id for prompt in held_out.prompts})} == {12}
    assert {pair.domain for pair in held_out.opposed} == {"brief", "thorough"}
    assert len(held_out.preferences) > 100
    assert held_out.notes == []
    assert held_out.gold(held_out.prompts[0], "", True) == 0.0


def test_own_preferences_are_never_judged_by_the_worlds(config_of: Any, checkpoint: Any, rows: Any) -> None:
    own = rows("own.jsonl", {"prompt": "why?", "chosen": "because", "rejected": "no", "domain": "brief"})
    prompts = rows("prompts.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(20)))
    named = [f"data.preferences=[{own}]", f"data.prompts=[{prompts}]"]
    checkpoint("sft")
    held_out = HeldOut.of(config_of(*named))
    assert (list(held_out.preferences), list(held_out.opposed), len(held_out.prompts)) == ([], [], 1)
    assert "data.test_preferences is empty" in held_out.notes[0]
    assert "validation" in held_out.notes[1]
    assert held_out.gold(held_out.prompts[0], "7", True) is None

    test = [f"data.test_preferences=[{own}]", f"data.test_prompts=[{prompts}]"]
    held_out = HeldOut.of(config_of(*named, *test))
    assert (len(held_out.preferences), len(held_out.prompts)) == (1, 20)
    assert held_out.notes == ["1 of 1 test prompts stand in the training pairs: the model has learnt from them"]
    assert held_out.training == []


def test_test_rows_are_checked_before_anything_starts(config_of: Any, rows: Any) -> None:
    bad = rows("bad.jsonl", {"prompt": "why?", "chosen": "because"})
    with pytest.raises(UserError, match=r"data\.test_preferences: .*bad\.jsonl.*row 1"):
        check_data(config_of(f"data.test_preferences=[{bad}]"))
    with pytest.raises(UserError, match=r"data\.test_prompts: .*nowhere"):
        check_data(config_of("data.test_prompts=[nowhere.jsonl]"))
    check_data(config_of("data.sft=[nowhere.jsonl]"))  # what only training reads
    with pytest.raises(UserError, match=r"data\.test_preferences: .*nowhere"):
        check_data(config_of("data.test_preferences=[nowhere.jsonl]"))
    with pytest.raises(UserError, match=r"data\.test_preferences is empty, and there is nothing else"):
        check_data(config_of("data.world=null"))
