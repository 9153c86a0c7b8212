"""The reward model of the next round: trained on, with the round's patches, every label so far, and replay."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cool_rlhf.config import Config, RewardConfig
from cool_rlhf.data.mixing import mixed_order
from cool_rlhf.data.streams import token_batches
from cool_rlhf.new_pairs import NewPairs
from cool_rlhf.online.repair import Verdict, judge_repair, mix_with_replay
from cool_rlhf.protocols import PreferencePair, StepObserver
from cool_rlhf.roles.trainer import RemoteRewardTrainer
from cool_rlhf.schedule import derive_seed
from cool_rlhf.tracking import StageTracker
from cool_rlhf.tracking.rows import write_atomically
from reward.conditions import Conditions
from reward.pairs import EncodedPair, encode_pairs
from reward.training import RewardTrainer, train_reward

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repair:
    """What was tried and what stayed. ``verdicts``: the last one of every pattern of the round."""

    attempts: int
    kept: list[str]
    verdicts: dict[str, Verdict]


@dataclass
class AttemptObserver:
    """Steps of several attempts in one stage, counted on; a repair is short, so nothing of it is saved on the way."""

    stage: StageTracker
    attempt: int
    before: int  # steps of earlier attempts
    steps: int = 0

    def record(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        self.steps = step
        self.stage.record(self.before + step, {**metrics, "attempt": self.attempt})

    def save(self, step: int) -> None:
        pass


def repair_settings(config: Config) -> RewardConfig:
    """How the reward model trains on."""
    online = config.online
    return replace(
        config.reward,
        epochs=online.epochs,
        learning_rate=online.learning_rate,
        final_learning_rate=online.final_learning_rate,
    )


class Repairing:
    """Trains the reward model on, and takes out again the patches of patterns that cost more than they mend.

    Args:
        start: gives a trainer that holds the reward model as it was; the one before is not used any more.
        base: what the reward model learnt before, to be replayed.
        general: pairs that it never learns from; a sample of them, in which domains have their shares, judges a repair.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: PreTrainedTokenizerBase,
        start: Callable[[], RemoteRewardTrainer],
        base: Sequence[PreferencePair],
        general: Sequence[PreferencePair],
        round: int,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._start = start
        self._base = base
        self._general = self._encoded(sample_pairs(general, config.online.judging_pairs, config.seed))
        self._seed = derive_seed(config.seed, "repair", round)

    def steps(self, new: NewPairs) -> int:
        """Of an attempt with all of the round's patches."""
        mixed = self._mixed(new.training(list(new.patches)))
        lengths = [len(pair) for pair in self._encoded(mixed)]
        return len(token_batches(lengths, self._config.reward.batch_tokens, 0, self._config.online.epochs))

    def run(self, new: NewPairs, stage: StageTracker) -> tuple[Repair, RemoteRewardTrainer]:
        """Train with all of the round's patches; if a pattern's are to be rolled back, train anew without them.
        Returns what stayed, and the trainer that holds the model."""
        patterns = [name for name, patches in new.patches.items() if self._general and any(p.judges for p in patches)]
        for name in new.patches:
            if name not in patterns:
                lacking = "pairs of its own" if self._general else "general pairs (reward.validation_share)"
                logger.warning("%s is not mended: there are no held-out %s to judge that by", name, lacking)
        judges = {name: self._encoded([p.pair for p in new.patches[name] if p.judges]) for name in patterns}
        verdicts: dict[str, Verdict] = {}
        before: list[bool] | None = None
        attempt = steps = 0
        while True:
            attempt += 1
            trainer = self._start()
            if before is None:
                before = preferred(trainer, self._general)
            observer = AttemptObserver(stage, attempt, steps)
            self._train(trainer, new.training(patterns), observer)
            steps += observer.steps
            after = preferred(trainer, self._general)
            found = {name: self._verdict(preferred(trainer, judges[name]), before, after) for name in patterns}
            verdicts |= found
            failed = self._failed(found)
            for name in failed:
                logger.warning("the repair of %s is rolled back: %s", name, found[name].reason)
            if not failed:
                return Repair(attempt, patterns, verdicts), trainer
            patterns = [name for name in patterns if name not in failed]

    def _failed(self, found: Mapping[str, Verdict]) -> list[str]:
        """The patterns that are not mended. Where all are, but together cost too much, the last: findings stand in the
        order of what they explain, and cost cannot be told apart."""
        unmended = [name for name, verdict in found.items() if verdict.held_out < self._config.online.least_mended]
        costly = [name for name, verdict in found.items() if not verdict.kept]
        return unmended or costly[-1:]

    def _train(self, trainer: RewardTrainer, new: Sequence[PreferencePair], observer: StepObserver) -> None:
        if new:
            mixed, settings = self._encoded(self._mixed(new)), repair_settings(self._config)
            train_reward(trainer, mixed, settings, seed=self._seed, observer=observer)

    def _mixed(self, new: Sequence[PreferencePair]) -> list[PreferencePair]:
        return mix_with_replay(new, self._base, self._config.online.replay, self._seed)

    def _verdict(self, mended: Sequence[bool], before: Sequence[bool], after: Sequence[bool]) -> Verdict:
        online = self._config.online
        return judge_repair(mended, before, after, least_right=online.least_mended, most_fall=online.most_lost)

    def _encoded(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair]:
        """What is too long loses its beginning: none is dropped, so that pairs stay in step."""
        conditions = Conditions(self._config.conditions)
        return encode_pairs(self._tokenizer, conditions, pairs, self._config.reward.max_length).pairs


def sample_pairs(pairs: Sequence[PreferencePair], count: int, seed: int) -> list[PreferencePair]:
    """``count`` of the pairs in their order, at most; each domain has its share of them. The same in every round."""
    order = mixed_order([pair.domain for pair in pairs], derive_seed(seed, "judging pairs"))
    return [pairs[place] for place in sorted(order[:count])]


def preferred(trainer: RewardTrainer, pairs: Sequence[EncodedPair]) -> list[bool]:
    """Whether the model prefers each pair's chosen side; a tie does not count."""
    return [chosen > rejected for chosen, rejected in trainer.scores(pairs).result()] if pairs else []


def write_repair(path: Path, repair: Repair, new: NewPairs) -> None:
    """``kept`` and ``rolled_back`` patterns, ``attempts``, ``verdicts`` by pattern, and how many pairs there were."""
    content: dict[str, Any] = {
        "kept": repair.kept,
        "rolled_back": [name for name in repair.verdicts if name not in repair.kept],
        "attempts": repair.attempts,
        "verdicts": {name: asdict(verdict) for name, verdict in repair.verdicts.items()},
        "pairs": {
            "patches": sum(not p.held_out for name in repair.kept for p in new.patches[name]),
            "earlier_patches": len(new.kept),
            "labels": len(new.labels),
        },
    }
    write_atomically(path, f"{json.dumps(content, ensure_ascii=False, indent=1)}\n".encode())
