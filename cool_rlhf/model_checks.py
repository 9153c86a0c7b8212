"""Whether every model that a stage loads is there, whole, and of the kind that is asked for. Checked before anything
starts; what needs torch or transformers for it is imported late."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cool_rlhf.config import Config
from cool_rlhf.data.hub import prepare_hub
from cool_rlhf.files import check_reachable
from cool_rlhf.memory import ModelShape
from cool_rlhf.models.fields import HUB_NAME, check_there, config_fields, has_experts, is_scalar
from cool_rlhf.preflight import NEEDS_PPO, NEEDS_REWARD, NEEDS_SFT, collects
from cool_rlhf.protocols import UserError

_INDICES = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}


def check_models(config: Config) -> None:
    """Every model that the stage loads is there; one from the Hub has to be within reach."""
    if config.stage in NEEDS_SFT and config.sft.path is None and config.model.path is not None:
        _check_model("model.path", config.model.path, scalar=False)
    evaluates = config.stage == "evaluate" and config.evaluate.samples_per_prompt > 0
    if (config.stage in NEEDS_SFT or evaluates) and config.sft.path is not None:
        key = "model.path" if config.sft.path == config.model.path else "sft.path"
        _check_model(key, config.sft.path, scalar=False)
        if evaluates or config.stage in NEEDS_PPO or collects(config):
            from cool_rlhf.models.loading import check_speaks  # late: it imports torch

            with _of(key):
                check_speaks(config.sft.path)
    if config.stage in (*NEEDS_REWARD, "evaluate") and config.reward.path is not None:
        _check_model("reward.path", config.reward.path, scalar=True)
    if config.stage in NEEDS_PPO and config.ppo.critic_init not in ("reward", "sft"):
        _check_model("ppo.critic_init", config.ppo.critic_init)
    if config.stage in NEEDS_PPO:
        _check_critic_reads_policy(config)
    if config.stage in NEEDS_PPO or evaluates or collects(config):
        _check_engine_cuts(config)
    given = config.sft.path or config.model.path
    if config.stage in NEEDS_SFT and given is None and config.model.tokenizer is not None:
        _check_tokenizer(config.model.tokenizer)


def _check_engine_cuts(config: Config) -> None:
    """vLLM gives every GPU of an engine as many attention heads."""
    ranks = config.cluster.rollout.tensor_parallel_size
    if ranks == 1:
        return
    shape = ModelShape.of(config)
    if shape.heads % ranks:
        raise UserError(
            f"cluster.rollout.tensor_parallel_size is {ranks}, but the model has {shape.heads} attention heads, which "
            "so many GPUs cannot share evenly: choose a divisor"
        )


def given_critic(config: Config) -> str | None:
    """The checkpoint from outside the run that the critic starts from; None where it is one of the run's own."""
    named = config.ppo.critic_init
    return {"reward": config.reward.path, "sft": None}.get(named, named)


def _check_model(key: str, path: str, scalar: bool | None = None) -> None:
    """``scalar``: whether it has to be a reward model, or must not be one; None: it may be either."""
    folder = Path(path)
    check_there(key, path)
    if folder.is_dir():
        _check_weights(key, folder)
    else:
        _check_hub_model(key, path)
    with _of(key):
        fields = config_fields(path)
    kinds = fields.get("layer_types") or fields.get("layers_block_type") or []
    if others := sorted({kind for kind in kinds if "attention" not in kind or kind == "linear_attention"}):
        raise UserError(
            f"{key}: {path} has layers of {', '.join(others)}, through which sequences packed side by side would reach "
            "each other: give a model of attention layers alone"
        )
    if has_experts(fields):
        from cool_rlhf.models.experts import check_experts  # late: it imports torch

        check_experts(f"{key}: {path}", fields)
    architectures = fields.get("architectures") or []
    if scalar is False and is_scalar(architectures):
        raise UserError(
            f"{key}: {path} is a reward model ({architectures[0]}), which does not speak: give a chat model"
        )
    if scalar and not is_scalar(architectures):
        found = (architectures or ["its config.json names no architecture"])[0]
        raise UserError(f"{key}: {path} is no reward model ({found}): give one, or train one by leaving {key} out")
    from cool_rlhf.models.loading import check_parameters, check_scalar_head  # late: it imports torch
    from cool_rlhf.models.probe import check_packs
    from cool_rlhf.models.tokenizer import missing_chat_tokens

    with _of(key):
        check_parameters(path)
        check_packs(path)
        if folder.is_dir():
            missing_chat_tokens(path)  # which asks for a tokenizer
            if scalar is not False and is_scalar(architectures):
                check_scalar_head(path)


def _check_tokenizer(name: str) -> None:
    """Of fresh weights."""
    with _of("model.tokenizer"):
        check_reachable(Path(name, "config.json"))
        config_fields(name)
        if not Path(name).exists():
            if not HUB_NAME.fullmatch(name) or name.startswith("outputs/"):
                raise UserError(f"there is no file or folder {name}")
            prepare_hub()
        from cool_rlhf.models.tokenizer import missing_chat_tokens  # late: it imports transformers

        missing_chat_tokens(name)


@contextmanager
def _of(key: str) -> Iterator[None]:
    """A mistake that is found within is told to be of ``key``."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _check_weights(key: str, folder: Path) -> None:
    """There are weights in a checkpoint's folder, of those in parts every part, and each is whole."""
    found = {file.name for pattern in ("*.safetensors", "pytorch_model*.bin") for file in folder.glob(pattern)}
    if not found:
        raise UserError(
            f"{key}: {folder} holds neither safetensors files nor pytorch_model*.bin: give a whole checkpoint"
        )
    index = next(name for kind, name in _INDICES.items() if any(file.endswith(kind) for file in found))
    whole = index.removesuffix(".index.json")
    read = {whole} if whole in found else found
    if whole not in found and (folder / index).is_file():
        read = _parts(key, folder / index)
        if missing := sorted(read - found):
            others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise UserError(f"{key}: {folder} lacks {missing[0]}{others} of its weights: copy the whole checkpoint")

    from cool_rlhf.models.stored import check_whole  # late: it imports torch

    with _of(key):
        check_whole(folder / name for name in sorted(read))


def _parts(key: str, index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{key}: {index} is no index of weights: copy the checkpoint again") from error


def _check_critic_reads_policy(config: Config) -> None:
    """Of models that are there already; of those that are yet to be trained it is checked when the critic starts."""
    critic = given_critic(config)
    policy = config.sft.path or (config.model.path if config.model.tokenizer is None else None)
    if critic and policy:
        from cool_rlhf.models.tokenizer import check_same_tokens  # late: it imports transformers

        check_same_tokens(critic, policy)


def _check_hub_model(key: str, name: str) -> None:
    reachable = prepare_hub()

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(name, "config.json", etag_timeout=5)
    except (HfHubHTTPError, OSError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        reason = said if reachable else "it is out of reach and there is no copy in the cache"
        raise UserError(f"{key}: {name} cannot be had from the Hub ({reason}): point {key} at a local copy") from error
