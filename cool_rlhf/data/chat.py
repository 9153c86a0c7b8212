"""ChatML as InternLM2 speaks it, for the policy and for the reward model.

A dialogue reads ``<s><|im_start|>ROLE\\nTEXT<|im_end|>\\n…``. The policy sees the dialogue alone. The reward model
sees it behind its condition and with one reward token at the very end, where its score is read. How a turn is
written, and why no text can forge one, stands in ``cool_rlhf.models.internlm2.chatml_internlm2``, which travels with
checkpoints; it is imported late because its package brings torch along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from cool_rlhf.protocols import Message, UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from cool_rlhf.models.internlm2.chatml_internlm2 import Piece

BOS = "<s>"
TURN_END = "<|im_end|>"
REWARD = "<|reward|>"


def render_turns(messages: Sequence[Message]) -> str:
    """The turns alone, each closed, without ``<s>``."""
    return _text(_turns(messages))


def reward_text(messages: Sequence[Message], condition_prompt: str | None, finished: bool = True) -> str:
    """What the reward model reads of a dialogue that ends in the assistant's turn.

    The condition is a system turn of its own in front of everything, also of the dialogue's own system turn; an empty
    condition or None adds nothing. A response that hit the token limit (``finished`` False) is left open: closed, it
    would look finished to the reward model.
    """
    return f"{BOS}{_text(_condition_turn(condition_prompt))}{_text(_judged_turns(messages, finished))}{REWARD}"


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a special token. Raises UserError for a tokenizer that does not have it."""
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int) or found == tokenizer.unk_token_id:
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no token {token}: use an InternLM2 tokenizer")
    return found


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Ids of the dialogue up to where the assistant begins to speak."""
    tokens = _bos(tokenizer)
    for piece, _ in _pieces(messages, open_turn=True):
        tokens += _ids(tokenizer, piece)
    return tokens


def decode_response(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], finished: bool, stop_text: str | None = None
) -> str:
    """What the assistant said in the ids of a response, without what ended it: ``stop_text`` or else, where it is
    ``finished``, the last token.

    Special tokens before that are spelt out. They were said, so whoever judges must see them: left out, a call of a
    tool would lose its marks, and a stray token would cost nothing.
    """
    if stop_text is not None:
        return str(tokenizer.decode(tokens)).partition(stop_text)[0]
    return str(tokenizer.decode(tokens[:-1] if finished else tokens))


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[Tensor, Tensor]:
    """Ids (L,) int64 of a whole dialogue, and a mask (L,) bool, True on what the assistant says and closes, but for
    turns of weight 0.

    What the assistant says is tokenised apart from what stands before it, as it is when the assistant generates it.
    """
    import torch

    tokens = _bos(tokenizer)
    mask = [False] * len(tokens)
    for piece, learnt in _pieces(messages, open_turn=False):
        ids = _ids(tokenizer, piece)
        tokens += ids
        mask += [learnt] * len(ids)
    return torch.tensor(tokens, dtype=torch.int64), torch.tensor(mask, dtype=torch.bool)


def encode_reward(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    condition_prompt: str | None,
    finished: bool,
    max_length: int,
) -> Tensor:
    """Ids (L,) int64 of ``reward_text``, L <= max_length, with exactly one reward token, the last.

    A dialogue that is too long loses its beginning: the condition and the response are what the score is about.
    """
    import torch

    reward, room = token_id(tokenizer, REWARD), dialogue_room(tokenizer, condition_prompt, max_length)
    tokens = _ids(tokenizer, _judged_turns(messages, finished))
    kept = tokens[max(0, len(tokens) - room) :]
    return torch.tensor([*_head(tokenizer, condition_prompt), *kept, reward], dtype=torch.int64)


def dialogue_room(tokenizer: PreTrainedTokenizerBase, condition_prompt: str | None, max_length: int) -> int:
    """Tokens that ``encode_reward`` may take of a dialogue: of ``max_length`` those that neither what stands before it
    nor the reward token needs. Raises UserError where there are none."""
    head = len(_head(tokenizer, condition_prompt))
    room = max_length - head - 1
    if room < 1:
        raise UserError(
            f"the condition's own turn takes {head} tokens, which leaves no room for a dialogue in {max_length}: "
            "write a shorter prompt for it or raise the maximal length"
        )
    return room


def _turns(messages: Sequence[Message]) -> list[Piece]:
    from cool_rlhf.models.internlm2.chatml_internlm2 import turn_pieces

    return [piece for turn in messages for piece in turn_pieces(turn)]


_heads: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str | None, int], list[int]]] = WeakKeyDictionary()


def _head(tokenizer: PreTrainedTokenizerBase, condition_prompt: str | None) -> list[int]:
    """Ids of what stands before a judged dialogue: the same few before all of them, so each is made once, and again
    when the tokenizer has grown."""
    known, key = _heads.setdefault(tokenizer, {}), (condition_prompt, len(tokenizer))
    if key not in known:
        known[key] = _bos(tokenizer) + _ids(tokenizer, _condition_turn(condition_prompt))
    return known[key]


def _condition_turn(condition_prompt: str | None) -> list[Piece]:
    return _turns([Message(role="system", content=condition_prompt)]) if condition_prompt else []


def _judged_turns(messages: Sequence[Message], finished: bool) -> list[Piece]:
    """All turns; of an unfinished one without its closing, which is a token and a line break."""
    turns = _turns(messages)
    return turns if finished else turns[:-2]


def _pieces(messages: Sequence[Message], open_turn: bool) -> Iterator[tuple[list[Piece], bool]]:
    """The dialogue in the parts that are tokenised apart: (pieces, whether the assistant says them and is to learn it).

    Prompts and chats are cut alike, so a prompt's ids are a prefix of the ids of every chat that continues it.
    """
    from cool_rlhf.models.internlm2.chatml_internlm2 import content_pieces, turn_head

    speak = turn_head({"role": "assistant"})
    between: list[Piece] = []
    for turn in messages:
        if turn["role"] != "assistant":
            between += _turns([turn])
            continue
        yield between + speak, False
        yield [*content_pieces(turn), (TURN_END, True)], turn.get("weight") != 0
        between = [("\n", False)]
    if open_turn:
        yield between + speak, False
    elif between:
        yield between, False


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(text for text, _ in pieces)


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Other families' tokenizers may have no beginning-of-sequence token; then there is none."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def _ids(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece]) -> list[int]:
    from cool_rlhf.models.internlm2.chatml_internlm2 import encode_pieces

    return encode_pieces(tokenizer, pieces)
