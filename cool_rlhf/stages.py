"""The stages of a run: each starts its roles, lets the method run on them, and leaves checkpoints behind."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cool_rlhf.answers import means, write_responses
from cool_rlhf.checkpoint import RunState, copy_checkpoint
from cool_rlhf.config import Config, PPOConfig, RewardConfig, RoleConfig, SFTConfig, has_paths, validation_share
from cool_rlhf.data.loading import Reading, load_preferences
from cool_rlhf.data.preferences import PreferenceSplit, split_pairs
from cool_rlhf.data.streams import TextPosition, TextStream, token_batches
from cool_rlhf.demo.collect import collect_pairs
from cool_rlhf.demo.corruption import Answer
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.inputs import Inputs, gold_of, no_gold
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.loading import fresh_causal_lm, has_scalar_head, load_tokenizer
from cool_rlhf.observers import PPOObserver, SupervisedObserver
from cool_rlhf.online_stage import Answerers, answer_prompts, checkpoints_of, fast_path, slow_path
from cool_rlhf.ppo.collaborators import Data, Models
from cool_rlhf.ppo.loop import train_ppo
from cool_rlhf.ppo.moments import Moments
from cool_rlhf.ppo.state import PPOState
from cool_rlhf.preflight import machine_resources
from cool_rlhf.protocols import PreferencePair
from cool_rlhf.provenance import RESPONSES, is_lost, made_from, open_state, outputs, unfinished
from cool_rlhf.repair_stage import Repairing, new_pairs, write_repair
from cool_rlhf.roles.cluster import cluster
from cool_rlhf.roles.critic import CriticWorker, RemoteCritic
from cool_rlhf.roles.group import StartingGroup, WorkerGroup, build_all, start_group
from cool_rlhf.roles.policy import PolicyWorker, RemotePolicy
from cool_rlhf.roles.reference import LanguageWorker, RemoteLanguageModel
from cool_rlhf.roles.sampler import RolloutGroup
from cool_rlhf.roles.scorer import RemoteScorer, ScorerWorker
from cool_rlhf.roles.standby import Standby
from cool_rlhf.roles.trainer import RemoteRewardTrainer, RemoteSFTTrainer, RewardWorker, SFTWorker
from cool_rlhf.roles.worker import ModelSpec, TrainSpec, Worker
from cool_rlhf.rules.loading import load_rule
from cool_rlhf.schedule import derive_seed
from cool_rlhf.sft import EncodedChat, encode_chats, train_sft
from cool_rlhf.tracking import Tracker, run_plan, setup_logging
from cool_rlhf.tracking.rows import write_atomically
from reward.conditions import Conditions
from reward.preparation import Prepared, prepare
from reward.scoring import CONDITION_JOIN
from reward.summary import describe
from reward.training import train_reward
from rollout.actor import RolloutActor

logger = logging.getLogger(__name__)


@contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """A run in ``config.output_dir``, with Ray and the tracker up. Whatever ends it, nothing of it is left running."""
    output = Path(config.output_dir)
    state = open_state(config)
    setup_logging(output)
    (output / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")
    machine = machine_resources(config)
    with Tracker(config, output) as tracker, cluster(config.cluster, machine.cpus, machine.gpus):
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
        self._settings = made_from(config)
        self._outputs = outputs(config)
        self._standby = Standby(config)
        self._answerers: Answerers | None = None  # of the round of PPO that has just ended
        self._tracker_placed = False

    @property
    def sft_path(self) -> str:
        return self.config.sft.path or str(self._outputs["sft"])

    def reward_path(self, round: int) -> str:
        """The reward model that ``round`` is scored by."""
        if round == 0 and self.config.reward.path is not None:
            return self.config.reward.path
        return str(self._outputs[f"reward_{round}"])

    def policy_start(self, round: int) -> str:
        """What the policy of ``round`` starts from; the reference is the SFT model in any round."""
        goes_on = round > 0 and self.config.online.policy_from == "last"
        return str(self._outputs[f"ppo_{round - 1}"]) if goes_on else self.sft_path

    def sft(self) -> None:
        """Supervised fine-tuning from ``model.path``, or from fresh weights."""
        config = self.config
        if config.sft.path is not None:
            return
        start = self._begin("sft")
        if start is None:
            return
        self._standby.prepare("sft")
        self._tracker.prepare("sft", 0, "reading chats")
        base = config.model.path or self._fresh_base()
        tokenizer = load_tokenizer(base)
        chats = encode_chats(tokenizer, (chat["messages"] for chat in self.inputs.chats), config.sft.max_length)
        if config.model.path is None:
            # Fresh weights have read nothing: they learn the run's plain texts beside its chats.
            chats += [EncodedChat(text, torch.ones_like(text, dtype=torch.bool)) for text in self._texts(tokenizer)]
        steps = len(token_batches([len(c.tokens) for c in chats], config.sft.batch_tokens, 0, config.sft.epochs))
        logger.info("SFT on %d chats in %d steps", len(chats), steps)
        self._tracker.prepare("sft", 0, "starting trainer")
        group = self._train_group(SFTWorker, ModelSpec(base, "language", config.model.dtype), config.sft)
        with self._tracker.stage("sft", 0, steps) as stage:
            trainer = RemoteSFTTrainer(group, config.sft.micro_batch_tokens)
            seed = derive_seed(config.seed, "sft")
            observer = SupervisedObserver(self._tracker, stage, self._state, "sft", group)
            self._prepare_next()
            self._go_on("sft", group)
            train_sft(trainer, chats, config.sft, seed=seed, observer=observer, start=start)
            stage.phase("export")
            group.all("export", self.sft_path, None, None)
            group.stop()
        self._state.finish("sft")
        self._state.drop_snapshots("sft")

    def collect(self) -> None:
        """Preferences among samples of the SFT model, labelled by a rule, join the given ones."""
        config, settings = self.config, self.config.collect
        if settings.prompts == 0 or config.reward.path is not None or self._begin("collect") is None:
            return
        prompts = list(self.inputs.prompts)
        random.Random(derive_seed(config.seed, "collect", "prompts")).shuffle(prompts)
        prompts = prompts[: settings.prompts]
        label = load_rule(settings.labeller, "collect.labeller")
        self._tracker.prepare("collect", 0, "starting rollout engine")
        rollouts = RolloutGroup(self._standby.take(RolloutActor), config, self.sft_path, version=0)
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
            )
            write_pairs(self._collected, pairs)
            stage.record(1, {"prompts": len(prompts), "pairs": len(pairs)})
            rollouts.stop()
        self._state.finish("collect")

    def reward_model(self) -> None:
        """The conditional reward model of the first round, from SFT weights."""
        config = self.config
        if config.reward.path is not None:
            return
        start = self._begin("reward_0")
        if start is None:
            return
        self._standby.prepare("reward")
        self._tracker.prepare("reward", 0, "reading preferences")
        seed = derive_seed(config.seed, "reward", 0)
        prepared = self._prepared_pairs(seed)
        pairs = prepared.training
        steps = len(token_batches([len(p) for p in pairs], config.reward.batch_tokens, 0, config.reward.epochs))
        logger.info("reward model on %d pairs in %d steps", len(pairs), steps)
        model = ModelSpec(self.sft_path, "scalar", config.model.dtype, head="fresh", seed=seed)
        self._tracker.prepare("reward", 0, "starting trainer")
        group = self._train_group(RewardWorker, model, config.reward)
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
            group.all("export", self.reward_path(0), dict(config.conditions), CONDITION_JOIN)
            group.stop()
        self._state.finish("reward_0")
        self._state.drop_snapshots("reward_0")

    def online(self, round: int) -> None:
        """The fast and the slow path after ``round``: what its policy cheats with, and what is to be labelled."""
        config = self.config
        if not has_paths(config) or self._begin(f"online_{round}") is None:
            return
        self._tracker.prepare("online", round, "starting rollout engine, reference, scorer")
        roles = self._answerers or self._start_answerers(round)
        folder = self.output / f"rounds/{round}"
        with self._tracker.stage("online", round, 1) as stage:
            stage.phase("answers")
            prompts = self.inputs.validation[-config.online.prompts :]
            responses = answer_prompts(config, roles, prompts, checkpoints_of(self.sft_path, folder), round)
            self._standby.prepare("reward")
            metrics = means(responses, round)
            if config.online.fast_path:
                stage.phase("fast path")
                metrics |= fast_path(config, responses, roles.scorer, round)
            if config.online.pairs:
                stage.phase("slow path")
                metrics |= slow_path(config, responses, roles.scorer, round)
            write_responses(folder / RESPONSES, responses)
            stage.record(1, metrics)
            roles.stop()
        self._answerers = None
        self._state.finish(f"online_{round}")

    def next_reward_model(self, round: int) -> None:
        """The reward model after ``round``: the one before, trained on with patches, labels and replay."""
        config = self.config
        name = f"reward_{round + 1}"
        if self._begin(name) is None:
            return
        before, after = Path(self.reward_path(round)), Path(self.reward_path(round + 1))
        self._tracker.prepare("reward", round + 1, "reading preferences")
        new = new_pairs(config, round) if has_paths(config) else None
        if not new:
            logger.info("nothing new since round %d: its reward model stays", round)
            copy_checkpoint(before, after)
            self._state.finish(name)
            return
        started: list[WorkerGroup] = []

        def start() -> RemoteRewardTrainer:
            for group in started:
                group.stop()
            model = ModelSpec(str(before), "scalar", config.model.dtype)
            started[:] = [self._train_group(RewardWorker, model, config.reward)]
            return RemoteRewardTrainer(started[0], config.reward)

        repairing = Repairing(
            config,
            load_tokenizer(self.sft_path),
            start,
            self._preferences().training,
            self.inputs.judging_pairs,
            round,
        )
        steps = repairing.steps(new)
        logger.info("reward model of round %d trains on in %d steps", round + 1, steps)
        with self._tracker.stage("reward", round + 1, steps) as stage:
            repair, trainer = repairing.run(new, stage)
            self._prepare_next()
            stage.phase("export")
            trainer.group.all("export", str(after), dict(config.conditions), CONDITION_JOIN)
            trainer.group.stop()
        write_repair(self.output / f"rounds/{round}/fast_path/repair.json", repair, new)
        self._state.finish(name)

    def ppo(self, round: int) -> None:
        """PPO under the round's reward model, with a critic that starts from that by default. What ``online`` asks next
        is left running, where there is anything to ask."""
        config, settings = self.config, self.config.ppo
        name = f"ppo_{round}"
        if self._begin(name) is None:
            return
        snapshot = self._state.snapshot(name)
        start = ppo_state(snapshot[1]) if snapshot else PPOState()
        self._tracker.prepare("ppo", round, "starting rollout engine, policy, critic, reference, scorer")
        rollouts = RolloutGroup(self._standby.take(RolloutActor), config, self.policy_start(round), version=0)
        policy, critic, reference, scorer = self._ppo_groups(round)
        rollouts.wait()
        remote_policy = RemotePolicy(policy, settings, config.sampling.temperature, rollouts.engines, version=0)
        answerers = self._answerers_of(rollouts, reference, scorer)
        models = Models(
            policy=remote_policy,
            critic=RemoteCritic(critic, settings),
            reference=answerers.reference,
            scorer=answerers.scorer,
            sampler=rollouts.sampler,
        )
        folder = self.output / f"rounds/{round}"
        trained = {"policy": policy, "critic": critic}
        if snapshot is not None:
            self._tracker.prepare("ppo", round, f"loading step {start.step}")
            for role, group in trained.items():
                group.all("load", str(snapshot[0] / role))
        with self._tracker.stage("ppo", round, settings.critic_warmup + settings.iterations) as stage:

            def keep(place: Path) -> None:
                policy.all("export", str(place), None, None)

            observer = PPOObserver(self._tracker, stage, self._state, name, trained, keep, folder)
            train_ppo(
                models,
                self._ppo_data(round),
                settings,
                seed=derive_seed(config.seed, "ppo", round),
                observer=observer,
                start=start,
            )
            if settings.keep_critic:
                stage.phase("export")
                critic.all("export", str(folder / "critic"), None, None)
            policy.stop()
            critic.stop()
        self._state.finish(name)
        if has_paths(config):
            self._answerers = answerers
        else:
            answerers.stop()

    def export(self) -> None:
        """The best policy of the last round is the run's chat model."""
        name = f"export_{self.rounds}"
        if self._begin(name) is None:
            return
        copy_checkpoint(self._outputs[f"ppo_{self.rounds - 1}"], self._outputs[name])
        self._state.finish(name)

    def _begin(self, name: str) -> int | None:
        """The step to go on from in ``name``, 0 for its beginning; None where it is finished."""
        if is_lost(self.config, self._state, name):
            logger.info("%s is not there: %s and what follows it are made again", self._outputs[name], name)
            self._state.discard_from(name)
        snapshot = self._state.snapshot(name)
        start = int(snapshot[1]["step"]) if snapshot else 0
        if self._state.is_finished(name):
            total = self.config.ppo.critic_warmup + self.config.ppo.iterations
            if not name.startswith("ppo_") or start >= total:
                logger.info("%s is finished", name)
                return None
            self._state.reopen_from(name)
        stage, _, round = name.partition("_")
        if not self._tracker_placed:
            self._tracker.resume(stage, int(round or 0), start)
            self._tracker.set_plan(run_plan(self.config, self._finished_stages(), self.inputs.tokens))
            self._tracker_placed = True
        self._state.begin(name, self._settings[name])
        return start

    def _prepare_next(self) -> None:
        """Start the processes of the stage after this one."""
        for name in unfinished(self.config, self._state)[1:2]:
            self._standby.prepare(name.partition("_")[0])

    def _go_on(self, name: str, group: WorkerGroup) -> None:
        """Have a supervised stage's ranks load its snapshot, if there is one."""
        snapshot = self._state.snapshot(name)
        if snapshot is not None:
            logger.info("%s goes on after step %d", name, snapshot[1]["step"])
            group.all("load", str(snapshot[0] / "trainer"))

    def _finished_stages(self) -> set[tuple[str, int]]:
        names = (name.partition("_") for name in self._settings if self._state.is_finished(name))
        return {(stage, int(round or 0)) for stage, _, round in names}

    def _ppo_groups(self, round: int) -> list[WorkerGroup]:
        config, roles = self.config, self.config.cluster
        dtype, seed = config.model.dtype, derive_seed(config.seed, "critic", round)
        checkpointing = config.model.gradient_checkpointing
        policy = ModelSpec(self.policy_start(round), "language", dtype, gradient_checkpointing=checkpointing)
        critic_path, head = self._critic_init(round)
        critic = ModelSpec(critic_path, "scalar", dtype, head, checkpointing, seed)
        return build_all(
            [
                start_group(self._standby.take(PolicyWorker), policy, self._training(roles.policy, config.ppo)),
                start_group(self._standby.take(CriticWorker), critic, self._training(roles.critic, config.ppo)),
                *self._frozen_groups(round),
            ]
        )

    def _frozen_groups(self, round: int) -> list[StartingGroup]:
        """Reference and scorer."""
        dtype = self.config.model.dtype
        return [
            start_group(self._standby.take(LanguageWorker), ModelSpec(self.sft_path, "language", dtype), None),
            start_group(self._standby.take(ScorerWorker), ModelSpec(self.reward_path(round), "scalar", dtype), None),
        ]

    def _answerers_of(self, rollouts: RolloutGroup, reference: WorkerGroup, scorer: WorkerGroup) -> Answerers:
        budget, temperature = self.config.ppo.micro_batch_tokens, self.config.sampling.temperature
        return Answerers(rollouts, RemoteLanguageModel(reference, budget, temperature), RemoteScorer(scorer))

    def _start_answerers(self, round: int) -> Answerers:
        """Where PPO ended in an earlier run."""
        rollouts = RolloutGroup(self._standby.take(RolloutActor), self.config, self.sft_path, version=0)
        reference, scorer = build_all(self._frozen_groups(round))
        rollouts.wait()
        return self._answerers_of(rollouts, reference, scorer)

    def _critic_init(self, round: int) -> tuple[str, Literal["keep", "fresh"]]:
        """Which checkpoint the critic starts from, and whether with its head: the round's reward model and the SFT
        model lend their body alone; a checkpoint that the user names keeps its head, if it has one."""
        init = self.config.ppo.critic_init
        if init in ("reward", "sft"):
            return self.reward_path(round) if init == "reward" else self.sft_path, "fresh"
        return init, "keep" if has_scalar_head(init) else "fresh"

    def _train_group(self, worker: type[Worker], model: ModelSpec, settings: SFTConfig | RewardConfig) -> WorkerGroup:
        checkpointing = self.config.model.gradient_checkpointing
        lora = settings.lora if settings.lora.rank else None
        model = replace(model, gradient_checkpointing=checkpointing, lora=lora)
        role = self.config.cluster.trainer
        return build_all([start_group(self._standby.take(worker), model, self._training(role, settings))])[0]

    @staticmethod
    def _training(role: RoleConfig, settings: SFTConfig | RewardConfig | PPOConfig) -> TrainSpec:
        return TrainSpec(role.zero_stage, settings.weight_decay, settings.gradient_clip)

    def _ppo_data(self, round: int) -> Data:
        config, inputs = self.config, self.inputs
        tokenizer = load_tokenizer(self.sft_path)
        return Data(
            prompts=inputs.prompt_stream(derive_seed(config.seed, "prompts", round)),
            pretrain=TextStream(self._texts(tokenizer), derive_seed(config.seed, "pretrain", round)),
            validation=inputs.validation,
            gold=no_gold if config.data.prompts else gold_of,
            recipes=inputs.recipes,
            held_out_texts=self._held_out_texts(tokenizer),
            instructions=inputs.instructions,
        )

    def _texts(self, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
        return [encode_text(tokenizer, text, self.config.sft.max_length) for text in self.inputs.pretrain]

    def _held_out_texts(self, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
        """Those long enough to predict a token of, at most as many as validation reads."""
        texts = self.inputs.held_out_texts[: self.config.ppo.validation_texts]
        encoded = [encode_text(tokenizer, text, self.config.sft.max_length) for text in texts]
        return [text for text in encoded if len(text) >= 2]

    def _fresh_base(self) -> str:
        """Random weights of the configured shape, with a tokenizer of its own or trained on the run's texts."""
        model = self.config.model
        if model.tokenizer is not None:
            tokenizer = load_tokenizer(model.tokenizer)
        else:
            tokenizer = train_tokenizer(self.inputs.texts(), model.vocab_size)
        fresh = fresh_causal_lm(model, tokenizer, derive_seed(self.config.seed, "weights"))
        folder = self.output / "state" / "base"
        save_checkpoint(
            folder,
            fresh.config,
            fresh.named_parameters(),
            tokenizer,
            architecture=type(fresh).__name__,
            dtype=getattr(torch, model.dtype),
        )
        return str(folder)

    @property
    def _collected(self) -> Path:
        return self._outputs["collect"]

    def _preferences(self) -> PreferenceSplit:
        given = self.inputs.preference_split
        if self.config.collect.prompts == 0 or self._collected.stat().st_size == 0:  # every pair may have been a tie
            return given
        collected = load_preferences([str(self._collected)], Reading.of(self.config, sampled=True))
        return given.joined(split_pairs(collected, validation_share(self.config), given.held))

    def _prepared_pairs(self, seed: int) -> Prepared:
        """What the first reward model learns from, with a table of it shown and kept."""
        tokenizer, conditions = load_tokenizer(self.sft_path), Conditions(self.config.conditions)
        prepared = prepare(tokenizer, conditions, self._preferences(), self.config.reward, seed)
        summary = json.dumps([asdict(entry) for entry in prepared.summary], indent=2, ensure_ascii=False)
        write_atomically(self.output / "rounds/0/preferences.json", f"{summary}\n".encode())
        described = describe(prepared.summary)
        logger.info("what the reward model learns from\n%s", described)
        self._tracker.show(described)
        return prepared


def ppo_state(position: dict[str, Any]) -> PPOState:
    """The loop's state as a snapshot holds it."""
    scores = Moments(**position["scores"])
    return PPOState(**{**position, "pretrain": TextPosition(**position["pretrain"]), "scores": scores})


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> Tensor:
    """A pretraining text in tokens, (L,) int64, from the beginning-of-sequence token on."""
    start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return torch.tensor((start + tokenizer.encode(text, add_special_tokens=False))[:max_length], dtype=torch.int64)


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    """Preference rows as JSON lines."""
    write_atomically(path, "".join(f"{json.dumps(preference_row(pair))}\n" for pair in pairs).encode())


def preference_row(pair: PreferencePair) -> dict[str, Any]:
    row = {**asdict(pair), "prompt": pair.chosen[:-1], "chosen": pair.chosen[-1:], "rejected": pair.rejected[-1:]}
    return {name: value for name, value in row.items() if value is not None}
