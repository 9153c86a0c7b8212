"""Models from checkpoints or fresh: causal language models, and models with one float32 number per token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging

from cool_rlhf.config import ModelConfig
from cool_rlhf.data.chat import REWARD, token_id
from cool_rlhf.models import attention
from cool_rlhf.models.fields import is_scalar
from cool_rlhf.models.internlm2 import InternLM2Config, InternLM2ForCausalLM, InternLM2ForRewardModel
from cool_rlhf.models.linear import use_onednn
from cool_rlhf.models.rotary import keep_rotary_float32
from cool_rlhf.models.stored import damage_told, stored_weights
from cool_rlhf.models.tokenizer import load_tokenizer, looks_like_a_path, missing_chat_tokens
from cool_rlhf.protocols import UserError

__all__ = [
    "check_parameters",
    "check_scalar_head",
    "check_speaks",
    "check_vocabulary",
    "checkpoint_folder",
    "fresh_causal_lm",
    "has_scalar_head",
    "load_causal_lm",
    "load_scalar_model",
    "load_tokenizer",
    "longest_sequence",
    "read_config",
    "scalar_head",
    "stored_weights",
]

# Of weights, in repositories of the Hub.
OTHER_FORMATS = ["*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "original/*"]
_DROPOUT = re.compile(r"dropout(_prob|_rate)?$|pdrop$|layerdrop$")  # what families call the share of units they drop


def load_causal_lm(path: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model from a folder or Hub name, with packed attention.

    InternLM2 checkpoints, released or ours, load into the native class; others into transformers' own. Where the
    family's vocabulary lacks the chat tokens that ``load_tokenizer`` adds, the embedding grows by them.

    Raises:
        UserError: there is no checkpoint at ``path``, it is no causal language model, or weights are missing.
    """
    name = str(path)
    config = read_config(name)
    if is_scalar(config.architectures):
        raise UserError(f"{name} holds a reward model, where a causal language model is asked for: check the path")
    loader = InternLM2ForCausalLM if isinstance(config, InternLM2Config) else AutoModelForCausalLM
    model = _load(loader, name, config, dtype, may_miss=())
    return _grow_vocabulary(model, name)


def fresh_causal_lm(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> InternLM2ForCausalLM:
    """An InternLM2 of the configured shape and dtype with weights drawn from ``seed``."""
    shape = InternLM2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        reward_token_id=token_id(tokenizer, REWARD),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternLM2ForCausalLM(shape)
    model.set_attn_implementation(attention.NAME)
    return model.to(getattr(torch, config.dtype))


def load_scalar_model(
    path: str | Path, dtype: torch.dtype, *, head: Literal["keep", "fresh"], seed: int
) -> PreTrainedModel:
    """A model with one number per token: a reward model or critic, from a causal LM's or a reward model's checkpoint.

    The head is linear, without bias, and float32 whatever ``dtype``. A fresh one is drawn from N(0, 1/(hidden + 1))
    (Stiennon et al. 2020, appendix B.1), so that scores start with a spread of about one.

    Raises:
        UserError: there is no checkpoint at ``path``, weights are missing, the head to keep is not there, or it was
            trained on another chat format.
    """
    name = str(path)
    config = read_config(name)
    if head == "keep" and not is_scalar(config.architectures):
        raise UserError(f"{name} holds no reward model whose head could be kept: give a reward model's checkpoint")
    if head == "keep":
        _check_reads_chats(name, config)
    model = _load(_scalar_class(name, config), name, config, dtype, may_miss=() if head == "keep" else ("head",))
    model = _grow_vocabulary(model, name)
    try:
        layer = scalar_head(model)
    except TypeError as error:
        raise UserError(f"{name} cannot be a reward model here ({error}): give one of another family") from error
    layer.float()
    if head == "fresh":
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(layer.weight.shape, generator=generator) / (layer.weight.shape[1] + 1) ** 0.5
        with torch.no_grad():
            layer.weight.copy_(drawn)
    return model


def checkpoint_folder(name: str | Path) -> Path:
    """The folder that holds a checkpoint: itself, or the Hub's snapshot of that name, fetched if it is not here yet."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(str(name), ignore_patterns=[*OTHER_FORMATS, "*.bin"]))
    if any(folder.glob("*.safetensors")):
        return folder
    return Path(snapshot_download(str(name), ignore_patterns=OTHER_FORMATS))


def longest_sequence(path: str | Path, asked: int) -> int:
    """Tokens of prompt and response together, at most: ``asked``, or what the checkpoint's positions allow where that
    is less."""
    # Asked of the family's config, which knows the number whatever the family calls it: n_positions in GPT-2.
    positions = getattr(read_config(str(path)), "max_position_embeddings", None)
    return asked if positions is None else min(asked, positions)


def check_speaks(path: str | Path) -> None:
    """Raise UserError where the checkpoint at ``path`` cannot be sampled as it is: it was taught another chat format
    than ChatML, or :func:`check_vocabulary` refuses it."""
    if unknown := [token for token in missing_chat_tokens(path) if token != REWARD]:
        raise UserError(
            f"{path} speaks another chat format than ChatML, since its tokenizer lacks {' and '.join(unknown)}: train "
            "SFT from it (model.path, with sft.path=null and data.sft), or give a model that speaks ChatML"
        )
    check_vocabulary(path, load_tokenizer(path))


def check_vocabulary(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where the embedding of the checkpoint at ``path`` lacks rows for the chat tokens that
    ``load_tokenizer`` adds to its tokenizer: it only grows in training."""
    fields, _ = PreTrainedConfig.get_config_dict(str(path))
    if len(tokenizer) > fields.get("vocab_size", len(tokenizer)):
        raise UserError(
            f"{path} has no rows for the chat tokens that its tokenizer lacks: train SFT from it (model.path) rather "
            "than sample from it as it is"
        )


def check_parameters(path: str | Path) -> None:
    """Raise UserError where the family of the checkpoint at ``path`` keeps weights that are no parameters: training,
    vLLM and checkpoints are given parameters alone. Only its config.json is read."""
    name = str(path)
    config = read_config(name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # InternLM2, whose classes are ours, or no language model
        return
    try:
        with _quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the config.json of {name} makes no model ({reason}): check the checkpoint") from error
    parameters = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    if others := sorted(model.state_dict().keys() - parameters):
        raise UserError(
            f"{name} is of the family {config.model_type}, which keeps weights such as {others[0]} that are no "
            "parameters, so that what is trained from it would lack them: give a model of another family"
        )


def has_scalar_head(path: str | Path) -> bool:
    """Whether the checkpoint at ``path`` is a reward model or critic, whose head can be kept. Raises UserError where
    there is none."""
    return is_scalar(read_config(str(path)).architectures)


def check_scalar_head(path: str | Path) -> None:
    """Raise UserError where the head of the reward model or critic at ``path`` cannot be kept, or its tokenizer cannot
    be had: it gives several numbers, or was trained on another chat format."""
    _check_reads_chats(str(path), read_config(str(path)))


def scalar_head(model: nn.Module) -> nn.Linear:
    """The linear layer from hidden state to number of a model from ``load_scalar_model``."""
    layer = getattr(model, "v_head", None) or getattr(model, "score", None)
    if not isinstance(layer, nn.Linear) or layer.out_features != 1 or layer.bias is not None:
        raise TypeError(f"{type(model).__name__} has no linear head to one number without bias")
    return layer


def read_config(name: str) -> PreTrainedConfig:
    """The config of a folder or Hub name. Raises UserError where there is none that makes a model."""
    if looks_like_a_path(name) and not Path(name).is_dir():
        raise UserError(f"there is no folder {name}: give a checkpoint's folder or a Hub name")
    try:
        fields, _ = PreTrainedConfig.get_config_dict(name)
        if not fields:
            raise UserError(f"there is no model at {name!r}: give a folder with a config.json, or a Hub name")
        if fields.get("model_type") == "internlm2":
            return InternLM2Config.from_dict(fields)
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, StrictDataclassError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"cannot load a model from {name!r} ({reason}): give a folder or a Hub name") from error


def _check_reads_chats(name: str, config: PreTrainedConfig) -> None:
    """A head that is kept says something only of conversations as it was trained on them: one number, at the reward
    token behind ChatML."""
    labels = 1 if isinstance(config, InternLM2Config) else config.num_labels
    if labels != 1:
        raise UserError(f"{name} is a classifier with {labels} labels, no reward model: give one with a single label")
    if missing := missing_chat_tokens(name):
        raise UserError(
            f"{name} was trained on another chat format than ChatML with a reward token, since its tokenizer lacks "
            f"{', '.join(missing)}: give an InternLM2-Reward model or one that this project trained"
        )


def _scalar_class(name: str, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The family's class with a scalar head, told to keep that head in float32 while loading."""
    if isinstance(config, InternLM2Config):
        return InternLM2ForRewardModel
    config.num_labels = 1
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"transformers has no reward model for the family of {name} ({config.model_type})")
    family: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    kept = {"_keep_in_fp32_modules_strict": {"score"}, "__module__": family.__module__}
    return type(str(family.__name__), (family,), kept)


def _load(loader: Any, name: str, config: PreTrainedConfig, dtype: torch.dtype, may_miss: tuple[str, ...]) -> Any:
    _drop_no_units(config)
    folder = Path(cached_file(name, "config.json") or name).parent
    try:
        with _quiet(), damage_told(folder):
            model, report = loader.from_pretrained(
                name,
                config=config,
                dtype=dtype,
                attn_implementation=attention.NAME,
                ignore_mismatched_sizes=True,  # they are told below, by name
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"cannot load a model from {name!r} ({reason}): check the checkpoint") from error
    heads = {"v_head.weight", "score.weight"} if "head" in may_miss else set()
    missing = sorted(set(report["missing_keys"]) - heads)
    if missing:
        raise UserError(f"{name} lacks weights of {type(model).__name__}: {', '.join(missing[:5])}")
    others = sorted(entry for entry in report["mismatched_keys"] if entry[0] not in heads)
    if others:
        weight, stored, wanted = others[0]
        raise UserError(
            f"{name} holds {weight} of shape {tuple(stored)}, where its config.json makes it {tuple(wanted)}: one of "
            "them is another model's"
        )
    use_onednn(model)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):  # of a rate that stands elsewhere than in the config's own fields
            layer.p = 0.0
    # Nothing is padded here, and the token that others pad with, often the end of text, must learn like any other.
    model.get_input_embeddings().padding_idx = None
    return keep_rotary_float32(model)


def _drop_no_units(config: PreTrainedConfig) -> None:
    """Dropout would make of two passes over the same tokens two policies: the ratio of PPO would begin away from 1, and
    the values that advantages start from would be noise in part. Packed attention has none at all."""
    for name, value in config.to_dict().items():
        if _DROPOUT.search(name) and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, 0.0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of missing and unexpected weights, which ``_load`` judges itself."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _grow_vocabulary(model: PreTrainedModel, name: str) -> PreTrainedModel:
    if isinstance(model.config, InternLM2Config):
        return model
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    size = len(load_tokenizer(name))
    if size > rows:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # every rank must draw the same rows
            model.resize_token_embeddings(size, pad_to_multiple_of=8)
    return model
