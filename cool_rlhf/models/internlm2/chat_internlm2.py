"""``chat`` and ``stream_chat`` as on the public model card. Self-contained: this file travels inside checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer, TextStreamer

from .chatml_internlm2 import Piece, encode_pieces, start_ids, turn_head, turn_pieces

META_INSTRUCTION = (
    "You are an AI assistant whose name is InternLM (书生·浦语).\n"
    "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory "
    "(上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user such as "
    "English and 中文."
)

History = list[tuple[str, str]]


class InternLM2Chat:
    """What a causal language model needs to hold a conversation; mixed into it."""

    def build_inputs(
        self,
        tokenizer: PreTrainedTokenizerBase,
        query: str,
        history: Sequence[tuple[str, str]] | None = None,
        meta_instruction: str = "",
    ) -> BatchEncoding:
        """``input_ids`` and ``attention_mask`` (1, L) of the prompt that ends where the assistant is to speak."""
        turns = [("system", meta_instruction)] if meta_instruction else []
        for user, assistant in history or ():
            turns += [("user", user), ("assistant", assistant)]
        turns.append(("user", query))
        pieces: list[Piece] = []
        for role, content in turns:
            pieces += turn_pieces({"role": role, "content": content})
        pieces += turn_head({"role": "assistant"})
        tokens = [*start_ids(tokenizer), *encode_pieces(tokenizer, pieces)]
        ids = torch.tensor([tokens], device=self.device)  # type: ignore[attr-defined]
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    @torch.no_grad()
    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        query: str,
        history: Sequence[tuple[str, str]] | None = None,
        streamer: BaseStreamer | None = None,
        max_new_tokens: int = 1024,
        do_sample: bool = True,
        temperature: float = 0.8,
        top_p: float = 0.8,
        meta_instruction: str = META_INSTRUCTION,
        **kwargs: Any,
    ) -> tuple[str, History]:
        """Answer ``query``; returns the response and the history with this turn added, as on the public model card.

        Args:
            history: earlier (query, response) pairs, oldest first.
            meta_instruction: the system turn; the empty string leaves it out.
            kwargs: passed on to ``generate``.
        """
        earlier = list(history or [])
        inputs = self.build_inputs(tokenizer, query, earlier, meta_instruction)
        end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
        settings: dict[str, Any] = {
            **inputs,
            "streamer": streamer,
            "max_new_tokens": max_new_tokens,
            "do_sample": do_sample,
            "eos_token_id": [tokenizer.eos_token_id, end_of_turn],
            "pad_token_id": tokenizer.pad_token_id,
            **({"temperature": temperature, "top_p": top_p} if do_sample else {}),
            **kwargs,
        }
        output: Tensor = self.generate(**settings)  # type: ignore[attr-defined]
        response = _decode(tokenizer, output[0, inputs["input_ids"].shape[1] :])
        return response, [*earlier, (query, response)]

    def stream_chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        query: str,
        history: Sequence[tuple[str, str]] | None = None,
        max_new_tokens: int = 1024,
        do_sample: bool = True,
        temperature: float = 0.8,
        top_p: float = 0.8,
        **kwargs: Any,
    ) -> Iterator[tuple[str, History]]:
        """As ``chat``, while it is being generated: the response so far, and the history with it, after each new word.

        Generation runs in a thread of its own; it stops soon after the iterator is closed, and what it raises is raised
        here.
        """
        earlier = list(history or [])
        streamer = _Streamer(tokenizer)
        settings = {
            "max_new_tokens": max_new_tokens,
            "do_sample": do_sample,
            "temperature": temperature,
            "top_p": top_p,
            **kwargs,
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([streamer.stop, *kwargs.get("stopping_criteria", ())]),
        }

        outcome: list[str | BaseException] = []

        def work() -> None:
            try:
                outcome.append(self.chat(tokenizer, query, earlier, **settings)[0])
            except BaseException as error:  # raised in the caller's thread
                outcome.append(error)
            finally:
                streamer.words.put(None)

        worker = Thread(target=work, daemon=True)
        worker.start()
        response = ""
        try:
            for words in iter(streamer.words.get, None):
                response += words
                yield response, [*earlier, (query, response)]
        finally:
            streamer.stop.asked.set()
            worker.join()
        (whole,) = outcome
        if isinstance(whole, BaseException):
            raise whole
        if whole != response or not whole:
            yield whole, [*earlier, (query, whole)]


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Tensor) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


class _Stop(StoppingCriteria):
    def __init__(self) -> None:
        self.asked = Event()

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self.asked.is_set(), dtype=torch.bool, device=input_ids.device)


class _Streamer(TextStreamer):
    """Puts new words into a queue. The base class holds back what is not yet a whole word or letter."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        self.words: SimpleQueue[str | None] = SimpleQueue()
        self.stop = _Stop()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.words.put(text)
