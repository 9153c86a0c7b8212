"""What each stage learns from, in tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cool_rlhf.config import Config
from cool_rlhf.data.chat import encode_prompt
from cool_rlhf.data.loading import Reading, load_preferences
from cool_rlhf.data.preferences import PreferenceSplit, split_pairs
from cool_rlhf.data.room import may_fill
from cool_rlhf.data.splitting import spread
from cool_rlhf.data.streams import TextStream
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.derived_settings import learns_from_texts, validation_share
from cool_rlhf.files import write_atomically
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.internlm2.chatml_internlm2 import encode_pieces
from cool_rlhf.models.loading import fresh_causal_lm, load_tokenizer
from cool_rlhf.ppo.collaborators import Data
from cool_rlhf.preflight import required_kinds
from cool_rlhf.protocols import PreferencePair, Prompt, Rollout, UserError
from cool_rlhf.provenance import outputs
from cool_rlhf.schedule import derive_seed
from cool_rlhf.sft import EncodedChat, encode_chats
from cool_rlhf.stages.inputs import Inputs


@dataclass(frozen=True)
class StageData:
    """The run's rows as the stages take them."""

    config: Config
    inputs: Inputs

    def chats(self, tokenizer: PreTrainedTokenizerBase, longest: int) -> list[EncodedChat]:
        """Those of SFT, in at most ``longest`` tokens each. Fresh weights have read nothing: they learn the run's plain
        texts beside its chats."""
        chats = encode_chats(tokenizer, (chat["messages"] for chat in self.inputs.chats), longest)
        if self.config.model.path is None:
            texts = self._texts(tokenizer, longest)
            chats += [EncodedChat(text, torch.ones_like(text, dtype=torch.bool)) for text in texts]
        return chats

    def preferences(self) -> PreferenceSplit:
        """The given pairs, and those among the SFT model's samples."""
        given, collected = self.inputs.preference_split, outputs(self.config)["collect"]
        if self.config.collect.prompts == 0 or collected.stat().st_size == 0:  # every pair may have been a tie
            return given
        reading = Reading.of(self.config, sampled=True)
        sampled = load_preferences([str(collected)], reading)
        return given.joined(split_pairs(sampled, validation_share(self.config), given.held, reading.system))

    def ppo(self, tokenizer: PreTrainedTokenizerBase, longest: int, round: int) -> Data:
        """What a round reads. Raises UserError for a prompt that leaves no room for a response in ``longest`` tokens:
        it would be met in the middle of the round."""
        config, inputs = self.config, self.inputs
        check_room(tokenizer, chain(inputs.prompts, inputs.validation), longest)
        piece = min(config.sft.max_length, longest)
        texts = self._texts(tokenizer, piece) if learns_from_texts(config.ppo) else []
        return Data(
            prompts=inputs.prompt_stream(derive_seed(config.seed, "prompts", round)),
            pretrain=TextStream(texts, derive_seed(config.seed, "pretrain", round)),
            validation=inputs.validation,
            gold=self._exact_gold,
            recipes=inputs.recipes,
            held_out_texts=self._held_out_texts(tokenizer, piece),
            instructions=inputs.instructions,
        )

    def fresh_base(self, folder: Path) -> str:
        """Random weights of the configured shape in ``folder``, with a tokenizer of its own or trained on the run's
        texts. Raises UserError for a prompt that leaves no room for a response."""
        model = self.config.model
        if model.tokenizer is not None:
            tokenizer = load_tokenizer(model.tokenizer)
        else:
            tokenizer = train_tokenizer(self.inputs.texts(), model.vocab_size)
            if "prompts" in required_kinds(self.config):  # until now some could only be told from their words
                check_room(tokenizer, chain(self.inputs.prompts, self.inputs.validation), model.max_positions)
        fresh = fresh_causal_lm(model, tokenizer, derive_seed(self.config.seed, "weights"))
        save_checkpoint(
            folder,
            fresh.config,
            fresh.named_parameters(),
            tokenizer,
            architecture=type(fresh).__name__,
            dtype=getattr(torch, model.dtype),
        )
        return str(folder)

    def _exact_gold(self, rollout: Rollout) -> float | None:
        return self.inputs.world_score(rollout.prompt, rollout.response, rollout.finished)

    def _texts(self, tokenizer: PreTrainedTokenizerBase, length: int) -> list[Tensor]:
        return [piece for text in self.inputs.pretrain for piece in encode_text(tokenizer, text, length)]

    def _held_out_texts(self, tokenizer: PreTrainedTokenizerBase, length: int) -> list[Tensor]:
        """The beginnings of those that validation reads, of all sources alike, and of them those long enough to predict
        a token of."""
        count = self.config.ppo.validation_texts
        texts = spread(self.inputs.held_out_texts, count) if count else []
        return [piece for text in texts for piece in encode_text(tokenizer, text, length)[:1]]


def check_room(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt], longest: int) -> None:
    """Raise UserError where a prompt leaves no room for a response in ``longest`` tokens."""
    long = {prompt.id: prompt.messages for prompt in prompts if may_fill(prompt.messages, longest)}
    lengths = ((messages[-1]["content"], len(encode_prompt(tokenizer, messages))) for messages in long.values())
    full = [(text, length) for text, length in lengths if length >= longest]
    if full:
        text, length = full[0]
        others = f" (it is one of {len(full)} such prompts)" if len(full) > 1 else ""
        raise UserError(
            f"the prompt that begins with {text[:60]!r} has {length} tokens, which leaves no room for a response in "
            f"the model's {longest}{others}: drop it or raise model.max_positions"
        )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> list[Tensor]:
    """A pretraining text in tokens, from the beginning-of-sequence token on, in consecutive pieces. It spells special
    tokens, but holds none.

    Returns: (L,) int32 with 2 <= L <= max_length each, since a single token has nothing to predict: half of int64, as
    these are the most tokens that a run holds.
    """
    start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    tokens = torch.tensor(start + encode_pieces(tokenizer, [(text, False)]), dtype=torch.int32)
    return [piece for piece in tokens.split(max_length) if len(piece) >= 2]


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    """Preference rows as JSON lines, as :meth:`StageData.preferences` reads those of ``collect``."""
    write_atomically(path, "".join(f"{json.dumps(preference_row(pair))}\n" for pair in pairs).encode())


def preference_row(pair: PreferencePair) -> dict[str, Any]:
    row = {**asdict(pair), "prompt": pair.chosen[:-1], "chosen": pair.chosen[-1:], "rejected": pair.rejected[-1:]}
    return {name: value for name, value in row.items() if value is not None}
