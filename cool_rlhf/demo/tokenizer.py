"""A small byte-level BPE tokenizer with InternLM2's special tokens and chat template."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, repeat

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cool_rlhf.models.tokenizer import CHAT_TEMPLATE
from cool_rlhf.protocols import UserError

FIRST_TOKENS = ("<unk>", "<s>", "</s>")
ROLE_WEIGHT = 10_000  # how often the role names count as seen, so that each becomes one token
LAST_TOKENS = (
    "<|plugin|>",
    "<|interpreter|>",
    "<|action_end|>",
    "<|action_start|>",
    "<|im_end|>",
    "<|im_start|>",
    "<|reward|>",
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt on ``texts``: ``<unk>`` 0, ``<s>`` 1, ``</s>`` 2 (end and padding), bytes, merges, and
    InternLM2's chat tokens at the end. At most ``vocab_size`` tokens; fewer where the texts have no more merges.

    Deterministic in the order-free content of ``texts``. Every text survives a round trip. As InternLM2's own, it puts
    ``<s>`` in front unless told ``add_special_tokens=False``.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(FIRST_TOKENS) + len(alphabet) + len(LAST_TOKENS)
    if vocab_size < least:
        raise UserError(f"model.vocab_size is {vocab_size}, but a byte-level tokenizer needs at least {least} tokens")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(LAST_TOKENS),
        special_tokens=list(FIRST_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    roles = repeat("\n".join(("system", "user", "assistant")), ROLE_WEIGHT)
    tokenizer.train_from_iterator(chain(texts, roles), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return with_chat_tokens(tokenizer)


def with_chat_tokens(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer that has ``FIRST_TOKENS``, with ``LAST_TOKENS`` at its end and the chat template."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LAST_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=list(LAST_TOKENS),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
