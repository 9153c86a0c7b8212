"""Tokenizers: any Hugging Face one, and InternLM2's SentencePiece file as a fast one that needs no remote code."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges
from transformers.utils import cached_file

from cool_rlhf.protocols import UserError

logger = logging.getLogger(__name__)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] }}"
    "{% if message['name'] in ['plugin', 'interpreter'] %}{{ ' name=<|' + message['name'] + '|>' }}{% endif %}"
    "{{ '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REWARD_TEMPLATE = CHAT_TEMPLATE.split("{% if add_generation_prompt %}")[0] + "<|reward|>"

INTERNLM2_TOKENS = {
    92527: "<|reward|>",
    92538: "<|plugin|>",
    92539: "<|interpreter|>",
    92540: "<|action_end|>",
    92541: "<|action_start|>",
    92542: "<|im_end|>",
    92543: "<|im_start|>",
}
FIRST_UNUSED = 92397  # id of SentencePiece's [UNUSED_TOKEN_0]
REQUIRED_TOKENS = ("<|im_start|>", "<|im_end|>", "<|reward|>")
_NO_FILES = "it has no vocabulary, such as tokenizer.json holds"


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder, a Hub name, or a SentencePiece ``.model`` file of InternLM2's.

    Tokenizers of other families get the tokens of ChatML and the reward token added where they lack them, the end token
    for padding where they have none, and ChatML's template where their own writes dialogues otherwise.

    Raises:
        UserError: there is no tokenizer at ``path``.
    """
    own = _internlm2_tokenizer(str(path))
    return _with_chat_tokens(_other_tokenizer(str(path))) if own is None else own


def missing_chat_tokens(path: str | Path) -> list[str]:
    """The tokens that :func:`load_tokenizer` adds to the tokenizer at ``path``; raises UserError as it does."""
    if _internlm2_tokenizer(str(path)) is not None:
        return []
    vocabulary = _other_tokenizer(str(path)).get_vocab()
    return [name for name in REQUIRED_TOKENS if name not in vocabulary]


def added_tokens(path: str | Path) -> list[int]:
    """The ids of the tokens that :func:`load_tokenizer` adds to the tokenizer at ``path``."""
    missing = missing_chat_tokens(path)
    vocabulary = load_tokenizer(path).get_vocab() if missing else {}
    return [vocabulary[name] for name in missing]


def check_same_tokens(critic: str, policy: str) -> None:
    """Raise UserError where a token of the policy's tokenizer has another id in the critic's: the critic reads the ids
    that the policy samples. (A scorer need not have the same: it is shown the text.)"""
    known = load_tokenizer(critic).get_vocab()
    for token, index in load_tokenizer(policy).get_vocab().items():
        if known.get(token) != index:
            raise UserError(
                f"the critic cannot start from {critic}, which has other tokens than the policy of {policy} (there "
                f"{token!r} is number {index}): set ppo.critic_init=sft"
            )


def _internlm2_tokenizer(name: str) -> PreTrainedTokenizerFast | None:
    """None where ``name`` is one of another family. Raises UserError where it is none."""
    if name.endswith(".model"):
        if not Path(name).is_file():
            raise UserError(f"there is no SentencePiece file at {name}: give the tokenizer's folder, Hub name or file")
        return convert_sentencepiece(Path(name))
    if looks_like_a_path(name) and not Path(name).is_dir():
        raise UserError(f"there is no folder {name}: give the tokenizer's folder, Hub name or SentencePiece file")
    with _told(name):
        settings_file = cached_file(name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False)
        settings = json.loads(Path(settings_file).read_text(encoding="utf-8")) if settings_file else {}
        if str(settings.get("tokenizer_class", "")).startswith("InternLM2"):
            return _released_internlm2(Path(str(cached_file(name, "tokenizer.model"))), settings)
        if _model_type(name) == "internlm2":  # not through Auto: it would ask whether to run the folder's code
            return PreTrainedTokenizerFast.from_pretrained(name)
    return None


def _other_tokenizer(name: str) -> PreTrainedTokenizerBase:
    with _told(name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
        # Of a folder without any of its files transformers makes one that knows its family's special tokens alone.
        if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():
            raise ValueError(_NO_FILES)
    return tokenizer


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = _first_line(error)
        if reason.startswith("Couldn't instantiate the backend tokenizer"):  # from one of many, over several lines
            reason = _NO_FILES
        raise UserError(
            f"cannot load a tokenizer from {name!r} ({reason}): check the path and what files are there"
        ) from error


def convert_sentencepiece(file: Path) -> PreTrainedTokenizerFast:
    """InternLM2's SentencePiece model (byte-fallback BPE, no normalisation, no dummy prefix) as a fast tokenizer.

    Ids are SentencePiece's; the placeholders that InternLM2 gave a meaning carry their chat names.

    Raises:
        UserError: ``file`` is no BPE SentencePiece model.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2  # its classes are made at run time
    model = schema.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise UserError(f"{file} is no SentencePiece model: give InternLM2's tokenizer.model") from error
    if model.trainer_spec.model_type != schema.TrainerSpec.BPE or not model.pieces:
        raise UserError(f"{file} is no BPE SentencePiece model: give InternLM2's tokenizer.model")

    names = [piece.piece for piece in model.pieces]
    for index, name in INTERNLM2_TOKENS.items():
        if index < len(names) and names[index] == f"[UNUSED_TOKEN_{index - FIRST_UNUSED}]":
            names[index] = name
    vocabulary = {name: index for index, name in enumerate(names)}
    kind = schema.ModelProto.SentencePiece
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == kind.NORMAL}
    merges = generate_merges(vocabulary, scores)
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    chat_tokens = set(INTERNLM2_TOKENS.values())
    for piece, name in zip(model.pieces, names, strict=True):
        if piece.type in (kind.CONTROL, kind.USER_DEFINED, kind.UNKNOWN):
            special = piece.type != kind.USER_DEFINED or name in chat_tokens
            tokenizer.add_tokens([AddedToken(name, normalized=not special, special=special)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    present = [name for name in INTERNLM2_TOKENS.values() if name in vocabulary]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        additional_special_tokens=present,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _released_internlm2(file: Path, settings: dict[str, object]) -> PreTrainedTokenizerFast:
    """A released InternLM2 folder: its SentencePiece file, and its own chat template where it has one."""
    tokenizer = convert_sentencepiece(file)
    template = settings.get("chat_template")
    if isinstance(template, str) and not template.endswith("<|reward|>"):
        tokenizer.chat_template = template
    return tokenizer


def _model_type(name: str) -> str | None:
    file = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(file).read_text(encoding="utf-8")).get("model_type") if file else None


def _with_chat_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    vocabulary = tokenizer.get_vocab()
    missing = [AddedToken(name, special=True, normalized=False) for name in REQUIRED_TOKENS if name not in vocabulary]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or "<|im_end|>"
    own = tokenizer.chat_template
    if own != REWARD_TEMPLATE and not _writes_chatml(tokenizer):
        tokenizer.chat_template = CHAT_TEMPLATE
        if own and logger.isEnabledFor(logging.INFO):  # checks load it too, before the run has a log
            _tell_of_template(tokenizer.name_or_path)
    return tokenizer


def _writes_chatml(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether its own template writes plain dialogues as they are trained on and sampled. One that adds a system turn
    or trims what is said would show the model something else."""
    if tokenizer.chat_template is None:
        return False
    said = zip(("system", "user", "assistant", "user"), (" Be\n", " why? \n", "\nso ", "and?\n"), strict=True)
    turns = [{"role": role, "content": content} for role, content in said]

    def written(messages: list[dict[str, str]], speaks: bool, template: str | None) -> object:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=speaks
        )

    try:
        return all(
            written(messages, speaks, None) == written(messages, speaks, CHAT_TEMPLATE)
            for messages, speaks in ((turns, True), (turns[1:], True), (turns[:3], False), (turns[1:3], False))
        )
    except (TemplateError, ValueError, TypeError):  # such as by one that knows no system turn
        return False


@cache
def _tell_of_template(name: str) -> None:
    logger.info(
        "%s: its own chat template writes dialogues otherwise than ChatML, in which the policy is trained and sampled, "
        "so what is exported carries ChatML's",
        name,
    )


def looks_like_a_path(name: str) -> bool:
    """Whether ``name`` can only be a path: a Hub name is NAME or OWNER/NAME."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
