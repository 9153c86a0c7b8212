from __future__ import annotations

import pytest
import torch

from cool_rlhf.config import SFTConfig
from cool_rlhf.protocols import UserError
from cool_rlhf.sft import EncodedChat, count_targets, encode_chats, sft_update, train_sft


@pytest.fixture
def chats() -> list[EncodedChat]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for length, spoken in ((9, [3, 4, 5]), (14, [2, 3, 9, 10, 11]), (5, [4]), (7, [0, 1, 6])):
        mask = torch.zeros(length, dtype=torch.bool)
        mask[spoken] = True
        made.append(EncodedChat(torch.randint(0, 40, (length,), generator=generator), mask))
    return made


CUTS = [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[3, 1], [], [0, 2], []]]


@pytest.mark.parametrize("cut", CUTS)
def test_gradient_is_that_of_the_mean_over_assistant_tokens(tiny_causal_lm, torch_engine, chats, cut):
    model = tiny_causal_lm(1)
    losses = []
    for chat in chats:
        logprobs = model(input_ids=chat.tokens[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        losses += [-logprobs[t - 1, chat.tokens[t]] for t in range(1, len(chat.tokens)) if chat.mask[t]]
    assert len(losses) == count_targets(chats) == 11  # 3 + 5 + 1 + 2: nothing predicts a first token
    mean = torch.stack(losses).mean()
    mean.backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()

    engine = torch_engine(model)
    parts = [[chats[index] for index in part] for part in cut]
    shares = sft_update(engine, parts, token_count=count_targets(chats), learning_rate=0.0)
    assert (engine.gradient - wanted).norm() <= 1e-5 * wanted.norm()
    assert shares["loss/sft"] == pytest.approx(mean.item(), rel=1e-5)


def test_what_the_user_says_is_not_learned(tiny_causal_lm, torch_engine, chats):
    gradients = []
    for last in (7, 23):
        # The chat's last token is the user's: it is neither a target nor what a target follows from.
        tokens = chats[0].tokens.clone()
        tokens[-1] = last
        engine = torch_engine(tiny_causal_lm(1))
        sft_update(engine, [[EncodedChat(tokens, chats[0].mask)]], token_count=3, learning_rate=0.0)
        gradients.append(engine.gradient)
    assert torch.equal(*gradients)


def numbered(lengths: list[int]) -> list[EncodedChat]:
    return [EncodedChat(torch.full((n,), k), torch.ones(n, dtype=torch.bool)) for k, n in enumerate(lengths)]


def test_every_epoch_sees_every_chat_once_within_the_budget(recording_trainer):
    chats = numbered([5, 9, 3, 8, 2, 7, 20, 4])
    settings = SFTConfig(epochs=2, batch_tokens=16, learning_rate=1e-3, final_learning_rate=1e-4, warmup_fraction=0.2)
    trainer = recording_trainer()
    train_sft(trainer, chats, settings, seed=3, observer=trainer)
    batches = [[int(chat.tokens[0]) for chat in batch] for batch in trainer.batches]
    seen = [index for batch in batches for index in batch]
    assert sorted(seen[:8]) == sorted(seen[8:]) == list(range(8))
    assert seen[:8] != seen[8:]
    for batch in batches:
        assert sum(len(chats[index].tokens) for index in batch) <= 16 or batch == [6]
    assert trainer.rates[-1] == pytest.approx(1e-4)
    assert max(trainer.rates) == pytest.approx(1e-3)
    assert trainer.rates[0] < max(trainer.rates)
    assert [row[0] for row in trainer.rows] == list(range(1, len(batches) + 1))
    assert {row[1] for row in trainer.rows} == {len(batches)}


def test_a_resumed_training_goes_on_as_it_would_have(recording_trainer):
    chats, settings = numbered([5, 9, 3, 8, 2, 7]), SFTConfig(epochs=2, batch_tokens=10)
    whole, rest = recording_trainer(), recording_trainer()
    train_sft(whole, chats, settings, seed=3, observer=whole)
    train_sft(rest, chats, settings, seed=3, observer=rest, start=4)
    assert [list(map(id, batch)) for batch in rest.batches] == [list(map(id, batch)) for batch in whole.batches[4:]]
    assert rest.rows == whole.rows[4:]
    assert rest.rates == whole.rates[4:]


@pytest.fixture
def dialogues(monkeypatch: pytest.MonkeyPatch):
    """Makes chats of 10 tokens, of which the assistant says those from ``begin`` on."""

    def encode(tokenizer, messages):
        mask = torch.zeros(10, dtype=torch.bool)
        mask[int(messages[0]["content"]) :] = True
        return torch.arange(10), mask

    monkeypatch.setattr("cool_rlhf.sft.encode_chat", encode)
    return lambda *begins: [[{"role": "user", "content": str(begin)}] for begin in begins]


def test_chats_are_cut_and_those_without_an_answer_left_out_and_counted(dialogues, caplog):
    encoded = encode_chats(None, dialogues(2, 5, 6, 8), max_length=6)
    assert [chat.mask.tolist() for chat in encoded] == [[False, False, True, True, True, True], [False] * 5 + [True]]
    assert all(chat.tokens.tolist() == list(range(6)) for chat in encoded)
    assert "leaves out 2 of 4 chats" in caplog.text
    caplog.clear()
    assert len(encode_chats(None, dialogues(2, 5), max_length=6)) == 2
    assert caplog.text == ""


def test_without_a_chat_left_nothing_is_trained(dialogues):
    with pytest.raises(UserError, match=r"within the first 6 tokens \(sft.max_length"):
        encode_chats(None, dialogues(6, 8), max_length=6)
