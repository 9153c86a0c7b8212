"""Real engines in processes of their own, as a run has them: weights, versions, seeds, limits."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cool_rlhf.config import Config, ModelConfig
from cool_rlhf.data.chat import TURN_END, token_id
from cool_rlhf.data.packing import pack
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.forward import token_logprobs
from cool_rlhf.models.loading import fresh_causal_lm, load_causal_lm
from cool_rlhf.protocols import Prompt, Rollout, StaleWeightsError, UserError
from cool_rlhf.roles.group import fetch
from cool_rlhf.roles.policy import chunks
from cool_rlhf.roles.sampler import RemoteSampler, RolloutGroup, create_engines
from rollout.settings import SamplingSettings

pytest.importorskip("vllm", reason="vLLM is not installed (extras cpu or gpu)")

SAMPLING = SamplingSettings(temperature=1.0, top_p=0.9, max_new_tokens=48)
MAX_LENGTH = 128
STOPS = ("<|plugin|>", "a", "ow")  # a special token, and texts of one letter and two


@dataclass
class Served:
    """A model, its engines, and the version of the weights that they hold."""

    model: PreTrainedModel
    engines: list[Any]
    turn_end: int
    version: int = 0

    def push(self, scale: float) -> None:
        """Other weights into model and engines."""
        generator = torch.Generator().manual_seed(self.version)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        self.version += 1
        fetch([engine.begin_weights.remote() for engine in self.engines])
        for chunk in chunks(self.model.named_parameters()):
            fetch([engine.load_weights_chunk.remote(chunk) for engine in self.engines])
        fetch([engine.finish_weights.remote(self.version) for engine in self.engines])

    def sample(
        self, prompts: list[Prompt], seed: int, sampling: SamplingSettings = SAMPLING, engines: int = 1
    ) -> list[Rollout]:
        sampler = RemoteSampler(self.engines[:engines], sampling)
        return sampler.sample(prompts, seed=seed, version=self.version).result()


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(f"p{n}", [{"role": "user", "content": f"How many are {n} and {n * n}?"}], "default", None)
        for n in range(count)
    ]


def llama(tokenizer: Any) -> LlamaForCausalLM:
    torch.manual_seed(4)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
        )
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, local_ray) -> Iterator[dict[str, Served]]:
    """Two engines of an InternLM2, one of a Llama with one embedding for both ends, a compiled one, and one that stops
    at STOPS."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = train_tokenizer([prompt.messages[0]["content"] for prompt in prompts(30)], 300)
    shape = ModelConfig(
        hidden_size=128, layers=2, heads=4, kv_heads=2, ffn_size=160, max_positions=MAX_LENGTH, dtype="float32"
    )
    made = {"internlm2": fresh_causal_lm(shape, tokenizer, seed=3), "llama": llama(tokenizer)}
    for name, model in made.items():
        save_checkpoint(
            folder / name,
            model.config,
            model.named_parameters(),
            tokenizer,
            architecture=type(model).__name__,
            dtype=torch.float32,
        )
    with local_ray(5):
        config = Config()
        config.model.dtype = "float32"
        groups = {}
        for name, engines in (("internlm2", 2), ("llama", 1)):
            config.cluster.rollout.engines = engines
            groups[name] = RolloutGroup(create_engines(config), config, str(folder / name), version=0)
        config.cluster.rollout.engines = 1
        if shutil.which("g++"):
            config.cluster.rollout.compile = True
            groups["compiled"] = RolloutGroup(create_engines(config), config, str(folder / "internlm2"), version=0)
            config.cluster.rollout.compile = False
        config.sampling.stop = list(STOPS)
        groups["stopping"] = RolloutGroup(create_engines(config), config, str(folder / "internlm2"), version=0)
        for group in groups.values():
            group.wait()
        yield {
            name: Served(
                load_causal_lm(folder / ("llama" if name == "llama" else "internlm2"), torch.float32),
                group.engines,
                token_id(tokenizer, TURN_END),
            )
            for name, group in groups.items()
        }


def gap(served: Served, rollouts: list[Rollout]) -> tuple[float, int]:
    """The largest difference from the trainer's log-probabilities, and over how many tokens."""
    packed = pack([rollout.tokens for rollout in rollouts])
    with torch.no_grad():
        expected = packed.split(token_logprobs(served.model, packed)[0])
    differences = torch.cat(
        [rollout.logprobs - own[rollout.mask] for rollout, own in zip(rollouts, expected, strict=True)]
    )
    return float(differences.abs().max()), len(differences)


@pytest.mark.parametrize("family", ["internlm2", "llama", "compiled"])
def test_logprobs_are_the_trainers_after_each_push(served: dict[str, Served], family: str) -> None:
    if family not in served:
        pytest.skip("kernels are compiled for a CPU with g++, which is not installed")
    subject = served[family]
    for scale in (0.05, 0.12):
        subject.push(scale)
        rollouts = subject.sample(prompts(40), seed=5, engines=len(subject.engines))
        difference, count = gap(subject, rollouts)
        assert count >= 1000
        assert difference <= 1e-4
        assert {rollout.policy_version for rollout in rollouts} == {subject.version}


def test_a_checkpoint_replaces_the_weights_in_place(served: dict[str, Served], tmp_path: Path) -> None:
    subject = served["internlm2"]
    subject.push(0.05)
    tokenizer = train_tokenizer([prompt.messages[0]["content"] for prompt in prompts(30)], 300)
    architecture = type(subject.model).__name__
    weights = [(name, weight * 2) for name, weight in subject.model.named_parameters()]
    save_checkpoint(
        tmp_path / "other", subject.model.config, weights, tokenizer, architecture=architecture, dtype=torch.float32
    )
    before = gap(subject, subject.sample(prompts(8), seed=3))[0]
    fetch([engine.load_checkpoint.remote(str(tmp_path / "other"), -5) for engine in subject.engines])
    rollouts = RemoteSampler(subject.engines, SAMPLING).sample(prompts(8), seed=3, version=-5).result()
    assert {rollout.policy_version for rollout in rollouts} == {-5}
    assert before <= 1e-4
    assert gap(subject, rollouts)[0] > 1e-2, "the trainer still has the weights of before"
    other = Served(load_causal_lm(tmp_path / "other", torch.float32), subject.engines, subject.turn_end)
    assert gap(other, rollouts)[0] <= 1e-4
    subject.push(0.05)


def test_finished_responses_come_in_portions_the_same_each_time(served: dict[str, Served]) -> None:
    subject = served["internlm2"]
    subject.push(0.12)
    sampler = RemoteSampler(subject.engines, SAMPLING)
    asked = prompts(120)
    whole = sampler.sample(asked, seed=8, version=subject.version).result()
    assert [rollout.prompt.id for rollout in whole] == [prompt.id for prompt in asked]
    runs = [list(sampler.sample(asked, seed=8, version=subject.version).portions()) for _ in range(2)]
    for portions in runs:
        assert len(portions) > len(subject.engines), "an engine gave all at once"
        found = [(place, rollout) for portion in portions for place, rollout in portion]
        assert sorted(place for place, _ in found) == list(range(120))
        assert all(said([rollout]) == said([whole[place]]) for place, rollout in found)
    first, second = (sorted([place for place, _ in portion] for portion in portions) for portions in runs)
    assert first == second


def test_samplings_that_are_asked_for_ahead_are_the_same_as_one_by_one(served: dict[str, Served]) -> None:
    """The next step's responses are asked for while this step's portions still come, of both engines."""
    subject = served["internlm2"]
    alone = [said(subject.sample(prompts(90), seed=seed, engines=2)) for seed in (4, 5)]
    sampler = RemoteSampler(subject.engines, SAMPLING)
    pending = [sampler.sample(prompts(90), seed=seed, version=subject.version) for seed in (4, 5)]
    for expected, sampling in zip(alone, pending, strict=True):
        placed = dict(item for portion in sampling.portions() for item in portion)
        assert said([placed[place] for place in range(90)]) == expected


def test_an_engine_drops_what_nobody_takes(served: dict[str, Served]) -> None:
    subject = served["stopping"]  # its responses end at various lengths whatever the weights
    expected = said(subject.sample(prompts(60), seed=6))

    def take_one(actor: Any, asked: list[Prompt], version: int) -> tuple[int, bool]:
        sampling = actor._engine.sample(asked, SAMPLING, seeds=list(range(len(asked))), version=version)
        count = len(next(sampling))
        sampling.close()
        return count, actor._engine._llm.llm_engine.has_unfinished_requests()

    count, unfinished = ray.get(subject.engines[0].__ray_call__.remote(take_one, prompts(60), subject.version))
    assert 0 < count < 60
    assert not unfinished
    assert said(subject.sample(prompts(60), seed=6)) == expected


def test_another_version_is_refused(served: dict[str, Served]) -> None:
    subject = served["llama"]
    sampler = RemoteSampler(subject.engines, SAMPLING)
    for version in (subject.version + 1, subject.version - 1):
        with pytest.raises(StaleWeightsError, match=f"version {version} was asked for"):
            sampler.sample(prompts(2), seed=1, version=version).result()


def test_weights_that_are_arriving_are_refused(served: dict[str, Served]) -> None:
    subject = served["llama"]
    fetch([engine.begin_weights.remote() for engine in subject.engines])
    with pytest.raises(StaleWeightsError, match="incomplete"):
        subject.sample(prompts(2), seed=1)
    subject.push(0.05)
    assert gap(subject, subject.sample(prompts(2), seed=1))[0] <= 1e-4


def said(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.response_tokens.tolist() for rollout in rollouts]


def test_a_cache_that_is_too_small_is_answered_in_one_sentence(served: dict[str, Served], tmp_path: Path) -> None:
    model = served["llama"].model
    tokenizer = train_tokenizer([prompt.messages[0]["content"] for prompt in prompts(30)], 300)
    save_checkpoint(
        tmp_path,
        model.config,
        model.named_parameters(),
        tokenizer,
        architecture=type(model).__name__,
        dtype=torch.float32,
    )
    config = Config()
    config.model.dtype = "float32"
    config.cluster.rollout.cpus = 0.0
    config.cluster.rollout.cache_gib = 1e-5
    group = RolloutGroup(create_engines(config), config, str(tmp_path), version=0)
    with pytest.raises(UserError) as caught:
        group.wait()
    group.stop()
    said = str(caught.value)
    assert f"up to {MAX_LENGTH} tokens (No available memory for the cache blocks):" in said
    assert all(key in said for key in ("cluster.rollout.cache_gib", "gpu_memory_utilization", "model.max_positions"))
    assert "\n" not in said


def test_a_seed_repeats_however_many_engines_share_the_prompts(served: dict[str, Served]) -> None:
    subject = served["internlm2"]
    asked = prompts(12)
    first = said(subject.sample(asked, seed=7))
    assert said(subject.sample(asked, seed=7)) == first
    assert said(subject.sample(asked, seed=7, engines=2)) == first
    assert said(subject.sample(asked[:5], seed=7)) == first[:5], "the company that a prompt keeps does not count"
    other = said(subject.sample(asked, seed=8))
    assert sum(a != b for a, b in zip(first, other, strict=True)) >= 11
    same_prompt = said(subject.sample([asked[0]] * 6, seed=7))
    assert len({tuple(tokens) for tokens in same_prompt}) >= 5


def test_records_fit_what_was_sampled(served: dict[str, Served]) -> None:
    subject = served["internlm2"]
    subject.push(0.05)
    tokenizer = train_tokenizer([prompt.messages[0]["content"] for prompt in prompts(30)], 300)
    rollouts = subject.sample(prompts(60), seed=2, sampling=SamplingSettings(1.5, 1.0, 60))
    assert [rollout.prompt for rollout in rollouts] == prompts(60)
    finished = [rollout for rollout in rollouts if rollout.finished]
    unfinished = [rollout for rollout in rollouts if not rollout.finished]
    assert finished
    assert unfinished
    for rollout in unfinished:
        assert len(rollout.response_tokens) == min(60, MAX_LENGTH - len(rollout.prompt_tokens))
    stops = {subject.turn_end, subject.model.config.eos_token_id}
    assert {int(rollout.response_tokens[-1]) for rollout in finished} <= stops
    for rollout in rollouts:
        inner = rollout.response_tokens[: -1 if rollout.finished else None].tolist()
        assert not stops & set(inner), "a response ends with its first end-of-turn token"
        assert rollout.response == tokenizer.decode(inner)
    assert any("<|im_start|>" in rollout.response for rollout in rollouts)


@pytest.mark.parametrize("top_p", [0.1, 0.5])
def test_top_p_bounds_what_is_sampled(served: dict[str, Served], top_p: float) -> None:
    """Every sampled token lies in the smallest set of likeliest tokens whose mass reaches ``top_p``."""
    subject = served["internlm2"]
    subject.push(0.2)
    rollouts = subject.sample(prompts(8), seed=3, sampling=SamplingSettings(1.0, top_p, 20))
    for rollout in rollouts:
        with torch.no_grad():
            logits = subject.model(input_ids=rollout.tokens[None], use_cache=False).logits[0]
        probabilities = torch.softmax(logits.float(), -1)[len(rollout.prompt_tokens) - 1 : -1]
        own = probabilities.gather(1, rollout.response_tokens[:, None])
        mass_above = torch.where(probabilities > own, probabilities, 0.0).sum(-1)
        assert (mass_above < top_p + 1e-4).all()
    assert gap(subject, rollouts)[0] <= 1e-4, "what is recorded is before top-p"


@pytest.mark.parametrize("top_p", [0.9, 0.5])
def test_top_p_makes_the_ratio_to_what_was_drawn_from_too_great(served: dict[str, Served], top_p: float) -> None:
    """The engine draws from μ = π / Z within the nucleus and reports log π. The mean of 1 / π over draws from μ is
    K / Z, K being how many tokens the nucleus holds; were μ what is reported, it would be K."""
    subject = served["internlm2"]
    subject.push(0.12)
    rollouts = subject.sample(prompts(1) * 3000, seed=4, sampling=SamplingSettings(1.0, top_p, 1))
    with torch.no_grad():
        logits = subject.model(input_ids=rollouts[0].prompt_tokens[None], use_cache=False).logits[0, -1]
    probabilities = torch.softmax(logits.double(), -1).sort(descending=True).values
    kept = probabilities[probabilities.cumsum(0) - probabilities < top_p]
    inverse = torch.tensor([1 / rollout.logprobs[0].exp() for rollout in rollouts], dtype=torch.float64) / len(kept)
    error = float(inverse.std()) / len(inverse) ** 0.5
    mass = float(kept.sum())
    assert top_p <= mass < 1
    assert abs(float(inverse.mean()) - 1 / mass) < 4 * error
    assert float(inverse.mean()) - 1 > 4 * error, "the gap is there, and larger than chance"


def test_texts_and_special_tokens_end_a_response(served: dict[str, Served]) -> None:
    subject = served["stopping"]
    subject.push(0.05)
    rollouts = subject.sample(prompts(80), seed=2, sampling=SamplingSettings(1.5, 1.0, 60))
    assert gap(subject, rollouts)[0] <= 1e-4, "what stopped a response is part of what was sampled"
    tokenizer = train_tokenizer([prompt.messages[0]["content"] for prompt in prompts(30)], 300)
    plugin = token_id(tokenizer, STOPS[0])
    ends = {subject.turn_end, subject.model.config.eos_token_id, plugin}
    ended: Counter[str] = Counter()
    for rollout in rollouts:
        tokens = rollout.response_tokens.tolist()
        assert not ends & set(tokens[:-1])
        before = str(tokenizer.decode(tokens[:-1]))
        assert not any(stop in before for stop in STOPS[1:]), "sampling went on behind a stop text"
        text = before if tokens[-1] in ends else str(tokenizer.decode(tokens))
        by_text = any(stop in text for stop in STOPS[1:])
        assert rollout.finished == (by_text or tokens[-1] in ends)
        assert rollout.response == min((text.partition(stop)[0] for stop in STOPS[1:]), key=len)
        ended["text" if by_text else "plugin" if tokens[-1] == plugin else "other"] += 1
    assert ended["text"] > 0
    assert ended["plugin"] > 0


def test_a_prompt_that_leaves_no_room_is_the_users_to_mend(served: dict[str, Served]) -> None:
    long = Prompt("long one", [{"role": "user", "content": "word " * 300}], "default", None)
    with pytest.raises(UserError, match=r"the prompt that begins with .* leaves no room"):
        served["llama"].sample([*prompts(1), long], seed=1)


def test_the_checkpoint_bounds_the_length(served: dict[str, Served], tmp_path: Path) -> None:
    """The config allows far more positions than the checkpoint has."""
    assert Config().model.max_positions > MAX_LENGTH
    rollouts = served["llama"].sample(prompts(3), seed=1, sampling=SamplingSettings(1.0, 1.0, 10_000))
    for rollout in rollouts:
        assert rollout.finished or len(rollout.tokens) == MAX_LENGTH
