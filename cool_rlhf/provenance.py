"""Which settings made each stage, and which stages are left. A finished one is only taken over by a run that would have
made the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import dropwhile
from operator import attrgetter
from pathlib import Path
from typing import Any

from cool_rlhf.checkpoint import RunState
from cool_rlhf.config import Config
from cool_rlhf.data.splitting import TEST_ROWS
from cool_rlhf.derived_settings import best_by, has_paths, learns_from_texts
from cool_rlhf.folders import BEST_FILE, RoundFolder
from cool_rlhf.protocols import UserError

# What may change without changing what a stage makes: how work is cut, watched and saved, and how long PPO goes on.
_FREE = {
    "model": {"gradient_checkpointing"},
    "sft": {"micro_batch_tokens", "save_every"},
    "reward": {"micro_batch_tokens", "save_every", "evaluate_every"},
    "online": {"rounds"},
    "ppo": {
        "micro_batch_tokens",
        "keep_passes",
        "iterations",
        "save_every",
        "validate_every",
        "validation_texts",
        "validation_instructions",
        "validation_conditions",
        "keep_critic",
    },
}

# Of ``online``, what says how the reward model is mended, and where a later round starts.
_REPAIR = {"epochs", "learning_rate", "final_learning_rate", "replay", "least_replay", "least_mended", "most_lost"}
_START = ("policy_from", "cheating")

# What the best policy goes by, over how many of what: values over others could not be compared with the best so far.
_JUDGES = {"validation/lm_loss": "validation_texts", "validation/instructions": "validation_instructions"}

# Of ``annotate``, what stands behind the labels that a round itself gives.
_LABELLER: dict[str, tuple[str, ...]] = {
    "people": (),
    "rule": ("rule", "rule_noise"),
    "judge": ("judge.url", "judge.model", "judge.temperature"),
}


def made_from(config: Config) -> dict[str, dict[str, Any]]:
    """Stage name → the settings that make it, as a part of the config's tree. What reaches a stage only through a
    finished one before it stands there alone; a model that was given has no stage, so its path stands in all others."""
    tree = asdict(config)

    def part(name: str) -> dict[str, Any]:
        return {key: value for key, value in tree[name].items() if key not in _FREE.get(name, set())}

    def stage(data: Sequence[str], **settings: Any) -> dict[str, Any]:
        sources = {key: tree["data"][key] for key in (*data, "domains", "bad_rows", "world")}
        common = {"seed": config.seed, "model": part("model"), "sft": {"path": config.sft.path}}
        return {**common, **settings, "data": sources}

    rounds = config.online.rounds
    collect, sampling = tree["collect"], tree["sampling"]
    labeller = {key: attrgetter(key)(config.annotate) for key in _LABELLER[config.online.labeller]}
    apart = [key for key in TEST_ROWS if tree["data"][key]]  # where there are none, nothing was left out
    pairs = ["preferences", "validation_preferences", "weights", *apart]
    reward = stage(pairs, reward=part("reward"), conditions=tree["conditions"], collect=collect)
    best_metric, _ = best_by(config.ppo)
    # How texts are cut: SFT of the run's own has that recorded.
    cut = config.sft.path is not None and (learns_from_texts(config.ppo) or best_metric == "validation/lm_loss")
    bound = {key: tree["ppo"][key] for metric, key in _JUDGES.items() if best_metric.startswith(metric)}
    if config.ppo.generate_ahead:  # which a saved step interrupts
        bound["save_every"] = config.ppo.save_every
        if config.ppo.stop_when_parted:  # as does a validation after which the round may end
            bound["validate_every"] = config.ppo.validate_every
    ppo = stage(
        ["prompts", "validation_prompts", "domain_weights", "pretrain", "validation_pretrain", *apart],
        ppo={**part("ppo"), **bound},
        sampling=sampling,
        reward={"path": config.reward.path},
        sft={key: tree["sft"][key] for key in (["path", "max_length"] if cut else ["path"])},
    )
    texts = [] if config.model.path else ["pretrain", "validation_pretrain"]  # fresh weights learn them in SFT
    start = {key: tree["online"][key] for key in _START}
    repair = {key: value for key, value in part("online").items() if key not in _START}
    paths = {key: value for key, value in repair.items() if key not in _REPAIR}
    return {
        "sft": stage(["sft", *texts, *apart], sft=part("sft")),
        "collect": stage(["prompts", "validation_prompts", *apart], collect=collect, sampling=sampling),
        "reward_0": reward,
        **{f"ppo_{round}": {**ppo, "online": start} if round else ppo for round in range(rounds)},
        **{f"online_{round}": {**ppo, "online": paths, "annotate": labeller} for round in range(rounds)},
        **{f"reward_{round + 1}": {**reward, "online": repair} for round in range(rounds)},
        f"export_{rounds}": {},
    }


def outputs(config: Config) -> dict[str, Path]:
    """Stage name → what it leaves for those that come after it."""
    folder, count = Path(config.output_dir), config.online.rounds
    rounds = [RoundFolder(folder, round) for round in range(count)]
    return {
        "sft": folder / "sft",
        "collect": RoundFolder(folder, 0).collected,
        **{f"reward_{place.round}": place.reward_model for place in rounds},
        f"reward_{count}": folder / "reward_model",  # the one trained after the last round stands apart
        **{f"ppo_{place.round}": place.policy for place in rounds},
        **{f"online_{place.round}": place.responses for place in rounds},
        f"export_{count}": folder / "chat_model",
    }


def is_lost(config: Config, state: RunState, stage: str) -> bool:
    """Whether ``stage`` has made its output, and it is not there: somebody took it away, or what was the last round's
    reward model is now to be that of a middle round."""
    snapshot = state.snapshot(stage)
    kept_best = snapshot is not None and snapshot[1].get("best") is not None
    return (state.is_finished(stage) or kept_best) and not all(path.exists() for path in _made(config, stage))


def _made(config: Config, stage: str) -> list[Path]:
    """All that a stage leaves for others: where a round was searched, what was found too."""
    made, (name, _, round) = outputs(config)[stage], stage.partition("_")
    if name != "online" or not config.online.fast_path:
        return [made]
    return [made, RoundFolder(Path(config.output_dir), int(round)).patterns]


def open_state(config: Config) -> RunState:
    """The state of the run in ``config.output_dir``. Raises UserError where other settings than these made a part,
    where it has begun more rounds than are asked for, since its last reward model would pass for that of an earlier
    one, and where a round under way has made more iterations than that."""
    state = RunState(Path(config.output_dir))
    begun = max(map(_rounds_of, state.begun()), default=0)
    if begun > config.online.rounds:
        raise UserError(
            f"online.rounds is {config.online.rounds}, but {config.output_dir} holds a run that has begun {begun}: set "
            f"it to {begun} or more, or choose another output_dir"
        )
    for stage, settings in made_from(config).items():
        state.check(stage, settings)
        _check_iterations(config, state, stage)
    return state


def _check_iterations(config: Config, state: RunState, stage: str) -> None:
    """A round of PPO that is not finished is not asked for fewer iterations than its snapshot has, or its best policy,
    which may have been kept after that; nor for as many if they have left no policy: the validation after its last
    iteration will."""
    snapshot = state.snapshot(stage) if stage.startswith("ppo_") and not state.is_finished(stage) else None
    if snapshot is None or snapshot[1].get("ended"):
        return
    round = stage.removeprefix("ppo_")
    best = RoundFolder(Path(config.output_dir), int(round)).policy / BEST_FILE
    kept = json.loads(best.read_text(encoding="utf-8"))["step"] if best.exists() else 0
    made = max(snapshot[1]["step"], kept) - config.ppo.critic_warmup
    least = made if kept or snapshot[1].get("best") is not None else made + 1
    if config.ppo.iterations < least:
        raise UserError(
            f"ppo.iterations is {config.ppo.iterations}, but {config.output_dir} holds a PPO whose round {round} has "
            f"made {made}: set it to {least} or more, or choose another output_dir"
        )


def _rounds_of(stage: str) -> int:
    """How many rounds a run with ``stage`` has: reward_R and export_R end the last of R rounds, the others are of round
    R itself."""
    name, _, round = stage.partition("_")
    return int(round or 0) + (name in ("ppo", "online"))


def unfinished(config: Config, state: RunState) -> list[str]:
    """What ``config.stage`` still has to do, in order: from the first part that is not finished, or whose output is
    gone, to the end."""

    def is_done(name: str) -> bool:
        return state.is_finished(name) and not wants_more(config, state, name) and not is_lost(config, state, name)

    return list(dropwhile(is_done, _needed(config)))


def wants_more(config: Config, state: RunState, stage: str) -> bool:
    """Whether a finished round of PPO is now asked for more iterations than it has made; not where it ended because
    score and gold had parted."""
    snapshot = state.snapshot(stage) if stage.startswith("ppo_") else None
    if snapshot is None or snapshot[1].get("ended"):
        return False
    return bool(snapshot[1]["step"] < config.ppo.critic_warmup + config.ppo.iterations)


def without_critic(config: Config, state: RunState) -> str | None:
    """Which finished rounds have left no critic though the config now asks for it, in a sentence; None where all
    have."""
    left = unfinished(config, state)
    rounds = [
        str(round)
        for round in range(config.online.rounds)
        if state.is_finished(f"ppo_{round}") and f"ppo_{round}" not in left
        if not RoundFolder(Path(config.output_dir), round).critic.exists()
    ]
    if not config.ppo.keep_critic or not rounds:
        return None
    return (
        f"ppo.keep_critic comes too late for what {config.output_dir} has finished: round {', '.join(rounds)} left no "
        "critic; train it again in another output_dir if you need one"
    )


def _needed(config: Config) -> list[str]:
    own_reward = config.reward.path is None
    names = ["sft"] if config.sft.path is None else []
    if config.stage == "sft":
        return names
    names += ["collect"] if own_reward and config.collect.prompts > 0 else []
    names += ["reward_0"] if own_reward else []
    if config.stage == "ppo":
        names += ["ppo_0"]
    elif config.stage == "pipeline":
        rounds = config.online.rounds
        paths = has_paths(config)
        for round in range(rounds):
            names += [f"ppo_{round}", *([f"online_{round}"] if paths else []), f"reward_{round + 1}"]
        names += [f"export_{rounds}"]
    return names
