"""Trains the experiment's models in this process, with the workers that the pipeline runs under Ray. A model that is
there already, from the same settings and data, is not trained again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs import SIZES, Job, Size
from preferences import Preferences

from cool_rlhf.config import RewardConfig, SFTConfig
from cool_rlhf.data.loading import load_chats, load_pretrain
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.models.export import save_checkpoint
from cool_rlhf.models.loading import fresh_causal_lm, load_tokenizer
from cool_rlhf.roles.group import share_out
from cool_rlhf.roles.trainer import RewardWorker, SFTWorker
from cool_rlhf.roles.worker import ModelSpec, TrainSpec, Worker
from cool_rlhf.schedule import derive_seed
from cool_rlhf.sft import EncodedChat, count_targets, encode_chats, train_sft
from cool_rlhf.stages.data import encode_text
from reward.conditions import Conditions
from reward.evaluation import score_pairs
from reward.pairs import EncodedPair, encode_pairs
from reward.scoring import CONDITION_JOIN, RewardModel
from reward.training import train_reward

DONE = "done.json"


@dataclass(frozen=True)
class Ready:
    """A result that does not have to be waited for."""

    value: dict[str, float]

    def result(self) -> dict[str, float]:
        return self.value


class LocalTrainer:
    """Both training protocols over one worker in this process."""

    def __init__(self, worker: SFTWorker | RewardWorker, settings: SFTConfig | RewardConfig) -> None:
        self._worker = worker
        self._settings = settings

    def update(self, batch: Sequence[Any], learning_rate: float) -> Ready:
        lengths = [len(item.tokens) if isinstance(item, EncodedChat) else len(item) for item in batch]
        (share,) = share_out(lengths, 1, self._settings.micro_batch_tokens)
        if isinstance(self._worker, SFTWorker):
            return Ready(self._worker.update(share.pick(batch), count_targets(batch), learning_rate))
        return Ready(self._worker.update(share.pick(batch), len(batch), learning_rate, self._settings))


class Curve:
    """Keeps a few points of a training's metrics."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def record(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        if step == steps or step % max(1, steps // 50) == 0:
            self.points.append({"step": step, **metrics})

    def save(self, step: int) -> None:
        """A job is short: one that was interrupted begins anew."""


def build(worker: type[Worker], model: ModelSpec, settings: SFTConfig | RewardConfig) -> Any:
    """A worker that is the only rank of its group."""
    built = worker(0, 1, threads=int(os.environ.get("OMP_NUM_THREADS", "1")))
    os.environ.setdefault("MASTER_PORT", str(built.address()[1]))
    built.connect("127.0.0.1", int(os.environ["MASTER_PORT"]))
    first, second = settings.adam_betas
    built.build(model, TrainSpec(0, settings.weight_decay, settings.gradient_clip, (first, second)))
    return built


def train_base(data: Path, size: Size, vocabulary: int, folder: Path) -> Path:
    """A small InternLM2 from fresh weights on the plain texts and the chats; its checkpoint's folder."""
    settings = size.sft
    stamp = {"shape": asdict(size.shape), "settings": asdict(settings), "vocabulary": vocabulary}
    if finished(folder, stamp):
        return folder / "model"
    begun = time.monotonic()
    texts = load_pretrain([str(file) for file in sorted((data / "pretrain").glob("*.jsonl"))])
    chats = [row["messages"] for row in load_chats([str(file) for file in sorted((data / "sft").glob("*.jsonl"))])]
    spoken = (turn["content"] for messages in chats for turn in messages)
    tokenizer = train_tokenizer([*texts, *spoken], vocabulary)
    fresh = fresh_causal_lm(replace(size.shape, dtype=size.dtype), tokenizer, derive_seed("base"))
    save_checkpoint(
        folder / "fresh",
        fresh.config,
        fresh.state_dict().items(),
        tokenizer,
        architecture="InternLM2ForCausalLM",
        dtype=fresh.dtype,
    )
    tokenizer = load_tokenizer(folder / "fresh")
    encoded = encode_chats(tokenizer, chats, settings.max_length)
    for text in texts:
        pieces = encode_text(tokenizer, text, settings.max_length)
        encoded += [EncodedChat(tokens, tokens >= 0) for tokens in pieces]
    worker = build(SFTWorker, ModelSpec(str(folder / "fresh"), "language", size.dtype), settings)
    curve = Curve()
    train_sft(LocalTrainer(worker, settings), encoded, settings, seed=derive_seed("base"), observer=curve)
    worker.export(str(folder / "model"), None, None)
    tokens = sum(len(chat.tokens) for chat in encoded)
    finish(folder, stamp, begun, tokens=tokens, curve=curve.points)
    return folder / "model"


def train_job(job: Job, pairs: Preferences, prompts: Mapping[str, str], base: Path, to: Path) -> None:
    """A reward model from ``base`` and its scores of all test pairs, under each condition and under none."""
    conditions = Conditions(dict(prompts) if job.conditions else dict.fromkeys(prompts, ""))
    settings = replace(SIZES[job.size].reward, gamma=job.gamma, penalty_weight=job.penalty_weight)
    before = json.loads((base.parent / DONE).read_text(encoding="utf-8"))["stamp"]
    stamp = {
        "job": asdict(job),
        "settings": asdict(settings),
        "conditions": dict(conditions.prompts),
        "pairs": pairs.digest(),
        "base": before,
    }
    folder = to / job.folder
    if finished(folder, stamp):
        return
    begun = time.monotonic()
    tokenizer = load_tokenizer(base)
    training = pairs.training(job.domain, job.share)
    encoded = encode_pairs(tokenizer, conditions, training, settings.max_length)
    model = ModelSpec(str(base), "scalar", SIZES[job.size].dtype, head="fresh", seed=derive_seed("head", job.seed))
    worker = build(RewardWorker, model, settings)
    curve = Curve()
    train_reward(LocalTrainer(worker, settings), encoded.pairs, settings, seed=job.seed, observer=curve)
    trained = time.monotonic() - begun
    worker.export(str(folder / "reward_model"), dict(conditions.prompts), CONDITION_JOIN)
    scorer = RewardModel(worker.engine.module, tokenizer, conditions, max_length=settings.max_length)
    scored = score_pairs(scorer.score_batch, pairs.test_pairs, list(prompts) if job.conditions else [])
    scores = {name or "": values.tolist() for name, values in scored.scores.items()}
    finish(
        folder,
        stamp,
        begun,
        training_seconds=trained,
        pairs=len(encoded.pairs),
        tokens=token_count(encoded.pairs),
        cut=sum(encoded.cut.values()),
        curve=curve.points,
        scores=scores,
    )


def token_count(pairs: Sequence[EncodedPair]) -> int:
    return sum(len(pair) for pair in pairs)


def finished(folder: Path, stamp: Mapping[str, Any]) -> bool:
    file = folder / DONE
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["stamp"] == json.loads(json.dumps(stamp))


def finish(folder: Path, stamp: Mapping[str, Any], begun: float, **found: Any) -> None:
    text = json.dumps({"stamp": stamp, "seconds": time.monotonic() - begun, **found})
    (folder / DONE).write_text(text, encoding="utf-8")
    print(f"{folder.name}: {time.monotonic() - begun:.0f} s", flush=True)
