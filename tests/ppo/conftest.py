"""A world small enough to solve exactly: two choices among four words, by tables instead of networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cool_rlhf.config import PPOConfig
from cool_rlhf.data.streams import ShuffledStream, TextStream
from cool_rlhf.ppo.collaborators import Data, Models
from cool_rlhf.ppo.kl import kl_estimate, kl_loss
from cool_rlhf.ppo.losses import Clip, policy_loss_per_token, value_loss_per_token
from cool_rlhf.ppo.state import PPOState
from cool_rlhf.protocols import Experience, Prompt, Rollout, ScoredConversation, StaleWeightsError

WORDS = 4


class Table(torch.nn.Module):
    """Scores of the words in each state: 0 for the first choice, 1 + first word for the second. A sequence is one
    prompt token and two words; (N, 3) of them at once."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        start = torch.randn(1 + WORDS, width, generator=torch.Generator().manual_seed(seed))
        self.rows = torch.nn.Parameter(0.5 * start)

    def _choices(self, sequences: Tensor) -> Tensor:
        states = torch.stack([torch.zeros_like(sequences[:, 1]), 1 + sequences[:, 1]], dim=1)
        return self.rows[states]

    def logprobs(self, sequences: Tensor) -> Tensor:
        """(N, 3)"""
        chosen = self._choices(sequences).log_softmax(-1).gather(2, sequences[:, 1:, None])[:, :, 0]
        return torch.cat([torch.zeros(len(sequences), 1), chosen], dim=1)

    def values(self, sequences: Tensor) -> Tensor:
        """(N, 3)"""
        return torch.cat([torch.zeros(len(sequences), 1), self._choices(sequences)[:, :, 0]], dim=1)


def stacked(batch: Sequence[Experience], name: str) -> Tensor:
    return torch.stack([getattr(experience, name) for experience in batch])


class World:
    """All five collaborators of the loop, and an observer that remembers; ``log`` is what they were asked, in order."""

    def __init__(self, ready: Callable, rewards: Tensor) -> None:
        self.ready = ready
        self.rewards = rewards  # (first word, second word)
        self.log: list[str] = []
        self.rows: list[dict] = []
        self.steps: list[tuple[int, int]] = []
        self.states: list[PPOState] = []
        self.kept: list[tuple] = []
        self.kept_passes: list[tuple[str, bool]] = []
        self.parts_at: int | None = None  # the step from which score and gold part
        self.shown: dict[int, tuple] = {}
        self.texts: list[list[Tensor]] = []
        self.sampled: list[list[str]] = []
        self.seeds: list[int] = []
        self.rates: list[tuple[str, float]] = []
        self.batches: list[int] = []
        self.kl_in_loss: list[float] = []
        self.entropy_in_loss: list[float] = []
        self.table, self.reference_table, self.critic_table = Table(1, WORDS), Table(1, WORDS), Table(2, 1)
        self.optimizers = {
            "policy": torch.optim.Adam(self.table.parameters()),
            "critic": torch.optim.Adam(self.critic_table.parameters()),
        }
        self.published: Table | None = None
        self.version = 0
        self.push = True
        self.models = Models(
            policy=SimpleNamespace(logprobs=self.logprobs, update=self.update_policy, publish=self.publish),
            critic=SimpleNamespace(values=self.values, update=self.update_critic),
            reference=SimpleNamespace(logprobs=self.reference_logprobs),
            scorer=SimpleNamespace(score=self.score),
            sampler=SimpleNamespace(sample=self.sample),
        )

    def publish(self) -> int:
        self.log.append("publish")
        self.version += 1
        if self.push:
            self.published, self.held = copy.deepcopy(self.table), self.version
        return self.version

    def sample(self, prompts: Sequence[Prompt], *, seed: int, version: int):
        self.log.append("sample")
        self.sampled.append([prompt.id for prompt in prompts])
        self.seeds.append(seed)
        if self.held != version:
            raise StaleWeightsError(f"the engine holds {self.held}, not {version}")
        generator = torch.Generator().manual_seed(seed)
        rows = self.published.rows.detach().softmax(-1)
        first = torch.multinomial(rows[0].expand(len(prompts), -1), 1, generator=generator)
        second = torch.multinomial(rows[1 + first[:, 0]], 1, generator=generator)
        sequences = torch.cat([torch.zeros_like(first), first, second], dim=1)
        logprobs = self.published.logprobs(sequences).detach()[:, 1:]
        return self.ready([self.rollout(*answer) for answer in zip(prompts, sequences, logprobs, strict=True)])

    def rollout(self, prompt: Prompt, sequence: Tensor, logprobs: Tensor) -> Rollout:
        response = "".join(map(str, sequence[1:].tolist()))
        return Rollout(prompt, sequence[:1], sequence[1:], logprobs, True, self.held, response)

    def score(self, conversations: Sequence[ScoredConversation]):
        self.log.append("score")
        answers = [conversation.messages[-1]["content"] for conversation in conversations]
        return self.ready([float(self.rewards[int(answer[0]), int(answer[1])]) for answer in answers])

    @torch.no_grad()
    def logprobs(
        self, sequences: Sequence[Tensor], *, begins=None, temperature: float | None = None, keep: bool = False
    ):
        self.log.append("logprobs")
        self.kept_passes.append(("policy", keep))
        return self.ready(list(self.table.logprobs(torch.stack(list(sequences)))))

    @torch.no_grad()
    def reference_logprobs(self, sequences: Sequence[Tensor], *, begins=None, temperature: float | None = None):
        return self.ready(list(self.reference_table.logprobs(torch.stack(list(sequences)))))

    @torch.no_grad()
    def values(self, sequences: Sequence[Tensor], *, keep: bool = False):
        self.kept_passes.append(("critic", keep))
        return self.ready(list(self.critic_table.values(torch.stack(list(sequences)))))

    def update_policy(
        self,
        batch: Sequence[Experience],
        pretrain: Sequence[Tensor],
        learning_rate: float,
        kl_coefficient: float,
        entropy_coefficient: float,
    ):
        self.log.append("policy")
        self.kl_in_loss.append(kl_coefficient)
        self.entropy_in_loss.append(entropy_coefficient)
        self.texts.append(list(pretrain))
        logprobs = self.table.logprobs(stacked(batch, "tokens"))
        old, advantages, mask = (stacked(batch, name) for name in ("old_logprobs", "advantages", "mask"))
        loss = policy_loss_per_token(logprobs, old, advantages, mask, Clip.symmetric(0.2)).mean()
        loss = loss + kl_coefficient * kl_loss(logprobs, stacked(batch, "reference_logprobs"), "k2", "k2").mean()
        moved = float(kl_estimate(old, logprobs.detach(), "k3")[mask].mean())
        metrics = {"loss/policy": loss.item(), "loss/pretrain": 1.0, "policy/moved": moved}
        return self.step("policy", loss, learning_rate, metrics)

    def update_critic(self, batch: Sequence[Experience], learning_rate: float):
        self.log.append("critic")
        self.batches.append(len(batch))
        values = self.critic_table.values(stacked(batch, "tokens"))
        loss = value_loss_per_token(values, stacked(batch, "returns"), stacked(batch, "mask")).mean()
        return self.step("critic", loss, learning_rate, {"loss/value": loss.item()})

    def step(self, role: str, loss: Tensor, learning_rate: float, metrics: dict[str, float]):
        self.rates.append((role, learning_rate))
        optimizer = self.optimizers[role]
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        return self.ready(metrics)

    def weights(self) -> tuple:
        """All that training has made, to hand to a fresh world."""
        return copy.deepcopy((self.table, self.critic_table, [o.state_dict() for o in self.optimizers.values()]))

    def restore(self, weights: tuple) -> None:
        table, critic_table, optimizers = copy.deepcopy(weights)
        self.table.load_state_dict(table.state_dict())
        self.critic_table.load_state_dict(critic_table.state_dict())
        for optimizer, state in zip(self.optimizers.values(), optimizers, strict=True):
            optimizer.load_state_dict(state)

    def phase(self, name: str, step: int, steps: int) -> None:
        self.log.append(f"[{name}]")

    def samples(self, step: int, rollouts: Sequence[Rollout], scores: Sequence[float], gold: Sequence) -> None:
        self.shown[step] = (rollouts, scores, gold)

    def record(self, step: int, steps: int, metrics: dict) -> None:
        self.steps.append((step, steps))
        self.rows.append(dict(metrics))

    def has_parted(self) -> bool:
        return self.parts_at is not None and self.steps[-1][0] >= self.parts_at

    def save(self, state: PPOState) -> None:
        self.states.append(state)
        self.saved = self.weights()

    def keep_best(self, step: int, value: float) -> None:
        self.kept.append(("best", step, value))

    def keep_early(self, step: int) -> None:
        self.kept.append(("early", step))


@pytest.fixture
def make_world(ready) -> Callable[[], World]:
    rewards = torch.tensor([[0.1, 0.9, -0.5, 0.2], [0.4, 0.0, 1.2, -1.0], [-0.3, 0.6, 0.5, 0.0], [1.0, -0.8, 0.2, 0.3]])
    return lambda: World(ready, rewards)


@pytest.fixture
def data() -> Data:
    prompts = [Prompt(f"q{k}", [{"role": "user", "content": "?"}], ("a", "b")[k % 2], None) for k in range(40)]
    texts = [torch.arange(length) for length in (7, 12, 5)]
    return Data(
        prompts=ShuffledStream(prompts[:32], seed=5),
        pretrain=TextStream(texts, seed=5),
        validation=prompts[32:],
        gold=lambda rollout: float(rollout.response[0] == "1") if rollout.prompt.domain == "a" else None,
    )


@pytest.fixture
def settings() -> PPOConfig:
    return PPOConfig(
        iterations=6,
        critic_warmup=2,
        prompts_per_iteration=16,
        policy_learning_rate=0.02,
        critic_learning_rate=0.05,
        validate_every=2,
        save_every=3,
        early_snapshot=0.1,
    )
