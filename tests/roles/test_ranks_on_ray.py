"""Policy and critic as Ray actors: two ranks do what one does, and their weights get out whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from cool_rlhf.config import Config, ModelConfig, PPOConfig, RoleConfig
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.loading import fresh_causal_lm, load_causal_lm
from cool_rlhf.protocols import Experience, Prompt
from cool_rlhf.roles.critic import CriticWorker, RemoteCritic
from cool_rlhf.roles.group import WorkerGroup, build_all, create_workers, start_group
from cool_rlhf.roles.policy import PolicyWorker, RemotePolicy
from cool_rlhf.roles.sampler import RolloutGroup, create_engines
from cool_rlhf.roles.worker import ModelSpec, TrainSpec

pytest.importorskip("vllm", reason="vLLM is not installed (extras cpu or gpu)")

SETTINGS = PPOConfig(micro_batch_tokens=64, pretrain_coefficient=0.5)
RATES = (1e-3, 5e-4)
BETAS = (0.9, 0.95)
ZERO = {1: {"policy": 0, "critic": 0}, 2: {"policy": 3, "critic": 2}}


@dataclass
class Run:
    policies: dict[int, RemotePolicy]  # ranks → policy
    critics: dict[int, RemoteCritic]
    rollouts: RolloutGroup


def checkpoint(folder: Path) -> str:
    tokenizer = train_tokenizer(["What is one and one? Two."], 300)
    shape = ModelConfig(
        hidden_size=128, layers=2, heads=4, kv_heads=2, ffn_size=160, max_positions=128, dtype="float32"
    )
    model = fresh_causal_lm(shape, tokenizer, seed=3)
    save_checkpoint(
        folder,
        model.config,
        model.named_parameters(),
        tokenizer,
        architecture="InternLM2ForCausalLM",
        dtype=torch.float32,
    )
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, local_ray) -> Iterator[Run]:
    path = checkpoint(tmp_path_factory.mktemp("base") / "sft")
    with local_ray(8):
        config = Config()
        config.model.dtype = "float32"
        rollouts = RolloutGroup(create_engines(config), config, path, version=0)
        policy, critic = ModelSpec(path, "language", "float32"), ModelSpec(path, "scalar", "float32", "fresh", seed=5)
        starting = []
        for ranks, stages in ZERO.items():
            role = RoleConfig(ranks=ranks, cpus=0.1)
            starting.append(
                start_group(create_workers(PolicyWorker, role), policy, TrainSpec(stages["policy"], 0.01, 1.0, BETAS))
            )
            starting.append(
                start_group(create_workers(CriticWorker, role), critic, TrainSpec(stages["critic"], 0.01, 1.0, BETAS))
            )
        groups = build_all(starting)
        rollouts.wait()
        yield Run(
            {ranks: RemotePolicy(groups[2 * ranks - 2], SETTINGS, 1.0, rollouts.engines) for ranks in ZERO},
            {ranks: RemoteCritic(groups[2 * ranks - 1], SETTINGS) for ranks in ZERO},
            rollouts,
        )


def sequences(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(9, 60, (count,), generator=generator).tolist()
    return [torch.randint(3, 250, (length,), generator=generator) for length in lengths]


def batch(logprobs: Sequence[Tensor], values: Sequence[Tensor]) -> list[Experience]:
    """Seven responses of unequal length, each after four tokens of prompt."""
    made = []
    generator = torch.Generator().manual_seed(8)
    for tokens, old, value in zip(sequences(7, 1), logprobs, values, strict=True):
        mask = torch.arange(len(tokens)) >= 4
        advantages = torch.randn(len(tokens), generator=generator) * mask
        made.append(
            Experience(tokens, mask, old * mask, old * mask, value * mask, advantages, (value + advantages) * mask)
        )
    return made


@pytest.fixture(scope="module")
def updated(run: Run) -> dict[int, dict[str, list]]:
    """What one and two ranks say before and after the same updates, and what a policy of one and a critic of two say as
    they keep their passes for the last one. All learn from the same records."""
    asked = sequences(7, 1)
    records = batch(run.policies[1].logprobs(asked).result(), run.critics[1].values(asked).result())
    found = {}
    for ranks in ZERO:
        policy, critic = run.policies[ranks], run.critics[ranks]
        said: dict[str, list] = {
            "logprobs": [policy.logprobs(asked).result()],
            "values": [critic.values(asked).result()],
        }
        said["metrics"] = []
        said["kept"] = []
        for rate in RATES:
            for part in (asked[4:], asked[:4]) if rate == RATES[-1] else ():
                begins = [4] * len(part)
                told = policy.logprobs(part, begins=begins, keep=True) if ranks == 1 else critic.values(part, keep=True)
                said["kept"] = told.result() + said["kept"]
            # Together, as the loop has them.
            updates = policy.update(records, sequences(3, 2), rate, 0.0, 0.0), critic.update(records, rate)
            said["metrics"].append({name: value for update in updates for name, value in update.result().items()})
            said.setdefault(
                "between", {"logprobs": policy.logprobs(asked).result(), "values": critic.values(asked).result()}
            )
        said["logprobs"].append(policy.logprobs(asked).result())
        said["values"].append(critic.values(asked).result())
        found[ranks] = said
    return found


def test_passes_that_are_kept_say_what_others_say(updated: dict[int, dict[str, list]]) -> None:
    """The updates that go on from them are compared below."""
    for mine, expected in zip(updated[1]["kept"], updated[2]["between"]["logprobs"], strict=True):
        torch.testing.assert_close(mine[4:], expected[4:], atol=2e-5, rtol=1e-5)
        assert not mine[:4].any()
    for mine, expected in zip(updated[2]["kept"], updated[1]["between"]["values"], strict=True):
        torch.testing.assert_close(mine, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["logprobs", "values"])
def test_two_ranks_say_what_one_says(updated: dict[int, dict[str, list]], kind: str) -> None:
    for one, two in zip(updated[1][kind], updated[2][kind], strict=True):
        for mine, expected in zip(two, one, strict=True):
            torch.testing.assert_close(mine, expected, atol=2e-5, rtol=1e-5)
    before, after = (torch.cat(said) for said in updated[1][kind])
    assert (before - after).abs().mean() > 1e-2, "the updates are to be seen"


def test_two_ranks_report_what_one_reports(updated: dict[int, dict[str, list]]) -> None:
    for one, two in zip(updated[1]["metrics"], updated[2]["metrics"], strict=True):
        assert one.keys() == two.keys()
        assert {"loss/policy", "loss/pretrain", "loss/value", "policy/gradient_norm"} <= one.keys()
        for name in one:
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("ranks", [1, 2])
def test_exports_load_in_transformers(run: Run, updated: dict, ranks: int, tmp_path: Path) -> None:
    run.policies[ranks].group.all("export", str(tmp_path / "out"), None, None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True, dtype=torch.float32)
    for tokens, expected in zip(sequences(7, 1), updated[ranks]["logprobs"][-1], strict=True):
        with torch.no_grad():
            logits = model(input_ids=tokens[None], use_cache=False).logits[0]
        own = torch.log_softmax(logits, -1)[:-1].gather(1, tokens[1:, None]).squeeze(1)
        torch.testing.assert_close(own, expected[1:], atol=1e-4, rtol=0)
    assert type(load_causal_lm(tmp_path / "out", torch.float32)).__name__ == "InternLM2ForCausalLM"


@pytest.mark.parametrize("ranks", [1, 2])
def test_published_weights_are_sampled_from(run: Run, updated: dict, ranks: int) -> None:
    policy = run.policies[ranks]
    version = policy.publish()
    prompts = [Prompt(str(n), [{"role": "user", "content": f"Say {n}"}], "default", None) for n in range(12)]
    rollouts = run.rollouts.sampler.sample(prompts, seed=1, version=version).result()
    own = policy.logprobs([rollout.tokens for rollout in rollouts]).result()
    for rollout, logprobs in zip(rollouts, own, strict=True):
        assert rollout.policy_version == version
        torch.testing.assert_close(rollout.logprobs, logprobs[rollout.mask], atol=1e-4, rtol=0)


def test_saved_ranks_go_on_as_they_were(run: Run, updated: dict, tmp_path: Path) -> None:
    critic, asked = run.critics[2], sequences(7, 1)
    records = batch([torch.zeros(len(tokens)) for tokens in asked], critic.values(asked).result())
    group: WorkerGroup = critic.group
    group.all("save", str(tmp_path / "critic"))
    onwards = [critic.update(records, 1e-3).result() for _ in range(2)]
    group.all("load", str(tmp_path / "critic"))
    assert [critic.update(records, 1e-3).result() for _ in range(2)] == onwards
