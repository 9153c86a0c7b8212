"""What is checked before a run starts anything: its output folder, its resources, its data; and what it has left.

Nothing here imports torch, so that a mistake is answered at once. Every check raises UserError.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cool_rlhf.checkpoint import RunState
from cool_rlhf.config import Config
from cool_rlhf.data.identity import prompt_key
from cool_rlhf.data.loading import Reading, check_sources, good_rows
from cool_rlhf.data.messages import without_system_turn
from cool_rlhf.data.preferences import load_split
from cool_rlhf.data.room import Room
from cool_rlhf.data.sources import resolve
from cool_rlhf.data.splitting import TEST_ROWS, check_chats_left, tested_prompts
from cool_rlhf.demo.registry import DOMAINS
from cool_rlhf.derived_settings import learns_from_texts, validation_share
from cool_rlhf.evaluation.trained import as_trained
from cool_rlhf.folders import RoundFolder, round_folders
from cool_rlhf.planning import Resources
from cool_rlhf.protocols import Conversation, UserError
from reward.conditions import FILE_NAME, Conditions

NEEDS_SFT = ("sft", "reward", "ppo", "pipeline")
NEEDS_REWARD = ("reward", "ppo", "pipeline")
NEEDS_PPO = ("ppo", "pipeline")


@dataclass(frozen=True)
class FinishedModels:
    """What stage=evaluate looks at: folders, or Hub names of models that the config names."""

    sft: str | None  # None: the reward model is looked at alone
    reward_model: str
    chat_model: str | None  # the policy of the last round that left one


def check_output_dir(config: Config) -> None:
    """The folder, or the one it will be made in, takes files."""
    folder = Path(config.output_dir)
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"output_dir is {folder}, but {nearest} is a file: choose another folder")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"output_dir is {folder}, but {nearest} takes no files ({error.strerror})") from error


def with_earlier_stages(config: Config) -> list[Config]:
    """What is done for ``config``, in order. What stage=evaluate does not find is made by the whole pipeline first; the
    other stages see to those before them themselves. Without an SFT model or prompts it samples no responses."""
    if config.stage != "evaluate":
        return [config]
    models = finished_models(config)
    if models is None:
        return [replace(config, stage="pipeline"), config]
    prompts = config.data.world is not None or held_out_prompts(config)[1]
    if models.sft is not None and prompts and config.evaluate.samples_per_prompt:
        return [config]
    return [replace(config, evaluate=replace(config.evaluate, samples_per_prompt=0, best_of=0))]


def held_out_prompts(config: Config) -> tuple[str, list[str]]:
    """Key and sources of the prompts that stage=evaluate reads: test prompts, or else what the run's validation uses;
    none named where the embedded world has to supply them."""
    if config.data.test_prompts:
        return "data.test_prompts", config.data.test_prompts
    data = as_trained(config).data
    name = "validation_prompts" if data.validation_prompts else "prompts"
    sources: list[str] = getattr(data, name)
    own = sources == getattr(config.data, name)
    return f"data.{name}" if own else f"data.{name} of the run in {config.output_dir}", sources


def finished_models(config: Config) -> FinishedModels | None:
    """The models that a run has left so far; None where there is no reward model yet, or where the run's own has no SFT
    model beside it, although responses are asked for. One that ``reward.path`` names is looked at alone if need be.
    ``sft.path`` and ``reward.path`` come before the run's own; of its reward models and policies the latest is
    taken."""
    sft, reward_model, chat_model = _latest_models(config)
    alone = config.reward.path is not None or config.evaluate.samples_per_prompt == 0
    if reward_model is None or (sft is None and not alone):
        return None
    return FinishedModels(sft, reward_model, chat_model)


def missing_models(config: Config) -> str:
    """What of a run's models stage=evaluate does not find, in words."""
    sft, reward_model, _ = _latest_models(config)
    lacking = ["no SFT"] * (sft is None) + ["no reward"] * (reward_model is None)
    return f"output_dir {config.output_dir} holds {' and '.join(lacking)} model"


def _latest_models(config: Config) -> tuple[str | None, str | None, str | None]:
    """SFT model, reward model and policy, as far as they are named or made."""
    output = Path(config.output_dir)
    reward_models, policies = _made_so_far(output)

    def latest(folders: list[Path]) -> str | None:
        return next((str(folder) for folder in folders if (folder / "config.json").is_file()), None)

    return config.sft.path or latest([output / "sft"]), config.reward.path or latest(reward_models), latest(policies)


def _made_so_far(output: Path) -> tuple[list[Path], list[Path]]:
    """Where the reward models and the policies of a run are, the latest first. Its state says so where there is one: a
    run that goes on with more rounds leaves there what it had ended with, and one that makes a round again the rounds
    that came after it."""
    last_reward_model, last_policy = output / "reward_model", output / "chat_model"
    state = RunState(output)
    begun = state.begun()
    if not begun:
        rounds = round_folders(output)[::-1]
        reward_models = [last_reward_model, *(folder.reward_model for folder in rounds)]
        return reward_models, [last_policy, *(folder.policy for folder in rounds)]
    reward_models, policies = [], []
    for stage in reversed(begun):
        name, _, round = stage.partition("_")
        folder = RoundFolder(output, int(round or 0))
        if name == "ppo":  # which keeps its best policy before it is finished
            policies.append(folder.policy)
        elif name == "export" and state.is_finished(stage):
            policies.append(last_policy)
        elif name == "reward" and state.is_finished(stage):
            ends = f"ppo_{round}" not in begun  # the one after the last round stands apart
            reward_models += [folder.reward_model, *([last_reward_model] if ends else [])]
    return reward_models, policies


def collects(config: Config) -> bool:
    """Whether the stage has the SFT model's samples labelled by a rule."""
    return config.stage in NEEDS_REWARD and config.reward.path is None and config.collect.prompts > 0


def required_kinds(config: Config) -> tuple[str, ...]:
    """The kinds of rows that the stage cannot do without: of ``sft``, ``preferences``, ``prompts``, ``pretrain``."""
    stage = config.stage
    needed = {
        "sft": stage in NEEDS_SFT and config.sft.path is None,
        "preferences": stage in NEEDS_REWARD and config.reward.path is None,
        "prompts": stage in NEEDS_PPO or collects(config),
        "pretrain": stage in NEEDS_PPO and learns_from_texts(config.ppo),
    }
    return tuple(kind for kind, wanted in needed.items() if wanted)


def _reads_texts(config: Config) -> bool:
    """Whether the stage reads plain texts where there are any: fresh weights learn them, and PPO learns them or
    validates on held-out ones."""
    fresh = config.stage in NEEDS_SFT and config.sft.path is None and config.model.path is None
    return fresh or (config.stage in NEEDS_PPO and (learns_from_texts(config.ppo) or config.ppo.validation_texts > 0))


def check_data(config: Config) -> None:
    """Every row of every file that the stage reads is good, and nothing that it needs is missing."""
    if config.stage == "evaluate":
        _check_held_out(config)
        return
    kinds = required_kinds(config)
    for kind in kinds:
        sources = getattr(config.data, kind)
        if not sources and config.data.world is None:
            raise UserError(
                f"data.{kind} is empty, but stage {config.stage} needs it: name JSONL or Parquet files, globs or Hub "
                f"names, data.{kind}=[first,second]"
            )
        if not sources and kind in ("preferences", "prompts"):
            _check_world_has_conditions(kind, config)
    if _reads_texts(config) and "pretrain" not in kinds:
        kinds += ("pretrain",)
    read = [(kind, f"data.{name}", getattr(config.data, name)) for kind, name in _named(kinds)]
    _check_rows(read, Reading.of(config))
    if required_kinds(config):
        tests = [(name.removeprefix("test_"), f"data.{name}", getattr(config.data, name)) for name in TEST_ROWS]
        _check_rows(tests, replace(Reading.of(config), domains=None))
    for kind in ("preferences", "prompts"):
        if kind in required_kinds(config):
            _check_validation_left(kind, config)
    for kind in ("prompts", "pretrain"):
        if kind in required_kinds(config):
            _check_some_left(kind, config)
    if "sft" in required_kinds(config):
        check_chats_left(config.data, Reading.of(config))
    if "preferences" in required_kinds(config) and (config.data.preferences or config.data.validation_preferences):
        load_split(config.data, validation_share(config), Reading.of(config), config.seed, warns=False)


def _named(kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of each kind of rows, with the kind: the key of those to learn from, and of those to validate on."""
    for kind in kinds:
        yield kind, kind
        if kind != "sft":
            yield kind, f"validation_{kind}"


def _check_world_has_conditions(kind: str, config: Config) -> None:
    """The domains of the embedded world, which supplies what no file is named for, are those of conditions."""
    if missing := sorted(DOMAINS.keys() - config.conditions.keys()):
        others = "" if config.stage in NEEDS_PPO or kind != "prompts" else ", or set collect.prompts=0"
        raise UserError(
            f"data.{kind} is empty, so that the embedded world supplies them, but its domains {', '.join(missing)} "
            f"have no condition: set conditions=demo, or name files in data.{kind}=[first,second]{others}"
        )


def _check_validation_left(kind: str, config: Config) -> None:
    """Of the rows of ``kind`` (preferences, prompts) that are named for validation some have prompts that are not
    tested, since no stage but evaluate may see those."""
    key = f"validation_{kind}"
    asked = (
        row["chosen"][:-1] if kind == "preferences" else row["messages"]
        for row in good_rows(kind, getattr(config.data, key), Reading.of(config), f"data.{key}")
    )
    keys = {_key(messages, config) for messages in asked}
    if keys and keys <= _keys_of_tested(config):
        raise UserError(
            f"data.{key} leaves nothing to validate on, since every prompt stands in "
            f"{' or '.join(f'data.{name}' for name in TEST_ROWS if getattr(config.data, name))} too: name other rows "
            "in one of them"
        )


def _keys_of_tested(config: Config) -> set[str]:
    return {_key(messages, config) for messages in tested_prompts(config.data, Reading.of(config))}


def _key(prompt: Conversation, config: Config) -> str:
    """The same whether or not the policy's system turn stands in front."""
    return prompt_key(without_system_turn(prompt, config.sampling.system_prompt))


def _check_some_left(kind: str, config: Config) -> None:
    """Of rows of ``kind`` (prompts, pretrain) some are left to learn from when those that are held out are taken
    away."""
    data, reading = config.data, Reading.of(config)
    if not getattr(data, kind):
        return

    def keys(name: str) -> Iterator[str]:
        rows = good_rows(kind, getattr(data, name), reading, f"data.{name}")
        return (_key(row["messages"], config) if kind == "prompts" else str(row["text"]) for row in rows)

    named, known = [f"validation_{kind}"], set(keys(f"validation_{kind}"))
    if kind == "prompts":
        named += TEST_ROWS
        known |= _keys_of_tested(config)
    left = (key for key in keys(kind) if key not in known)
    first = next(left, None)
    if first is None:
        held = " or ".join(f"data.{name}" for name in named if getattr(data, name))
        raise UserError(
            f"data.{kind} leaves nothing to learn from, since every row stands in {held} too: name other rows in one "
            "of them"
        )
    if kind == "prompts" and not data.validation_prompts and {first}.issuperset(left):
        raise UserError(
            "data.prompts holds one prompt alone, which validation takes: name more of them, or others to hold out "
            "in data.validation_prompts"
        )


def _check_held_out(config: Config) -> None:
    """What stage=evaluate reads: test rows, or else the prompts that validation uses; training pairs for a baseline."""
    data = config.data
    key, sources = held_out_prompts(config) if config.evaluate.samples_per_prompt else ("", [])
    if data.world is None and not data.test_preferences and not sources:
        raise UserError(
            "data.test_preferences is empty, and there is nothing else to evaluate on: name JSONL or Parquet files or "
            "Hub names; for responses of the SFT and the chat model data.test_prompts"
        )
    reading = held_out_reading(config)
    _check_rows([("preferences", "data.test_preferences", data.test_preferences)], reading)
    if not data.test_prompts:  # what validation uses is read as the run has read it
        written = Reading.of(as_trained(config))
        reading = replace(written, domains=reading.domains, room=reading.room)
    _check_rows([("prompts", key, sources)], reading)
    if data.test_preferences and config.evaluate.baseline_pairs:
        reading = replace(Reading.of(config), domains=None)
        _check_rows([("preferences", "data.preferences", data.preferences)], reading)


def held_out_reading(config: Config) -> Reading:
    """How stage=evaluate reads its rows: the domains known are those of the reward model at hand. One without any
    condition knows none, and domains then only tell rows apart. Prompts leave room in the SFT model at hand."""
    models = finished_models(config)
    if models is None:
        return Reading.of(config)
    prompts = conditions_of(models.reward_model)
    known = tuple(sorted(prompts)) if any(prompts.values()) else None
    room = Room.in_checkpoint(models.sft, config) if models.sft else None
    return replace(Reading.of(config), domains=known, room=room)


def conditions_of(path: str) -> Mapping[str, str]:
    """Of a checkpoint's folder or Hub name; empty for a model that was trained without."""
    folder = Path(path)
    if folder.is_dir():
        file = folder / FILE_NAME
        return Conditions.load(file).prompts if file.exists() else {}

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Conditions.load(Path(hf_hub_download(path, FILE_NAME))).prompts
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return {}


def _check_rows(read: list[tuple[str, str, list[str]]], reading: Reading) -> None:
    """``read``: kind, key and sources."""
    for _, key, sources in read:  # before any file is read: a name is answered at once
        for source in sources:
            resolve(source, key)
    for kind, key, sources in read:
        check_sources(kind, sources, reading, key)


def machine_resources(config: Config) -> Resources:
    """CPUs and GPUs of this machine, as far as ``cluster.cpus`` and ``cluster.gpus`` do not say otherwise."""
    cluster = config.cluster
    cpus = float(len(os.sched_getaffinity(0))) if cluster.cpus is None else cluster.cpus
    return Resources.of_machine(cpus, _visible_gpus() if cluster.gpus is None else cluster.gpus)


def _visible_gpus() -> int:
    """What nvidia-smi lists and CUDA_VISIBLE_DEVICES leaves; 0 where there is no driver."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return 0
    except subprocess.TimeoutExpired as error:
        raise UserError(
            "nvidia-smi does not answer: mend the driver, or say how many GPUs with cluster.gpus"
        ) from error
    count = len(re.findall(r"^GPU \d+:", listed, re.MULTILINE))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    return min(count, len([device for device in visible.split(",") if device.strip() not in ("", "-1")]))
