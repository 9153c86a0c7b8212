"""The stages of a run: each starts its roles, lets the method run on them, and leaves checkpoints behind."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from cool_rlhf.checkpoint import RunState, copy_checkpoint
from cool_rlhf.checks.settings import without_effect
from cool_rlhf.config import Config, RewardConfig
from cool_rlhf.data.labelling import Answer, collect_pairs
from cool_rlhf.data.streams import token_batches
from cool_rlhf.derived_settings import has_paths, judged_as, shown_config
from cool_rlhf.files import write_atomically
from cool_rlhf.folders import RoundFolder, recover
from cool_rlhf.models.loading import checkpoint_folder, load_tokenizer, longest_sequence
from cool_rlhf.online.lessons import read_lessons
from cool_rlhf.ppo.collaborators import Models
from cool_rlhf.ppo.loop import train_ppo
from cool_rlhf.preflight import machine_resources
from cool_rlhf.provenance import open_state, outputs, unfinished
from cool_rlhf.roles.cluster import check_shared, cluster
from cool_rlhf.roles.critic import RemoteCritic
from cool_rlhf.roles.group import WorkerGroup
from cool_rlhf.roles.policy import RemotePolicy
from cool_rlhf.roles.trainer import RemoteRewardTrainer, RemoteSFTTrainer, RewardWorker, SFTWorker
from cool_rlhf.roles.worker import ModelSpec
from cool_rlhf.rules.loading import load_named
from cool_rlhf.schedule import derive_seed
from cool_rlhf.sft import train_sft
from cool_rlhf.stages.answers import Payer, beside_start, gold_rises, means, read_responses
from cool_rlhf.stages.data import StageData, write_pairs
from cool_rlhf.stages.inputs import Inputs
from cool_rlhf.stages.ledger import Ledger
from cool_rlhf.stages.new_pairs import new_pairs
from cool_rlhf.stages.observers import PPOObserver, SupervisedObserver, saved_start
from cool_rlhf.stages.online import (
    Answerers,
    answer_prompts,
    checkpoints_of,
    clear_paths,
    fast_path,
    response_gold,
    slow_path,
)
from cool_rlhf.stages.repair import Repairing, judged_from, replayed_from, write_repair
from cool_rlhf.stages.roles import Checkpoints, StageRoles
from cool_rlhf.tracking import Tracker, setup_logging
from reward.conditions import DEFAULT_DOMAIN, Conditions
from reward.preparation import Prepared, prepare
from reward.scoring import CONDITION_JOIN
from reward.summary import describe
from reward.training import train_reward

logger = logging.getLogger(__name__)


@contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """A run in ``config.output_dir``, with Ray and the tracker up. Whatever ends it, nothing of it is left running."""
    output = Path(config.output_dir)
    state = open_state(config)
    for made in outputs(config).values():
        recover(made)
    setup_logging(output)
    write_atomically(output / "config.yaml", yaml.safe_dump(shown_config(config), sort_keys=False).encode())
    machine = machine_resources(config)
    with Tracker(config, output) as tracker, cluster(config.cluster, machine.cpus, machine.gpus):
        if config.cluster.address is not None:
            check_shared(output)
        run = Run(config, state, tracker)
        logger.info("run in %s, stage %s", output, config.stage)
        yield run


class Run:
    """The stages of one run. A finished stage is not repeated; a saved step of PPO is gone on from."""

    def __init__(self, config: Config, state: RunState, tracker: Tracker) -> None:
        self.config = config
        self.rounds = config.online.rounds
        self.inputs = Inputs(config)
        self.output = Path(config.output_dir)
        self._state = state
        self._tracker = tracker
        self._ledger = Ledger(config, state, tracker, self.inputs.tokens)
        self._outputs = outputs(config)
        self._checkpoints = Checkpoints(config)
        self._data = StageData(config, self.inputs)
        self._roles = StageRoles(config)
        self._answerers: Answerers | None = None  # of the round of PPO that has just ended

    def sft(self) -> None:
        """Supervised fine-tuning from ``model.path``, or from fresh weights."""
        config = self.config
        if config.sft.path is not None:
            return
        start = self._ledger.begin("sft")
        if start is None:
            return
        self._roles.prepare("sft")
        self._tracker.prepare("sft", 0, "reading chats")
        own = self.output / "state" / "base"
        # What is gone on with keeps its tokenizer: texts that have changed since would give another.
        base = config.model.path or (str(own) if start else self._data.fresh_base(own))
        chats = self._data.chats(load_tokenizer(base), longest_sequence(base, config.sft.max_length))
        seed = derive_seed(config.seed, "sft")
        steps = len(token_batches([len(c.tokens) for c in chats], config.sft.batch_tokens, seed, config.sft.epochs))
        logger.info("SFT on %d chats in %d steps", len(chats), steps)
        self._tracker.prepare("sft", 0, "starting trainer")
        group = self._roles.trainer(SFTWorker, ModelSpec(base, "language", config.model.dtype), config.sft)
        with self._tracker.stage("sft", 0, steps) as stage:
            trainer = RemoteSFTTrainer(group, config.sft.micro_batch_tokens)
            observer = SupervisedObserver(self._tracker, stage, self._state, "sft", group)
            self._prepare_next()
            if config.model.path is None:  # the vocabulary of a named one may grow in training
                self._roles.start_rollouts(base)
            self._go_on("sft", group)
            train_sft(trainer, chats, config.sft, seed=seed, observer=observer, start=start)
            stage.phase("export")
            group.all("export", self._checkpoints.sft, None, None)
            group.stop()
        self._state.finish("sft")
        self._state.drop_snapshots("sft")

    def collect(self) -> None:
        """Preferences among samples of the SFT model, labelled by a rule, join the given ones."""
        config, settings = self.config, self.config.collect
        if settings.prompts == 0 or config.reward.path is not None or self._ledger.begin("collect") is None:
            return
        prompts = list(self.inputs.prompts)
        random.Random(derive_seed(config.seed, "collect", "prompts")).shuffle(prompts)
        prompts = prompts[: settings.prompts]
        label = load_named(settings.labeller, "collect.labeller")
        self._tracker.prepare("collect", 0, "starting rollout engine")
        rollouts = self._roles.rollouts(self._checkpoints.sft)
        rollouts.wait()
        with self._tracker.stage("collect", 0, 1) as stage:
            stage.phase("generate")
            self._prepare_next()
            seed = derive_seed(config.seed, "collect")
            each = settings.samples_per_prompt
            repeated = [prompt for prompt in prompts for _ in range(each)]
            sampled = rollouts.sampler.sample(repeated, seed=seed, version=0).result()
            answers = [Answer(rollout.response, rollout.finished) for rollout in sampled]
            grouped = [answers[k : k + each] for k in range(0, len(answers), each)]
            pairs = collect_pairs(
                prompts,
                grouped,
                label,
                noise=settings.label_noise,
                pairs_per_prompt=settings.pairs_per_prompt,
                seed=seed,
                least_gap=settings.least_gap,
                judged_as=judged_as(config),
            )
            write_pairs(self._outputs["collect"], pairs)
            stage.record(1, {"prompts": len(prompts), "pairs": len(pairs)})
            self._roles.release_rollouts(rollouts)
        self._state.finish("collect")

    def reward_model(self) -> None:
        """The conditional reward model of the first round, from SFT weights."""
        config = self.config
        if config.reward.path is not None:
            return
        start = self._ledger.begin("reward_0")
        if start is None:
            return
        self._roles.prepare("reward")
        self._tracker.prepare("reward", 0, "reading preferences")
        seed = derive_seed(config.seed, "reward", 0)
        prepared = self._prepared_pairs(seed)
        pairs = prepared.training
        steps = len(token_batches([len(p) for p in pairs], config.reward.batch_tokens, seed, config.reward.epochs))
        logger.info("reward model on %d pairs in %d steps", len(pairs), steps)
        model = ModelSpec(self._checkpoints.sft, "scalar", config.model.dtype, head="fresh", seed=seed)
        self._tracker.prepare("reward", 0, "starting trainer")
        group = self._roles.trainer(RewardWorker, model, config.reward)
        with self._tracker.stage("reward", 0, steps) as stage:
            trainer = RemoteRewardTrainer(group, config.reward)
            self._prepare_next()
            self._go_on("reward_0", group)
            train_reward(
                trainer,
                pairs,
                config.reward,
                seed=seed,
                observer=SupervisedObserver(self._tracker, stage, self._state, "reward_0", group),
                start=start,
                validation=prepared.validation,
            )
            stage.phase("export")
            self._export_reward(group, self._checkpoints.reward(0))
            self._roles.standby.give_back(RewardWorker, group)
        self._state.finish("reward_0")
        self._state.drop_snapshots("reward_0")

    def online(self, round: int) -> None:
        """The fast and the slow path after ``round``: what its policy cheats with, and what is to be labelled."""
        config, name = self.config, f"online_{round}"
        if not has_paths(config):
            return
        folder = RoundFolder(self.output, round)
        resumed = self._ledger.is_begun(name)
        if not resumed:  # before it has begun: whoever finds it begun goes on from what is there
            clear_paths(folder)
        if self._ledger.begin(name) is None:
            return
        self._tracker.prepare("online", round, "starting rollout engine, reference, scorer")
        roles = self._answerers or self._roles.answerers(round)
        with self._tracker.stage("online", round, 1) as stage:
            stage.phase("answers")
            checkpoints = checkpoints_of(self._checkpoints.sft, folder)
            gold = response_gold(self.inputs)
            payer = Payer(roles.scorer, self.inputs.recipes)
            responses = answer_prompts(
                config, roles, self.inputs.round_prompts, checkpoints, payer, gold, round, resumed=resumed
            )
            self._roles.prepare("reward")
            metrics = means(responses, round)
            if config.online.fast_path:
                stage.phase("fast path")
                learnt = [
                    *replayed_from(self._data.preferences().training, config),
                    *judged_from(self.inputs.judging_pairs, config),
                ]
                metrics |= fast_path(config, responses, payer, gold, learnt, round)
            if config.online.pairs or config.online.review:
                stage.phase("slow path")
                metrics |= slow_path(config, responses, payer, round)
            stage.record(1, metrics)
            self._roles.release_answerers(roles)
        self._answerers = None
        self._state.finish(name)

    def next_reward_model(self, round: int) -> None:
        """The reward model after ``round``: the one before, trained on with patches, labels and replay."""
        config = self.config
        name = f"reward_{round + 1}"
        if self._ledger.begin(name) is None:
            return
        before, after = self._checkpoints.reward(round), Path(self._checkpoints.reward(round + 1))
        folder = RoundFolder(self.output, round)
        folder.repair.unlink(missing_ok=True)  # of a repair that is made again: there may be nothing to mend now
        self._tracker.prepare("reward", round + 1, "reading preferences")
        new = new_pairs(self.inputs, round) if has_paths(config) else None
        if not new:
            logger.info("nothing new since round %d: its reward model stays", round)
            self._roles.standby.dismiss("reward")
            copy_checkpoint(checkpoint_folder(before), after)
            self._state.finish(name)
            return
        started: list[WorkerGroup] = []

        def start() -> RemoteRewardTrainer:
            for group in started:
                self._roles.standby.give_back(RewardWorker, group)
            model = ModelSpec(before, "scalar", config.model.dtype)
            started[:] = [self._roles.trainer(RewardWorker, model, config.reward)]
            return RemoteRewardTrainer(started[0], config.reward)

        responses = read_responses(folder.responses)
        came_from = self._checkpoints.start_round(round)
        repairing = Repairing(
            replace(config, reward=self._reward_settings()),
            load_tokenizer(self._checkpoints.sft),
            start,
            base=self._data.preferences().training,
            general=self.inputs.judging_pairs,
            lessons=read_lessons(RoundFolder(self.output, past).lessons for past in range(round + 1)),
            round=round,
            beside_start=beside_start(responses, self.inputs.recipes, round, came_from),
            gold_p=gold_rises(responses, round, came_from),
        )
        steps = repairing.steps(new)
        logger.info("reward model of round %d trains on in %d steps", round + 1, steps)
        with self._tracker.stage("reward", round + 1, steps + 1) as stage:
            repair, trainer = repairing.run(new, stage)
            self._prepare_next()
            stage.record(stage.last_step + 1, repair.metrics())
            stage.phase("export")
            self._export_reward(trainer.group, str(after))
            self._roles.standby.give_back(RewardWorker, trainer.group)
        write_repair(folder.repair, repair, new)
        self._state.finish(name)

    def ppo(self, round: int) -> None:
        """PPO under the round's reward model, with a critic that starts from that by default. What ``online`` asks next
        is left running, where there is anything to ask."""
        config, settings = self.config, self.config.ppo
        name = f"ppo_{round}"
        if self._ledger.begin(name) is None:
            return
        for told in without_effect(settings):
            logger.warning(told)
        folder = RoundFolder(self.output, round)
        snapshot, start = saved_start(self._state, name, folder.policy)
        self._tracker.prepare("ppo", round, "reading prompts and texts")
        told = self._checkpoints.described_start(round)
        logger.info(told)
        if round > 0:
            self._tracker.show(told)
        sft = self._checkpoints.sft
        data = self._data.ppo(load_tokenizer(sft), longest_sequence(sft, config.model.max_positions), round)
        self._tracker.prepare("ppo", round, "starting rollout engine, policy, critic, reference, scorer")
        roles = self._roles.ppo(round)
        models = Models(
            policy=RemotePolicy(roles.policy, settings, config.sampling.temperature, roles.rollouts.engines),
            critic=RemoteCritic(roles.critic, settings),
            reference=roles.answerers.reference,
            scorer=roles.answerers.scorer,
            sampler=roles.rollouts.sampler,
        )
        if snapshot is not None:
            self._tracker.prepare("ppo", round, f"loading step {start.step}")
            roles.load(snapshot)
        with self._tracker.stage("ppo", round, settings.critic_warmup + settings.iterations) as stage:

            def keep(place: Path) -> None:
                roles.policy.all("export", str(place), None, None)

            observer = PPOObserver(self._tracker, stage, self._state, name, roles.trained, keep, folder)
            train_ppo(
                models,
                data,
                settings,
                seed=derive_seed(config.seed, "ppo", round),
                observer=observer,
                start=start,
            )
            if settings.keep_critic:
                stage.phase("export")
                roles.critic.all("export", str(folder.critic), None, None)
            self._roles.release_trained(roles)
        self._state.finish(name)
        if has_paths(config):
            self._answerers = roles.answerers
        else:
            self._roles.release_answerers(roles.answerers)

    def export(self) -> None:
        """The best policy of the last round is the run's chat model."""
        name = f"export_{self.rounds}"
        if self._ledger.begin(name) is None:
            return
        copy_checkpoint(self._outputs[f"ppo_{self.rounds - 1}"], self._outputs[name])
        self._state.finish(name)

    def _prepare_next(self) -> None:
        """Start the processes of the stage after this one."""
        for name in unfinished(self.config, self._state)[1:2]:
            self._roles.prepare(name.partition("_")[0])

    def _go_on(self, name: str, group: WorkerGroup) -> None:
        """Have a supervised stage's ranks load its snapshot, if there is one."""
        snapshot = self._state.snapshot(name)
        if snapshot is not None:
            logger.info("%s goes on after step %d", name, snapshot[1]["step"])
            group.all("load", str(snapshot[0] / "trainer"))

    def _export_reward(self, group: WorkerGroup, folder: str) -> None:
        config = self.config
        group.all("export", folder, dict(config.conditions), CONDITION_JOIN, config.reward.bound)

    def _reward_settings(self) -> RewardConfig:
        """``reward``, with no longer pairs than the model has positions: scorers cut what is longer, so training does
        too."""
        longest = longest_sequence(self._checkpoints.sft, self.config.reward.max_length)
        return replace(self.config.reward, max_length=longest)

    def _prepared_pairs(self, seed: int) -> Prepared:
        """What the first reward model learns from, with a table of it shown and kept."""
        config, tokenizer = self.config, load_tokenizer(self._checkpoints.sft)
        preferences, settings = self._data.preferences(), self._reward_settings()
        prepared = prepare(tokenizer, Conditions(config.conditions), preferences, settings, seed)
        summary = json.dumps([asdict(entry) for entry in prepared.summary], indent=2, ensure_ascii=False)
        write_atomically(RoundFolder(self.output, 0).preferences, f"{summary}\n".encode())
        described = describe(prepared.summary)
        logger.info("what the reward model learns from\n%s", described)
        self._tracker.show(described)
        taught = {entry.domain for entry in prepared.summary if entry.pairs}
        if untaught := sorted(config.conditions.keys() - taught - {DEFAULT_DOMAIN}):
            logger.warning("no pair teaches the conditions of %s: scores under them say little", ", ".join(untaught))
        return prepared
