"""What stage=evaluate takes from the run as it was trained, whatever the settings now."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cool_rlhf.checkpoint import RunState
from cool_rlhf.config import Config
from cool_rlhf.data.messages import with_system_turn
from cool_rlhf.evaluation.held_out import HeldOut
from cool_rlhf.preflight import check_data
from cool_rlhf.protocols import Prompt, UserError
from cool_rlhf.provenance import made_from
from cool_rlhf.stages.inputs import Inputs


@pytest.fixture
def trained(config_of: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """The config of a run that has begun with PPO."""

    def begun(*overrides: str) -> Config:
        config = config_of("stage=pipeline", *overrides)
        state = RunState(tmp_path)
        for stage in ("collect", "reward_0", "ppo_0"):
            state.begin(stage, made_from(config)[stage])
        return config

    return begun


def texts(prompts: Sequence[Prompt]) -> set[str]:
    return {prompt.messages[-1]["content"] for prompt in prompts}


def test_whatever_the_settings_the_prompts_that_the_run_held_out_are_asked(
    tmp_path: Path, config_of: Any, checkpoint: Any, rows: Any, trained: Any
) -> None:
    """Others PPO has trained on."""
    asked = rows("asked.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(400)))
    others = rows("others.jsonl", *({"prompt": f"who {k}?", "domain": "math"} for k in range(40)))
    named = f"data.prompts=[{asked}]"
    run = trained(named, "sampling.system_prompt=Short.", "conditions.math='Be exact.'")
    checkpoint("sft")
    held = Inputs(run).validation
    assert len(held) == 20
    tested = rows("tested.jsonl", *({"prompt": text, "chosen": "so", "rejected": "no", "domain": "math"}
        for text in [*sorted(texts(held))[:3], *(f"why {k}?" for k in range(5))]),
    )  # fmt: skip
    tests = texts(held) & ({*sorted(texts(held))[:3]} | {f"why {k}?" for k in range(5)})

    def found(*overrides: str) -> HeldOut:
        config = config_of(*overrides)
        check_data(config)
        return HeldOut.of(config)

    for changed in ([named, "seed=2"], [], [named, "sampling.system_prompt=Long."], ["conditions=default", named]):
        again = found(*changed)
        assert [prompt.id for prompt in again.prompts] == [prompt.id for prompt in held]
        assert again.prompts_from == "validation prompts"
        assert not [note for note in again.notes if "not those" in note]
    system = found("sampling.system_prompt=Long.").prompts[0].messages
    assert system == with_system_turn([held[0].messages[-1]], "Long."), "as it is to be asked now"
    other = found(f"data.prompts=[{others}]")
    assert texts(other.prompts) == texts(held)
    assert [note for note in other.notes if "are not those that the run was trained with" in note]
    fewer = found(named, f"data.test_preferences=[{tested}]", "evaluate.baseline_pairs=0")
    assert texts(fewer.prompts) == texts(held) - tests
    assert f"{len(tests)} of the prompts that the run held out are not asked, since test rows have them" in fewer.notes

    asked.unlink()
    with pytest.raises(UserError, match=rf"data\.prompts of the run in {tmp_path}: there is no file .*asked\.jsonl"):
        found()


def test_test_prompts_that_the_run_was_asked_are_noted(tmp_path: Path, config_of: Any, rows: Any, trained: Any) -> None:
    asked = rows("asked.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(100)))
    named = f"data.prompts=[{asked}]"
    run = trained(named, "sampling.system_prompt=Short.")
    tested = rows("tested.jsonl", {"prompt": "Why  7?"}, {"prompt": "who?"},
        *({"prompt": text} for text in sorted(texts(Inputs(run).prompts))[:4]),
    )  # fmt: skip
    count = len({"why 7?", *sorted(texts(Inputs(run).prompts))[:4]} & texts(Inputs(run).prompts))
    config = config_of(f"data.test_prompts=[{tested}]")
    told = [note for note in HeldOut.of(config).notes if "test prompts" in note]
    assert told == [f"{count} of 6 test prompts were asked in training: the policy has learnt from them"]
    asked.unlink()
    told = [note for note in HeldOut.of(config).notes if "test prompts" in note]
    assert len(told) == 1
    assert re.match(r"whether the run was asked test prompts in training cannot be told: .*asked\.jsonl", told[0])


def test_test_prompts_that_the_run_knew_of_need_no_note(
    tmp_path: Path, config_of: Any, rows: Any, trained: Any
) -> None:
    asked = rows("asked.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(30)))
    named = [f"data.prompts=[{asked}]", f"data.test_prompts=[{asked.rename(tmp_path / 'tested.jsonl')}]"]
    rows("asked.jsonl", *({"prompt": f"why {k}?", "domain": "math"} for k in range(20, 60)))
    trained(*named)
    for seed in ("seed=1", "seed=2"):
        held_out = HeldOut.of(config_of(*named, seed))
        assert len(held_out.prompts) == 30
        assert not [note for note in held_out.notes if "test prompts" in note]


def test_a_sampled_pair_is_known_again_behind_the_policys_system_turn(
    tmp_path: Path, config_of: Any, rows: Any, trained: Any
) -> None:
    trained("sampling.system_prompt=Short.")
    asked = [{"role": "system", "content": "Short."}, {"role": "user", "content": "why?"}]
    (tmp_path / "rounds" / "0").mkdir(parents=True)
    rows("rounds/0/collected.jsonl", {"prompt": asked, "chosen": "so", "rejected": "no", "domain": "math"})
    tested = rows("tested.jsonl", {"prompt": "Why?", "chosen": "so", "rejected": "no", "domain": "math"})
    held_out = HeldOut.of(config_of(f"data.test_preferences=[{tested}]"))
    told = "1 of 1 test prompts stand in the training pairs: the model has learnt from them"
    assert told in held_out.notes
    assert "why?" not in {pair.chosen[-2]["content"] for pair in held_out.training}
