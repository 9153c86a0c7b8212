"""How a condition joins a conversation that has a system turn of its own: one text wherever it is scored."""

from __future__ import annotations

import json

import pytest
import torch

from cool_rlhf.data.chat import reward_text
from cool_rlhf.models.loading import load_tokenizer
from cool_rlhf.ppo.experience import to_score
from cool_rlhf.protocols import PreferencePair, Prompt, Rollout, UserError
from reward import RewardModel
from reward.pairs import encode_pairs
from reward.scoring import CONDITION_JOIN

CONDITIONS = {"helpful": "Prefer what helps.", "default": ""}
ASKED = [{"role": "system", "content": "Be a pirate."}, {"role": "user", "content": "Name a colour."}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Blue, matey"}]
JOINED = (
    "<s><|im_start|>system\nPrefer what helps.<|im_end|>\n<|im_start|>system\nBe a pirate.<|im_end|>\n"
    "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\nBlue, matey<|im_end|>\n<|reward|>"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, reward_checkpoint):
    return reward_checkpoint(tmp_path_factory.mktemp("models") / "reward_model", CONDITIONS)


def test_the_text_is_a_system_turn_of_its_own_in_front():
    assert reward_text(ANSWERED, CONDITIONS["helpful"]) == JOINED


@torch.no_grad()
def test_training_ppo_and_scoring_read_the_same(checkpoint):
    folder, model = checkpoint
    reward_model, tokenizer = RewardModel.from_pretrained(folder), load_tokenizer(folder)
    pair = PreferencePair(ANSWERED, ANSWERED, "helpful", None, True, False)
    (trained,) = encode_pairs(tokenizer, reward_model.conditions, [pair], 512).pairs
    assert trained.chosen.tolist() == tokenizer.encode(JOINED, add_special_tokens=False)
    wanted = [
        float(model.v_head(model.model(input_ids=tokens[None], use_cache=False).last_hidden_state[0, -1]))
        for tokens in (trained.chosen, trained.rejected)
    ]

    asked = Prompt("id", ASKED, "helpful", None)
    nothing = torch.zeros(1)
    rollouts = [Rollout(asked, nothing, nothing, nothing, ended, 0, "Blue, matey") for ended in (True, False)]
    assert reward_model.score_batch([to_score(rollout) for rollout in rollouts]) == pytest.approx(wanted, abs=1e-4)
    assert reward_model.score(ANSWERED, condition="helpful") == pytest.approx(wanted[0], abs=1e-4)
    in_front = [{"role": "system", "content": CONDITIONS["helpful"]}, *ANSWERED]
    assert model.get_score(tokenizer, in_front) == pytest.approx(wanted[0], abs=1e-4)

    assert reward_model.score(ANSWERED) != pytest.approx(wanted[0], abs=1e-3)
    assert reward_model.score(ANSWERED, "default") == pytest.approx(reward_model.score(ANSWERED), abs=1e-4)


def test_the_checkpoint_says_how_its_conditions_join(checkpoint):
    folder, _ = checkpoint
    assert json.loads((folder / "config.json").read_text())["condition_join"] == CONDITION_JOIN
    assert json.loads((folder / "conditions.json").read_text()) == CONDITIONS


def test_a_join_that_is_not_known_is_refused(checkpoint, tmp_path):
    folder, _ = checkpoint
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "condition_join": "appended"}))
    with pytest.raises(UserError, match="'appended'"):
        RewardModel.from_pretrained(tmp_path)
