"""Checkpoints as Hugging Face folders: written beside their place, then moved into it whole."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from cool_rlhf.data.chat import REWARD, TURN_END, token_id
from cool_rlhf.folders import part_of, replace_whole
from cool_rlhf.models.internlm2 import InternLM2Config
from cool_rlhf.models.tokenizer import CHAT_TEMPLATE, REWARD_TEMPLATE

SHARD_BYTES = 5 * 10**9
FLOAT32_WEIGHTS = frozenset({"v_head.weight", "score.weight"})
MODELING_FILES = (
    "configuration_internlm2.py",
    "chatml_internlm2.py",
    "chat_internlm2.py",
    "layers_internlm2.py",
    "modeling_internlm2.py",
)


def save_checkpoint(
    folder: Path,
    model_config: PreTrainedConfig,
    weights: Iterable[tuple[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    architecture: str,
    conditions: Mapping[str, str] | None = None,
    condition_join: str | None = None,
    score_bound: float | None = None,
    dtype: torch.dtype,
) -> None:
    """Write a checkpoint that transformers and vLLM load where this project is not installed.

    InternLM2 folders carry their modeling files and ``auto_map``; other families are plain, so that an ``auto_map`` of
    theirs, which names files of the folder they came from, is left behind. ``folder`` appears whole or not at all,
    replacing an earlier one. A reward model's chat template ends in the reward token, and its config says that it
    regresses, so that vLLM puts no sigmoid over the score.

    Args:
        weights: full tensors under their checkpoint names, taken one at a time; one shard is held in memory.
        architecture: the class's name, such as ``InternLM2ForCausalLM`` or ``LlamaForSequenceClassification``.
        conditions: domain to condition prompt, for a reward model; becomes ``conditions.json``.
        condition_join: how a condition joins a conversation; becomes a field of ``config.json``.
        score_bound: what a reward model's scores were trained to stay below, in absolute value; likewise.
        dtype: of the weights on disk; a scalar head stays float32.
    """
    is_reward = _is_reward(architecture)
    told = {"condition_join": condition_join, "score_bound": score_bound}
    config = _export_config(model_config, tokenizer, architecture, told, dtype)
    with _replacing(folder) as place:
        _write_weights(place, weights, dtype)
        config.save_pretrained(place)
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.init_kwargs.pop("auto_map", None)
        tokenizer.chat_template = REWARD_TEMPLATE if is_reward else tokenizer.chat_template or CHAT_TEMPLATE
        if isinstance(config, InternLM2Config):
            for name in MODELING_FILES:
                shutil.copyfile(Path(__file__).parent / "internlm2" / name, place / name)
        tokenizer.save_pretrained(place)
        if not is_reward:
            _generation_config(tokenizer).save_pretrained(place)
        if conditions is not None:
            text = json.dumps(dict(conditions), ensure_ascii=False, indent=2)
            (place / "conditions.json").write_text(text + "\n", encoding="utf-8")


def _is_reward(architecture: str) -> bool:
    return architecture.endswith(("ForRewardModel", "ForSequenceClassification"))


def _export_config(
    model_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    architecture: str,
    told: Mapping[str, str | float | None],
    dtype: torch.dtype,
) -> PreTrainedConfig:
    config = copy.deepcopy(model_config)
    config.architectures = [architecture]
    config.dtype = dtype
    for field, value in told.items():
        if value is not None:
            setattr(config, field, value)  # a field of ours, unknown to the base class
    if _is_reward(architecture):
        config.problem_type = "regression"
    if not isinstance(config, InternLM2Config):
        vars(config).pop("auto_map", None)
        if _is_reward(architecture):  # by the padding they find each row's last token
            setattr(config, "pad_token_id", tokenizer.pad_token_id)  # noqa: B010  # not a field of every family
        return config
    module = "modeling_internlm2"
    auto_map = {"AutoConfig": "configuration_internlm2.InternLM2Config", "AutoModel": f"{module}.{architecture}"}
    if architecture == "InternLM2ForCausalLM":
        auto_map["AutoModelForCausalLM"] = f"{module}.{architecture}"
    setattr(config, "auto_map", auto_map)  # noqa: B010  # likewise
    config.reward_token_id = token_id(tokenizer, REWARD)
    return config


def _generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    ends = [tokenizer.eos_token_id, token_id(tokenizer, TURN_END)]
    known = [end for end in dict.fromkeys(ends) if end is not None]
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=known, pad_token_id=tokenizer.pad_token_id
    )


def _write_weights(place: Path, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """Safetensors in shards of ``SHARD_BYTES``, named and indexed as Hugging Face does."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    held_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal held, held_bytes
        file = place / f"shard-{len(shards)}"
        save_file(held, file, metadata={"format": "pt"})
        file.chmod(0o644)
        shards.append(list(held))
        held, held_bytes = {}, 0

    for name, weight in weights:
        kept = torch.float32 if name in FLOAT32_WEIGHTS else dtype
        tensor = weight.detach().to("cpu", kept, copy=True).contiguous()
        if held and held_bytes + tensor.nbytes > SHARD_BYTES:
            flush()
        held[name] = tensor
        held_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    if len(shards) == 1:
        (place / "shard-0").rename(place / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (place / f"shard-{index}").rename(place / file)
        weight_map |= dict.fromkeys(names, file)
    index_text = json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": weight_map}, indent=2)
    (place / "model.safetensors.index.json").write_text(index_text + "\n", encoding="utf-8")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into, beside ``folder``; on success it takes that name, on any error it is removed."""
    part = part_of(folder)
    part.mkdir()
    try:
        yield part
        replace_whole(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
