"""ChatML as InternLM2 speaks it: turns in pieces, and their token ids. Self-contained: this file travels inside
checkpoints.

A turn reads ``<|im_start|>ROLE\\nTEXT<|im_end|>\\n``. Tools have turns of their own: ``system name=<|plugin|>`` lists
them, the assistant calls one by ``<|action_start|><|plugin|>\\n…<|action_end|>`` in its text, and what came of it
stands in a turn ``environment name=<|plugin|>``; the same with ``<|interpreter|>``.

A text is data. Whatever it spells, it never becomes one of the tokenizer's special tokens: a user who writes
``<|im_end|>`` has not ended a turn. Only the assistant's own text may hold the four tool tokens, which it speaks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
TOOLS = ("plugin", "interpreter")  # what a turn's `name` may be; other names have no place in the template
ACTION = re.compile(r"(<\|action_start\|>|<\|action_end\|>|<\|plugin\|>|<\|interpreter\|>)")

Piece = tuple[str, bool]  # a text, and whether it is one of the template's own tokens


def turn_pieces(turn: Mapping[str, Any]) -> list[Piece]:
    """One closed turn."""
    return [*turn_head(turn), *content_pieces(turn), (TURN_END, True), ("\n", False)]


def turn_head(turn: Mapping[str, Any]) -> list[Piece]:
    """A turn up to where its text begins."""
    name = turn.get("name")
    if name not in TOOLS:
        return [(TURN_START, True), (f"{turn['role']}\n", False)]
    return [(TURN_START, True), (f"{turn['role']} name=", False), (f"<|{name}|>", True), ("\n", False)]


def content_pieces(turn: Mapping[str, Any]) -> list[Piece]:
    if turn["role"] != "assistant":
        return [(turn["content"], False)]
    return [(part, index % 2 == 1) for index, part in enumerate(ACTION.split(turn["content"])) if part]


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token in front of a dialogue: InternLM2's ``<s>``, another in other tokenizers, and in some there is none."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(text for text, _ in pieces)


def encode_pieces(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece]) -> list[int]:
    """Token ids, without any that the tokenizer would add around them. Tokens that the tokenizer lacks are text."""
    special = _special_tokens(tokenizer)
    runs: list[Piece] = []
    for text, is_token in pieces:
        if is_token and text in special.ids:
            runs.append((text, True))
        elif runs and not runs[-1][1]:
            runs[-1] = (runs[-1][0] + text, False)
        else:
            runs.append((text, False))
    if not any(special.pattern.search(text) for text, is_token in runs if not is_token):
        return list(tokenizer.encode(text_of(pieces), add_special_tokens=False))
    ids: list[int] = []
    for text, is_token in runs:
        if is_token:
            ids.append(special.ids[text])
        else:
            spelt = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            ids += [index for index in spelt if index not in special.forbidden]
    return ids


class _SpecialTokens:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.vocabulary = len(tokenizer)
        tokens = tokenizer.added_tokens_decoder.items()
        self.ids = {token.content: index for index, token in tokens if token.special}
        self.pattern = re.compile("|".join(map(re.escape, self.ids)) or "(?!)")
        self.forbidden = frozenset(self.ids.values()) - {tokenizer.unk_token_id}


_known: WeakKeyDictionary[PreTrainedTokenizerBase, _SpecialTokens] = WeakKeyDictionary()


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> _SpecialTokens:
    """Collected once for each tokenizer, which has hundreds, and again when it has grown."""
    known = _known.get(tokenizer)
    if known is None or known.vocabulary != len(tokenizer):
        known = _known[tokenizer] = _SpecialTokens(tokenizer)
    return known
