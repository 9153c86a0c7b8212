"""Which checkpoint every role of a stage loads, and the groups that load them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cool_rlhf.config import Config, PPOConfig, RewardConfig, RoleConfig, SFTConfig
from cool_rlhf.model_checks import given_critic
from cool_rlhf.models.loading import has_scalar_head
from cool_rlhf.models.tokenizer import check_same_tokens
from cool_rlhf.online.starts import described_start, started_from
from cool_rlhf.provenance import outputs
from cool_rlhf.roles.critic import CriticWorker
from cool_rlhf.roles.group import StartingGroup, WorkerGroup, build_all, fetch, start_group
from cool_rlhf.roles.policy import PolicyWorker
from cool_rlhf.roles.reference import LanguageWorker, RemoteLanguageModel
from cool_rlhf.roles.sampler import RolloutGroup, measures_gpu
from cool_rlhf.roles.scorer import RemoteScorer, ScorerWorker
from cool_rlhf.roles.standby import Standby
from cool_rlhf.roles.worker import ModelSpec, TrainSpec, Worker
from cool_rlhf.schedule import derive_seed
from cool_rlhf.stages.online import Answerers
from rollout.actor import RolloutActor

UNUSED = -1  # version of weights that are replaced before anything is sampled


@dataclass(frozen=True)
class Checkpoints:
    """Where a run's models are: those it makes, or those that the user named instead."""

    config: Config

    @property
    def sft(self) -> str:
        return self.config.sft.path or self._made("sft")

    def reward(self, round: int) -> str:
        """The reward model that ``round`` is scored by."""
        if round == 0 and self.config.reward.path is not None:
            return self.config.reward.path
        return self._made(f"reward_{round}")

    def policy_start(self, round: int) -> str:
        """What the policy of ``round`` starts from; the reference is the SFT model in any round."""
        before = self.start_round(round)
        return self.sft if before is None else self._made(f"ppo_{before}")

    def start_round(self, round: int) -> int | None:
        """The earlier round whose policy that of ``round`` starts from; None: the SFT model."""
        return started_from(*self._start(round))

    def described_start(self, round: int) -> str:
        """The same in a sentence."""
        return described_start(*self._start(round))

    def _start(self, round: int) -> tuple[Path, int, str, float]:
        online = self.config.online
        return Path(self.config.output_dir), round, online.policy_from, online.cheating

    def critic_init(self, round: int) -> tuple[str, Literal["keep", "fresh"]]:
        """What the critic starts from, and whether with its head: the round's reward model and the SFT model lend their
        body alone; a checkpoint that the user names keeps its head, if it has one. Raises UserError where it has other
        tokens than the policy."""
        init = self.config.ppo.critic_init
        given = given_critic(self.config)
        if given:
            check_same_tokens(given, self.sft)
        if init in ("reward", "sft"):
            return self.reward(round) if init == "reward" else self.sft, "fresh"
        return init, "keep" if has_scalar_head(init) else "fresh"

    def _made(self, name: str) -> str:
        return str(outputs(self.config)[name])


@dataclass(frozen=True)
class PPORoles:
    """The groups of a round of PPO, up and loaded."""

    rollouts: RolloutGroup
    policy: WorkerGroup
    critic: WorkerGroup
    answerers: Answerers  # the rollouts, with reference and scorer

    @property
    def trained(self) -> dict[str, WorkerGroup]:
        return {"policy": self.policy, "critic": self.critic}

    def load(self, snapshot: Path) -> None:
        ask_together(self.trained, "load", snapshot)


def ask_together(groups: Mapping[str, WorkerGroup], method: str, folder: Path) -> None:
    """Call every rank of every role with the role's own part of ``folder``, side by side, and wait for all; the first
    that fails is raised at once."""
    asked = [group.each(method, [[str(folder / role)]] * len(group)) for role, group in groups.items()]
    fetch([reference for references in asked for reference in references])


class StageRoles:
    """Starts the roles of each stage, on processes that may be on standby."""

    def __init__(self, config: Config) -> None:
        self.standby = Standby(config)
        self._idle: RolloutGroup | None = None  # engines that hold weights which nobody will sample from
        self._config = config
        self._checkpoints = Checkpoints(config)

    def prepare(self, stage: str) -> None:
        """Start the processes that ``stage`` takes, as far as they are not up."""
        self.standby.prepare(stage, engines=self._idle is None)

    def place(self, stage: str) -> None:
        """The stage begins: have the processes that it takes placed, where that has to wait for their turn."""
        self.standby.place(stage, engines=self._idle is None)

    def trainer(self, worker: type[Worker], model: ModelSpec, settings: SFTConfig | RewardConfig) -> WorkerGroup:
        """The ranks of SFT or reward training."""
        checkpointing = self._config.model.gradient_checkpointing
        lora = settings.lora if settings.lora.rank else None
        model = replace(model, gradient_checkpointing=checkpointing, lora=lora)
        role = self._config.cluster.trainer
        return build_all([start_group(self.standby.take(worker), model, _training(role, settings))])[0]

    def start_rollouts(self, path: str) -> None:
        """Have engines on standby load ``path`` while those weights of the same architecture are still being trained
        that they will serve: an engine's start takes longer than a change of its weights. Not where it measures the GPU
        that they may be trained on."""
        if measures_gpu(self._config.cluster.rollout):
            return
        if self._idle is None and self.standby.holds(RolloutActor):
            self._idle = RolloutGroup(self.standby.take(RolloutActor), self._config, path, version=UNUSED)

    def rollouts(self, path: str) -> RolloutGroup:
        """Engines that are still loading ``path``, as version 0."""
        idle, self._idle = self._idle, None
        if idle is None:
            return RolloutGroup(self.standby.take(RolloutActor), self._config, path, version=0)
        idle.begin_loading(path, version=0)
        return idle

    def release_rollouts(self, rollouts: RolloutGroup) -> None:
        """Nobody samples any more: engines that hold nothing that others wait for stay up for the next checkpoint."""
        if self.standby.keeps(self._config.cluster.rollout.gpus):
            self._idle = rollouts
        else:
            rollouts.stop()

    def release_trained(self, roles: PPORoles) -> None:
        """A round of PPO is over."""
        self.standby.give_back(PolicyWorker, roles.policy)
        self.standby.give_back(CriticWorker, roles.critic)

    def release_answerers(self, answerers: Answerers) -> None:
        """Nobody asks them any more."""
        self.release_rollouts(answerers.rollouts)
        self.standby.give_back(LanguageWorker, answerers.reference.group)
        self.standby.give_back(ScorerWorker, answerers.scorer.group)

    def ppo(self, round: int) -> PPORoles:
        """All of a round of PPO."""
        config, roles, checkpoints = self._config, self._config.cluster, self._checkpoints
        dtype, checkpointing = config.model.dtype, config.model.gradient_checkpointing
        self.place("ppo")
        rollouts = self.rollouts(checkpoints.policy_start(round))
        policy = ModelSpec(checkpoints.policy_start(round), "language", dtype, gradient_checkpointing=checkpointing)
        path, head = checkpoints.critic_init(round)
        critic = ModelSpec(path, "scalar", dtype, head, checkpointing, derive_seed(config.seed, "critic", round))
        trained = [
            start_group(self.standby.take(PolicyWorker), policy, _training(roles.policy, config.ppo)),
            start_group(self.standby.take(CriticWorker), critic, _training(roles.critic, config.ppo)),
        ]
        rollouts.settle()
        policies, critics, *frozen = build_all([*trained, *self._frozen(round)])
        rollouts.wait()
        return PPORoles(rollouts, policies, critics, self._answerers(rollouts, *frozen))

    def answerers(self, round: int) -> Answerers:
        """What of :meth:`ppo` answers and judges, where PPO ended in an earlier run."""
        self.place("answers")
        rollouts = self.rollouts(self._checkpoints.sft)
        rollouts.settle()
        frozen = build_all(self._frozen(round))
        rollouts.wait()
        return self._answerers(rollouts, *frozen)

    def _frozen(self, round: int) -> list[StartingGroup]:
        """Reference and scorer."""
        dtype = self._config.model.dtype
        reference = ModelSpec(self._checkpoints.sft, "language", dtype)
        budget = self._config.ppo.micro_batch_tokens
        scorer = ModelSpec(self._checkpoints.reward(round), "scalar", dtype, micro_batch_tokens=budget)
        return [
            start_group(self.standby.take(LanguageWorker), reference, None),
            start_group(self.standby.take(ScorerWorker), scorer, None),
        ]

    def _answerers(self, rollouts: RolloutGroup, reference: WorkerGroup, scorer: WorkerGroup) -> Answerers:
        budget, temperature = self._config.ppo.micro_batch_tokens, self._config.sampling.temperature
        return Answerers(rollouts, RemoteLanguageModel(reference, budget, temperature), RemoteScorer(scorer))


def _training(role: RoleConfig, settings: SFTConfig | RewardConfig | PPOConfig) -> TrainSpec:
    first, second = settings.adam_betas
    return TrainSpec(role.zero_stage, settings.weight_decay, settings.gradient_clip, (first, second))
