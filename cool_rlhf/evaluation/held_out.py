"""What stage=evaluate looks at: rows that no stage has learnt from, and the training pairs of a baseline."""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedConfig

from cool_rlhf.checkpoint import RunState
from cool_rlhf.config import Config
from cool_rlhf.data.chat import encode_reward
from cool_rlhf.data.identity import pair_key, prompt_key
from cool_rlhf.data.loading import Reading, left_out, load_preferences
from cool_rlhf.data.messages import without_system_turn
from cool_rlhf.data.preferences import load_split
from cool_rlhf.data.room import may_fill
from cool_rlhf.data.splitting import TEST_ROWS, tested_prompts
from cool_rlhf.derived_settings import validation_share
from cool_rlhf.evaluation.trained import as_trained
from cool_rlhf.files import read_json_lines
from cool_rlhf.folders import round_folders
from cool_rlhf.models.fields import POSITIONS, size_of
from cool_rlhf.models.tokenizer import load_tokenizer
from cool_rlhf.online.records import read_patches
from cool_rlhf.preflight import held_out_reading
from cool_rlhf.protocols import Conversation, Message, PreferencePair, Prompt, UserError
from cool_rlhf.provenance import outputs
from cool_rlhf.schedule import derive_seed
from cool_rlhf.stages.inputs import GoldRule, Inputs
from reward.evaluation import opposing_domains
from reward.scoring import load_conditions


@dataclass(frozen=True)
class HeldOut:
    """What is evaluated on."""

    prompts: Sequence[Prompt]
    prompts_from: str
    gold: GoldRule
    preferences: Sequence[PreferencePair]
    opposed: Sequence[PreferencePair]  # each pair of answers under two domains that judge them oppositely
    training: Sequence[PreferencePair]  # what the n-gram baseline is fitted to; empty: no such baseline
    notes: list[str]  # what is missing or to be kept in mind

    @classmethod
    def of(cls, config: Config) -> HeldOut:
        """The user's test rows, and where none are named: prompts that the run held out, or the embedded world's test
        rows."""
        notes: list[str] = []
        inputs, trained = Inputs(config), Inputs(as_trained(config))
        preferences, opposed = _preferences(inputs, notes)
        training = _apart(_training(inputs, notes), preferences, trained, notes) if preferences else []
        prompts, source, gold = _prompts(inputs, trained, notes)
        taught = _taught_in_rounds(trained)
        judged, asked = [pair.chosen[:-1] for pair in preferences], [prompt.messages for prompt in prompts]
        notes += _taught_note("prompts of test pairs", {_key(prompt, trained) for prompt in judged}, taught)
        notes += _taught_note("prompts asked", {_key(prompt, inputs) for prompt in asked}, taught)
        fitted = training if config.evaluate.baseline_pairs else []
        return cls(prompts, source, gold, preferences, opposed, fitted, notes)


def _preferences(inputs: Inputs, notes: list[str]) -> tuple[Sequence[PreferencePair], Sequence[PreferencePair]]:
    config, data = inputs.config, inputs.config.data
    if data.test_preferences:
        pairs = load_preferences(data.test_preferences, held_out_reading(config))
        notes += _left_out("preferences", config) + _doubtful(pairs)
        return pairs, [pairs[row] for row in opposing_domains(pairs)]
    if data.world is not None and not data.preferences:
        return inputs.world.preference_test, inputs.world.opposed_test
    notes.append("no accuracy of the reward model: data.test_preferences is empty")
    return [], []


def _left_out(kind: str, config: Config) -> list[str]:
    key = f"test_{kind}"
    reasons = left_out(kind, getattr(config.data, key), held_out_reading(config), f"data.{key}")
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return [f"{reasons.total()} rows of data.{key} are left out: {told}"] if reasons else []


def read_in_part(pairs: Sequence[PreferencePair], reward_model: str) -> list[str]:
    """How many dialogues of test ``pairs`` lose their beginning under their own condition, being longer than the
    checkpoint has positions. Its tokenizer is loaded only where some might be."""
    positions = size_of(PreTrainedConfig.get_config_dict(reward_model)[0], POSITIONS) or math.inf
    conditions = load_conditions(reward_model).prompts
    sides = [
        (conditions.get(pair.domain, ""), messages, finished)
        for pair in pairs
        for messages, finished in ((pair.chosen, pair.chosen_finished), (pair.rejected, pair.rejected_finished))
        if may_fill([Message(role="system", content=conditions.get(pair.domain, "")), *messages], positions)
    ]
    if not sides:
        return []
    tokenizer = load_tokenizer(reward_model)
    lengths = [
        len(encode_reward(tokenizer, said, prompt or None, closed, sys.maxsize)) for prompt, said, closed in sides
    ]
    count = sum(length > positions for length in lengths)
    told = f"{count} of the {2 * len(pairs)} dialogues of test pairs are longer than the reward model has positions"
    return [f"{told}: it reads their ends alone"] if count else []


def _doubtful(pairs: Sequence[PreferencePair]) -> list[str]:
    """What a test set holds that makes its numbers worth less."""
    seen: dict[tuple[str, str], set[bool]] = defaultdict(set)
    repeated = 0
    for pair in pairs:
        key, swapped = pair_key(pair.chosen, pair.rejected, pair.chosen_finished, pair.rejected_finished)
        repeated += swapped in seen[pair.domain, key]
        seen[pair.domain, key].add(swapped)
    both = sum(len(labels) > 1 for labels in seen.values())
    notes = [f"{repeated} of the test pairs stand there more than once"] if repeated else []
    return notes + (
        [f"{both} test pairs are labelled both ways in their domain: half of each is missed"] if both else []
    )


def _apart(
    training: Sequence[PreferencePair], test: Sequence[PreferencePair], trained: Inputs, notes: list[str]
) -> Sequence[PreferencePair]:
    """The training pairs whose prompt no test pair has."""
    prompts = {_key(pair.chosen[:-1], trained) for pair in test}
    learnt = {key for pair in training if (key := _key(pair.chosen[:-1], trained)) in prompts}
    if not learnt:
        return training
    notes.append(
        f"{len(learnt)} of {len(prompts)} test prompts stand in the training pairs: the model has learnt from them"
    )
    return [pair for pair in training if _key(pair.chosen[:-1], trained) not in learnt]


def _key(prompt: Conversation, inputs: Inputs) -> str:
    """The same whether or not the system turn that ``inputs`` gives the policy stands in front."""
    return prompt_key(without_system_turn(prompt, inputs.config.sampling.system_prompt))


def _training(inputs: Inputs, notes: list[str]) -> Sequence[PreferencePair]:
    """The run's training pairs, those that it sampled among them. Without a baseline to be fitted to them, they only
    tell what was learnt, and may be gone."""
    wanted = bool(inputs.config.evaluate.baseline_pairs)
    try:
        pairs = _training_pairs(inputs)
    except UserError as error:
        if wanted:
            raise
        notes.append(f"whether test prompts stand in the training pairs cannot be told: {error}")
        return []
    if wanted and not pairs:
        notes.append("no n-gram baseline: data.preferences is empty, and it is fitted to training pairs")
    return pairs


def _training_pairs(inputs: Inputs) -> Sequence[PreferencePair]:
    config = inputs.config
    reading = replace(Reading.of(config), domains=None)
    pairs: list[PreferencePair] = []
    if config.data.preferences:
        made = RunState(Path(config.output_dir)).settings("reward_0").get("data", {})
        apart = {key: made.get(key, []) for key in TEST_ROWS}  # those that the run was told of before it learnt
        seed = derive_seed(config.seed, "preferences")
        pairs += load_split(replace(config.data, **apart), validation_share(config), reading, seed).training
    elif config.data.world is not None:
        pairs += inputs.world.preferences
    collected = outputs(config)["collect"]
    if collected.exists() and collected.stat().st_size:
        pairs += load_preferences([str(collected)], replace(reading, sampled=True))
    return pairs


def _taught_in_rounds(trained: Inputs) -> set[str]:
    """Keys of the prompts of the patches and labels that the reward model was trained on with between rounds."""
    folders = round_folders(Path(trained.config.output_dir))
    repairs = [json.loads(f.repair.read_text(encoding="utf-8")) if f.repair.exists() else {} for f in folders]
    learnt = {label for repair in repairs for label in repair.get("labels", ())}
    taught = [row["prompt"] for f in folders for row in read_json_lines(f.labels) if row["id"] in learnt]
    for place, folder in enumerate(folders):
        kept = {pattern for repair in repairs[place:] for pattern in repair.get("kept", ())}
        patches = [patch for patch in read_patches(folder.patches) if patch.pattern in kept and not patch.held_out]
        taught += [patch.pair.chosen[:-1] for patch in patches]
    return {_key(prompt, trained) for prompt in taught}


def _taught_note(what: str, prompts: set[str], taught: set[str]) -> list[str]:
    count = len(prompts & taught)
    told = f"{count} of {len(prompts)} {what} stand in patches or labels of the rounds: the reward model has learnt"
    return [f"{told} from them"] if count else []


def _prompts(inputs: Inputs, trained: Inputs, notes: list[str]) -> tuple[Sequence[Prompt], str, GoldRule]:
    config, data, own = inputs.config, inputs.config.data, trained.config.data
    if not config.evaluate.samples_per_prompt:
        notes.append("no responses: there is no SFT model, there are no prompts, or evaluate.samples_per_prompt is 0")
        return [], "none", inputs.rule_score
    if data.test_prompts:
        notes += _left_out("prompts", config)
        asked = _once_each(inputs.load_prompts(data.test_prompts, held_out_reading(config)), notes)
        notes += _learnt(asked, inputs, trained)
        return asked, "data.test_prompts", inputs.rule_score
    named = (data.prompts, data.validation_prompts)
    if any(named) and named != (own.prompts, own.validation_prompts):
        notes.append(
            "data.prompts and data.validation_prompts are not those that the run was trained with: what it held out is "
            "asked; name others in data.test_prompts"
        )
    if own.prompts or own.validation_prompts:
        notes.append("the prompts are those of validation, by which the best policy was chosen")
        return _once_each(_validation(inputs, trained, notes), notes), "validation prompts", inputs.rule_score
    return inputs.addressed(inputs.world.test), "the embedded world's test prompts", trained.gold_score


def _validation(inputs: Inputs, trained: Inputs, notes: list[str]) -> Sequence[Prompt]:
    """The prompts that the run has held out, as the policy is to be asked them now, but for those of test rows."""
    tested = {_key(messages, trained) for messages in tested_prompts(inputs.config.data, Reading.of(inputs.config))}
    held = [prompt for prompt in trained.validation if _key(prompt.messages, trained) not in tested]
    if left := len(trained.validation) - len(held):
        notes.append(f"{left} of the prompts that the run held out are not asked, since test rows have them")
    system = trained.config.sampling.system_prompt
    return inputs.addressed([replace(prompt, messages=without_system_turn(prompt.messages, system)) for prompt in held])


def _learnt(asked: Sequence[Prompt], inputs: Inputs, trained: Inputs) -> list[str]:
    """How many of the test prompts the run was asked in training; none where it was told of them before."""
    if trained.config == inputs.config:
        return []
    try:
        learnt = {_key(prompt.messages, trained) for prompt in trained.prompts}
    except UserError as error:  # its rows may be gone by now, and are not what is evaluated on
        return [f"whether the run was asked test prompts in training cannot be told: {error}"]
    count = sum(_key(prompt.messages, inputs) in learnt for prompt in asked)
    told = f"{count} of {len(asked)} test prompts were asked in training: the policy has learnt from them"
    return [told] if count else []


def _once_each(prompts: Sequence[Prompt], notes: list[str]) -> list[Prompt]:
    """One that is listed twice would be answered twice as often as the others, and count as one with more answers."""
    once = list({prompt.id: prompt for prompt in prompts}.values())
    if len(once) < len(prompts):
        notes.append(f"{len(prompts) - len(once)} prompts that are listed again are asked once")
    return once
