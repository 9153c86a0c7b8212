from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cool_rlhf.data.chat import reward_text
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForRewardModel
from cool_rlhf.models.loading import load_tokenizer
from cool_rlhf.protocols import ScoredConversation, UserError
from reward import RewardModel

CONDITIONS = {"helpful": "Prefer what helps.", "brief": "Prefer the shorter.", "plain": ""}


def dialogue(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


DIALOGUES = [
    dialogue("How are you?", "Well."),
    dialogue("What is the sum of two and two?", "Two and two make four, as everybody knows."),
    dialogue("Hi", "Hello there"),
    [{"role": "system", "content": "Be kind."}, *dialogue("Name a colour.", "Blue")],
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    tokenizer = train_tokenizer(["a few words about nothing, and a few more", "two and two"], 300)
    config = InternLM2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        reward_token_id=tokenizer.convert_tokens_to_ids("<|reward|>"),
    )
    torch.manual_seed(0)
    model = InternLM2ForRewardModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("models") / "reward_model"
    save_checkpoint(
        folder,
        model.config,
        model.state_dict().items(),
        tokenizer,
        architecture="InternLM2ForRewardModel",
        conditions=CONDITIONS,
        condition_join="separate_system_turn",
        dtype=torch.float32,
    )
    return folder, model


@pytest.fixture(scope="module")
def reward_model(checkpoint) -> RewardModel:
    return RewardModel.from_pretrained(checkpoint[0])


@torch.no_grad()
def plain_score(checkpoint, conversation, condition=None, finished=True) -> float:
    """One sequence at a time through the model's own parts, from the text that it should read."""
    folder, model = checkpoint
    text = reward_text(conversation, CONDITIONS.get(condition), finished)
    tokens = load_tokenizer(folder).encode(text, add_special_tokens=False, return_tensors="pt")
    return float(model.v_head(model.model(input_ids=tokens, use_cache=False).last_hidden_state[0, -1]))


@pytest.mark.parametrize("condition", [None, "helpful", "brief", "plain"])
def test_scores_are_the_head_at_the_reward_token(checkpoint, reward_model, condition):
    scores = reward_model.scores(DIALOGUES, condition)
    assert scores == pytest.approx([plain_score(checkpoint, d, condition) for d in DIALOGUES], abs=1e-4)
    assert reward_model.score(DIALOGUES[1], condition=condition) == pytest.approx(scores[1], abs=1e-4)


def test_conditions_may_differ_from_one_to_the_next(reward_model):
    conditions = ["brief", None, "helpful", "default"]
    wanted = [reward_model.score(d, c) for d, c in zip(DIALOGUES, conditions, strict=True)]
    assert reward_model.scores(DIALOGUES, conditions=conditions) == pytest.approx(wanted, abs=1e-4)
    assert reward_model.score(DIALOGUES[0], "brief") != pytest.approx(reward_model.score(DIALOGUES[0], "helpful"))


def test_without_a_condition_it_is_the_checkpoints_own_score(checkpoint, reward_model):
    folder, model = checkpoint
    own = model.get_scores(load_tokenizer(folder), DIALOGUES)
    assert reward_model.scores(DIALOGUES) == pytest.approx(own, abs=1e-4)


def test_batching_changes_nothing(checkpoint, reward_model):
    small = RewardModel(
        reward_model.model, reward_model.tokenizer, reward_model.conditions, max_length=512, micro_batch_tokens=20
    )
    assert small.scores(DIALOGUES, "brief") == pytest.approx(reward_model.scores(DIALOGUES, "brief"), abs=1e-4)
    assert small.scores([]) == []


def test_an_unfinished_response_is_not_closed(checkpoint, reward_model):
    (score,) = reward_model.score_batch([ScoredConversation(DIALOGUES[0], "brief", False)])
    assert score == pytest.approx(plain_score(checkpoint, DIALOGUES[0], "brief", finished=False), abs=1e-4)
    assert score != pytest.approx(reward_model.score(DIALOGUES[0], "brief"), abs=1e-3)


def test_compare_and_rank_follow_the_scores(reward_model):
    scores = reward_model.scores(DIALOGUES, "helpful")
    ranks = reward_model.rank(DIALOGUES, condition="helpful")
    assert sorted(ranks) == [0, 1, 2, 3]
    for a in range(4):
        assert ranks[a] == sum(score > scores[a] for score in scores)
        for b in range(4):
            assert reward_model.compare(DIALOGUES[a], DIALOGUES[b], condition="helpful") is (scores[a] > scores[b])


def test_among_equals_the_earlier_ranks_first(reward_model):
    assert reward_model.rank([DIALOGUES[0], DIALOGUES[0]]) == [0, 1]


def test_an_unknown_condition_names_the_nearest(reward_model):
    with pytest.raises(UserError, match="helpful"):
        reward_model.score(DIALOGUES[0], condition="helpfull")


def test_too_few_conditions_are_refused(reward_model):
    with pytest.raises(ValueError, match="1 conditions for 4"):
        reward_model.scores(DIALOGUES, conditions=["brief"])


def test_bfloat16_keeps_the_head_in_float32(checkpoint, reward_model):
    half = RewardModel.from_pretrained(checkpoint[0], device="cpu", dtype=torch.bfloat16)
    assert half.model.v_head.weight.dtype == torch.float32
    assert half.model.model.norm.weight.dtype == torch.bfloat16
    assert half.scores(DIALOGUES) == pytest.approx(reward_model.scores(DIALOGUES), abs=0.3)


def test_losses_and_conditions_import_without_transformers_or_a_cluster():
    code = (
        "import sys, reward.losses, reward.conditions;"
        "print([m for m in ('transformers', 'vllm', 'ray', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
