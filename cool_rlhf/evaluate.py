"""stage=evaluate: how well the reward model judges and what PPO changed, on rows that no stage has learnt from.

Nothing of the run is altered but evaluation.json, whose structure docs/evaluation.md describes, and the report that
shows it; so it may be repeated, and with other settings than the run's.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from cool_rlhf.comparison import Judged, Table, best_of, differences, means
from cool_rlhf.config import Config
from cool_rlhf.data.loading import Reading, load_preferences, load_prompts
from cool_rlhf.evaluation_tables import describe
from cool_rlhf.inputs import Inputs, gold_of, no_gold
from cool_rlhf.ppo.experience import to_score
from cool_rlhf.preflight import FinishedModels, finished_models, machine_resources
from cool_rlhf.protocols import PreferencePair, Prompt, Rollout, Scorer, UserError
from cool_rlhf.roles.cluster import cluster
from cool_rlhf.roles.group import build_all, start_group
from cool_rlhf.roles.sampler import RolloutGroup
from cool_rlhf.roles.scorer import RemoteScorer, ScorerWorker
from cool_rlhf.roles.worker import ModelSpec
from cool_rlhf.schedule import derive_seed
from cool_rlhf.tracking import setup_logging, write_report
from cool_rlhf.tracking.rows import write_atomically
from reward.evaluation import DomainAccuracy, accuracy_by_condition
from reward.scoring import load_conditions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """What is evaluated on."""

    prompts: Sequence[Prompt]
    prompts_from: str
    gold: Callable[[Rollout], float | None]
    preferences: Sequence[PreferencePair]
    opposed: Sequence[PreferencePair]  # each pair of answers under two domains that judge them oppositely
    notes: list[str]  # what is missing or to be kept in mind

    @classmethod
    def of(cls, config: Config) -> HeldOut:
        """The user's test rows, and where none are named: validation prompts, or the embedded world's test rows."""
        data, inputs, reading = config.data, Inputs(config), Reading.of(config)
        notes: list[str] = []
        preferences: Sequence[PreferencePair] = []
        opposed: Sequence[PreferencePair] = []
        if data.test_preferences:
            preferences = load_preferences(data.test_preferences, reading)
        elif data.world is not None and not data.preferences:
            preferences, opposed = inputs.world.preference_test, inputs.world.opposed_test
        else:
            notes.append("no accuracy of the reward model: data.test_preferences is empty")
        if data.test_prompts:
            prompts, source, gold = load_prompts(data.test_prompts, reading), "data.test_prompts", no_gold
        elif data.prompts or data.validation_prompts:
            prompts, source, gold = inputs.validation, "validation prompts", no_gold
            notes.append("the prompts are those of validation, by which the best policy was chosen")
        else:
            prompts, source, gold = inputs.world.test, "the embedded world's test prompts", gold_of
        return cls(prompts, source, gold, preferences, opposed, notes)


def evaluate(config: Config, watched: AbstractContextManager[None]) -> None:
    """Measure the models that ``config.output_dir`` holds; see :func:`finished_models` for which. ``watched`` meets an
    error before anything is closed.

    Raises:
        UserError: there are none.
    """
    began = time.monotonic()
    output = Path(config.output_dir)
    setup_logging(output)
    models = finished_models(config)
    if models is None:
        raise UserError(
            f"there is nothing to evaluate: {output} holds no SFT or no reward model; run the same command without "
            "stage=evaluate first, or name finished models with sft.path and reward.path"
        )
    held_out = HeldOut.of(config)
    machine = machine_resources(config)
    with cluster(config.cluster, machine.cpus, machine.gpus), watched:
        measured = measure(config, models, held_out)
    result = {**header(config, models, held_out), "seconds": round(time.monotonic() - began, 1), **measured}
    write_atomically(output / "evaluation.json", (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    write_report(output)
    print(describe(result))
    print(f"written to {output / 'evaluation.json'}")


def header(config: Config, models: FinishedModels, held_out: HeldOut) -> dict[str, Any]:
    """What was evaluated, on what, and how."""
    return {
        "experiment": config.experiment,
        "seed": config.seed,
        "prompts": len(held_out.prompts),
        "prompts_from": held_out.prompts_from,
        "notes": held_out.notes + ([] if models.chat_model else ["no policy of PPO: the run has not come so far"]),
        "models": asdict(models),
        "settings": {**asdict(config.evaluate), **asdict(config.sampling)},
    }


def measure(config: Config, models: FinishedModels, held_out: HeldOut) -> dict[str, Any]:
    """Every table of evaluation.json; needs a running cluster. The reward model works while the engines sample."""
    settings = config.evaluate
    seed = derive_seed(config.seed, "evaluate")
    engines = RolloutGroup(config, models.sft, version=0)
    sampled = sample(engines, held_out.prompts, settings.samples_per_prompt, seed)
    more = sample(engines, held_out.prompts, settings.best_of, derive_seed(seed, "best of"))
    role = config.cluster.scorer
    reward_model = ModelSpec(models.reward_model, "scalar", config.model.dtype)
    scorer = RemoteScorer(build_all([start_group(ScorerWorker, role, reward_model, None)])[0])
    tables = accuracies(scorer, models.reward_model, held_out)
    before, candidates = sampled.result(), more.result()
    engines.stop()
    sft = judge(scorer, before, held_out.gold)
    tables["sft"] = plain(means(sft))
    if models.chat_model is not None:
        engines = RolloutGroup(config, models.chat_model, version=0)
        after = sample(engines, held_out.prompts, settings.samples_per_prompt, seed).result()
        chat_model = judge(scorer, after, held_out.gold)
        tables["chat_model"] = plain(means(chat_model))
        tables["difference"] = plain(differences(sft, chat_model))
        engines.stop()
    if candidates:
        tables |= best(judge(scorer, candidates, held_out.gold), settings.best_of)
    return tables


def sample(engines: RolloutGroup, prompts: Iterable[Prompt], each: int, seed: int) -> Any:
    """``each`` responses to every prompt, under way; the same seeds for whatever model the engines hold."""
    repeated = [prompt for prompt in prompts for _ in range(each)]
    return engines.sampler.sample(repeated, seed=seed, version=0)


def accuracies(scorer: Scorer, reward_model: str, held_out: HeldOut) -> dict[str, Any]:
    """Accuracy by domain with its own, each other and no condition; opposed pairs under the domains they are of."""
    # A condition whose prompt is empty scores as none does.
    conditions = [domain for domain, prompt in load_conditions(reward_model).prompts.items() if prompt]
    tables: dict[str, Any] = {}
    for name, pairs, tried in (
        ("reward_accuracy", held_out.preferences, conditions),
        ("opposed_accuracy", held_out.opposed, [pair.domain for pair in held_out.opposed]),
    ):
        if pairs:
            rows = accuracy_by_condition(lambda asked: scorer.score(asked).result(), pairs, tried)
            tables[name] = {domain: accuracy_row(row) for domain, row in rows.items()}
            if name == "reward_accuracy":
                by_condition = {domain: asdict(row)["others"] for domain, row in rows.items() if row.others}
                tables["reward_accuracy_under_others"] = by_condition
    return tables


def accuracy_row(row: DomainAccuracy) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name != "others" and value is not None}


def judge(scorer: Scorer, rollouts: Sequence[Rollout], gold: Callable[[Rollout], float | None]) -> list[Judged]:
    """Each response scored under its own domain's condition and, where there is one, by the gold rule."""
    scores = scorer.score([to_score(rollout) for rollout in rollouts]).result()
    return [
        Judged(
            rollout.prompt.id,
            rollout.prompt.domain,
            score,
            gold(rollout),
            len(rollout.response_tokens),
            rollout.finished,
        )
        for rollout, score in zip(rollouts, scores, strict=True)
    ]


def best(candidates: Sequence[Judged], count: int) -> dict[str, Any]:
    """The best of ``count`` SFT responses by the reward model, and by gold where every prompt has it: the headroom."""
    tables = {f"sft_best_of_{count}_by_score": plain(means(best_of(candidates, attrgetter("score"))))}
    with_gold = [response for response in candidates if response.gold is not None]
    if with_gold:
        tables[f"sft_best_of_{count}_by_gold"] = plain(means(best_of(with_gold, attrgetter("gold"))))
    return tables


def plain(table: Table) -> dict[str, Any]:
    """As JSON holds it: how many prompts once for each row, then mean and standard error of each measure."""
    return {
        name: {
            "prompts": max(estimate.prompts for estimate in row.values()),
            **{
                measure: {"mean": estimate.mean, "standard_error": estimate.standard_error}
                for measure, estimate in row.items()
            },
        }
        for name, row in table.items()
    }
