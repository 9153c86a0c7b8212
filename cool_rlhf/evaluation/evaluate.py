"""stage=evaluate: how well the reward model judges and what PPO changed, on rows that no stage has learnt from.

It writes evaluation.json, whose structure docs/evaluation.md describes, evaluation.html and, where there are metrics,
report.html, and adds to logs/run.log. Nothing else of the run is altered; so it may be repeated, and with other
settings than the run's.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from cool_rlhf.config import Config
from cool_rlhf.data.rows import DEFAULT_DOMAIN
from cool_rlhf.evaluation.comparison import (
    OVERALL,
    WITH_GOLD,
    JudgedResponse,
    Table,
    best_of,
    differences,
    expected_best_of,
    means,
)
from cool_rlhf.evaluation.held_out import HeldOut, read_in_part
from cool_rlhf.evaluation.page import write_evaluation_page
from cool_rlhf.evaluation.reward_model import Judge, judge_pairs, opposed_rows, reward_tables
from cool_rlhf.evaluation.tables import describe
from cool_rlhf.files import write_atomically
from cool_rlhf.ppo.experience import to_score
from cool_rlhf.preflight import FinishedModels, finished_models, machine_resources
from cool_rlhf.protocols import Future, Prompt, Rollout, Scorer, UserError
from cool_rlhf.roles.cluster import cluster
from cool_rlhf.roles.group import build_all, create_workers, start_group
from cool_rlhf.roles.sampler import RolloutGroup, create_engines
from cool_rlhf.roles.scorer import RemoteScorer, ScorerWorker
from cool_rlhf.roles.worker import ModelSpec
from cool_rlhf.schedule import derive_seed
from cool_rlhf.stages.inputs import GoldRule
from cool_rlhf.tracking import read_metrics, setup_logging, write_report
from cool_rlhf.tracking.evaluated import STAMP, stamp
from reward.conditions import Conditions
from reward.evaluation import Score, ScoredPairs
from reward.scoring import load_conditions, load_score_bound
from reward.statistics import best_of_kl, powers_up_to

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """Scores, before anything is made of them; empty where there was nothing to measure."""

    preferences: ScoredPairs | None
    opposed: ScoredPairs | None
    sft: Sequence[JudgedResponse]
    chat_model: Sequence[JudgedResponse]
    candidates: Sequence[JudgedResponse]  # ``evaluate.best_of`` responses of the SFT model to each prompt


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
    config = with_own_bound(config, models.reward_model)
    held_out = HeldOut.of(config)
    machine = machine_resources(config)
    with cluster(config.cluster, machine.cpus, machine.gpus), watched:
        measured = measure(config, models, held_out)
    result = {**header(config, models, held_out), **tables(config, held_out, measured)}
    result["seconds"] = round(time.monotonic() - began, 1)
    write_atomically(output / "evaluation.json", (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    write_evaluation_page(output)
    if (output / "metrics.jsonl").exists():
        write_report(output)
    print(describe(result))
    print(f"written to {output / 'evaluation.json'} and {output / 'evaluation.html'}")


def with_own_bound(config: Config, reward_model: str) -> Config:
    """``config`` with the bound that the reward model was trained with, where its checkpoint says so: it may be one of
    another run."""
    bound = load_score_bound(reward_model)
    return config if bound is None else replace(config, reward=replace(config.reward, bound=bound))


def header(config: Config, models: FinishedModels, held_out: HeldOut) -> dict[str, Any]:
    """What was evaluated, when, on what, and how."""
    notes = list(held_out.notes)
    if held_out.prompts and models.chat_model is None:
        notes.append("no policy of PPO: the run has not come so far")
    without = without_condition(load_conditions(models.reward_model), held_out)
    if without:
        notes.append(f"judged without a condition, as the reward model has none for them: {', '.join(without)}")
    notes += read_in_part(held_out.preferences, models.reward_model)
    return {
        "experiment": config.experiment,
        STAMP: stamp(read_metrics(Path(config.output_dir) / "metrics.jsonl")),
        "seed": config.seed,
        "prompts": len(held_out.prompts),
        "prompts_from": held_out.prompts_from,
        "notes": notes,
        "models": asdict(models),
        "settings": {**asdict(config.evaluate), **asdict(config.sampling)},
    }


def without_condition(conditions: Conditions, held_out: HeldOut) -> list[str]:
    """The domains of rows that the reward model has no condition for, but for ``default``, which needs none."""
    domains = {row.domain for rows in (held_out.preferences, held_out.opposed, held_out.prompts) for row in rows}
    return sorted(domain for domain in domains - {DEFAULT_DOMAIN} if not conditions.prompts.get(domain))


def measure(config: Config, models: FinishedModels, held_out: HeldOut) -> Measured:
    """Everything that takes a model; needs a running cluster. The reward model works while the engines sample."""
    settings = config.evaluate
    seed = derive_seed(config.seed, "evaluate")
    sft, chat_model, candidates = (Responses(held_out.gold) for _ in range(3))
    engines = None
    if held_out.prompts and models.sft is not None:
        engines = RolloutGroup(create_engines(config), config, models.sft, version=0)
        engines.settle()
        sft.sample(engines, held_out.prompts, settings.samples_per_prompt, seed)
        candidates.sample(engines, held_out.prompts, settings.best_of, derive_seed(seed, "best of"))
    judge = Judge(
        start_scorer(config, models.reward_model), load_conditions(models.reward_model), config.logging.progress
    )
    logger.info("scoring %d pairs", len(held_out.preferences) + len(held_out.opposed))
    preferences = judge_pairs(judge, held_out.preferences) if held_out.preferences else None
    opposed = judge_pairs(judge, held_out.opposed) if held_out.opposed else None
    if engines is not None:
        sft.wait()
        candidates.wait()
        engines.stop()
    if held_out.prompts and models.chat_model is not None:
        engines = RolloutGroup(create_engines(config), config, models.chat_model, version=0)
        chat_model.sample(engines, held_out.prompts, settings.samples_per_prompt, seed)
        chat_model.wait()
        engines.stop()
    judged = [responses.judged(judge) for responses in (sft, chat_model, candidates)]
    return Measured(preferences, opposed, *judged)


def tables(config: Config, held_out: HeldOut, measured: Measured) -> dict[str, Any]:
    """Every table of evaluation.json."""
    found: dict[str, Any] = {}
    seed = derive_seed(config.seed, "evaluate", "statistics")
    if measured.preferences is not None:
        found |= reward_tables(
            measured.preferences,
            held_out.training,
            bound=config.reward.bound,
            seed=seed,
            baseline_pairs=config.evaluate.baseline_pairs,
        )
    if measured.opposed is not None:
        found["opposed_accuracy"] = opposed_rows(measured.opposed)
    if measured.sft:
        found["sft"] = plain(means(measured.sft))
    if measured.chat_model:
        found["chat_model"] = plain(means(measured.chat_model))
        found["difference"] = plain(differences(measured.sft, measured.chat_model))
    if measured.candidates:
        found |= best(measured.candidates, config.evaluate.best_of)
    return found


def start_scorer(config: Config, path: str) -> Scorer:
    """As ``RewardModel`` would load it: on a CPU in float32, whatever precision it was trained in."""
    role = config.cluster.scorer
    dtype = config.model.dtype if role.gpus else "float32"
    model = ModelSpec(path, "scalar", dtype, micro_batch_tokens=config.ppo.micro_batch_tokens)
    return RemoteScorer(build_all([start_group(create_workers(ScorerWorker, role), model, None)])[0])


@dataclass
class Responses:
    """One model's responses, from the request to their scores; none where none are asked for."""

    gold: GoldRule
    rollouts: Sequence[Rollout] = ()
    _under_way: Future[list[Rollout]] | None = None

    def sample(self, engines: RolloutGroup, prompts: Iterable[Prompt], each: int, seed: int) -> None:
        """``each`` responses to every prompt; the same seeds for whatever model the engines hold."""
        repeated = [prompt for prompt in prompts for _ in range(each)]
        self._under_way = engines.sampler.sample(repeated, seed=seed, version=0) if repeated else None

    def wait(self) -> None:
        """Until all are there; the engines may be stopped then."""
        if self._under_way is not None:
            self.rollouts = self._under_way.result()

    def judged(self, score: Score) -> list[JudgedResponse]:
        return judge(score, self.rollouts, self.gold)


def judge(score: Score, rollouts: Sequence[Rollout], gold: GoldRule) -> list[JudgedResponse]:
    """Each response scored under its own domain's condition and, where there is one, by the gold rule."""
    scores = score([to_score(rollout) for rollout in rollouts])
    return [
        JudgedResponse(
            rollout.prompt.id,
            rollout.prompt.domain,
            score,
            gold(rollout.prompt, rollout.response, rollout.finished),
            len(rollout.response_tokens),
            rollout.finished,
        )
        for rollout, score in zip(rollouts, scores, strict=True)
    ]


def best(candidates: Sequence[JudgedResponse], count: int) -> dict[str, Any]:
    """The best of ``count`` SFT responses by the reward model, and on the prompts that have gold by that: the headroom.
    Besides, the same for fewer of them."""
    with_gold = [response for response in candidates if response.gold is not None]
    judges: dict[str, tuple[Sequence[JudgedResponse], Callable[[JudgedResponse], float]]] = {
        "score": (candidates, attrgetter("score"))
    }
    if with_gold:
        judges["gold"] = (with_gold, attrgetter("gold"))

    def told(table: Table) -> dict[str, Any]:
        if 0 < len(with_gold) < len(candidates):
            table.setdefault(WITH_GOLD, table[OVERALL])  # by gold these are all: both judges have a row of them
        return plain(table)

    found: dict[str, Any] = {}
    for name, (responses, value) in judges.items():
        found[f"sft_best_of_{count}_by_{name}"] = told(means(best_of(responses, value)))
    found["best_of_n"] = {
        f"by_{name}": {
            str(n): {"kl": best_of_kl(n), "domains": told(expected_best_of(responses, value, n))}
            for n in powers_up_to(count)
        }
        for name, (responses, value) in judges.items()
    }
    return found


def plain(table: Table) -> dict[str, Any]:
    """As JSON holds it: how many prompts once for each row, then mean and standard error of each measure, and how many
    prompts it is over where these are fewer."""
    found: dict[str, Any] = {}
    for name, row in table.items():
        prompts = max(estimate.prompts for estimate in row.values())
        found[name] = {"prompts": prompts}
        for measure, estimate in row.items():
            found[name][measure] = {"mean": estimate.mean, "standard_error": estimate.standard_error}
            if estimate.prompts < prompts:
                found[name][measure]["prompts"] = estimate.prompts
    return found
