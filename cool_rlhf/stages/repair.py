"""The reward model of the next round: trained on, with the round's patches, every label so far, and replay."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from cool_rlhf.config import Config, RewardConfig
from cool_rlhf.data.identity import prompt_key
from cool_rlhf.data.streams import token_batches
from cool_rlhf.files import write_atomically
from cool_rlhf.online.attempts import Attempt, next_attempt
from cool_rlhf.online.lessons import Lessons, pair_id
from cool_rlhf.online.repair import (
    LEAST_HELD_OUT,
    REPLAY_POOL,
    RepairVerdict,
    costs,
    effect,
    judge_repair,
    mix_with_replay,
    sample_pairs,
)
from cool_rlhf.protocols import PreferencePair
from cool_rlhf.roles.trainer import RemoteRewardTrainer
from cool_rlhf.schedule import derive_seed
from cool_rlhf.stages.new_pairs import NewPairs, judgements
from cool_rlhf.tracking import StageTracker
from reward.conditions import Conditions
from reward.pairs import EncodedPair, encode_pairs
from reward.training import RewardTrainer, train_reward

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rise:
    """What the round's policy is paid more than what it started from (:func:`effect`): by the reward model as it was,
    with the p-value of that, and by the one that came of the repair; and the p-value of its gold having risen
    (:func:`cool_rlhf.stages.answers.gold_rises`)."""

    before: float
    after: float
    p: float
    gold_p: float


@dataclass(frozen=True)
class Repair:
    """What was tried and what stayed. ``verdicts``: the last one of every pattern of the round."""

    attempts: int  # trainings
    times: Mapping[str, int]  # pattern that stayed → how many times its patches were learnt
    verdicts: dict[str, RepairVerdict]
    before: float | None  # accuracy on the general pairs of the model as it was; None where there are none
    after: float | None  # and of the one that came of it
    earlier: dict[str, float]  # pattern that an earlier round mended → share of its held-out pairs that are right now
    relapsed: list[str]  # those of them that are not mended any more
    rise: Rise

    @property
    def kept(self) -> list[str]:
        return list(self.times)

    def metrics(self) -> dict[str, float]:
        """How many patterns were ``repair/kept`` and ``repair/rolled_back``; where there are pairs for it, general
        accuracy, ``repair/accuracy_before`` and ``repair/accuracy_after``; where earlier rounds mended any, how many of
        those have ``repair/relapsed``; and where any pattern was tried, means over
        the last verdict on each: the share of its held-out pairs that are right, ``repair/held_out_before`` and
        ``repair/held_out``."""
        verdicts = list(self.verdicts.values())
        found: dict[str, float] = {
            "repair/kept": len(self.kept),
            "repair/rolled_back": len(self.verdicts.keys() - set(self.kept)),
        }
        if self.before is not None and self.after is not None:
            found |= {"repair/accuracy_before": self.before, "repair/accuracy_after": self.after}
        if self.earlier:
            found["repair/relapsed"] = len(self.relapsed)
        if verdicts:
            found["repair/held_out_before"] = fmean(verdict.held_out_before for verdict in verdicts)
            found["repair/held_out"] = fmean(verdict.held_out for verdict in verdicts)
        return found


@dataclass(frozen=True)
class JudgingPairs:
    """Held-out pairs of a pattern. ``places``: of each, which of the pattern's different pairs it is: one that is asked
    under several conditions is right where it is so under all."""

    pairs: Sequence[EncodedPair]
    places: Sequence[int]

    def right(self, trainer: RewardTrainer) -> list[bool]:
        found = [True] * len(set(self.places))
        for place, preferred_here in zip(self.places, preferred(trainer, self.pairs), strict=True):
            found[place] &= preferred_here
        return found


@dataclass(frozen=True)
class Right:
    """Which pairs a model has right: general ones, and by pattern those held out of its patches."""

    general: list[bool]
    mended: dict[str, list[bool]]


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
    """How the reward model trains on: once over what :func:`mix_with_replay` gives it for all epochs."""
    online = config.online
    return replace(
        config.reward,
        epochs=1,
        learning_rate=online.learning_rate,
        final_learning_rate=online.final_learning_rate,
    )


class Repairing:
    """Trains the reward model on, and takes out again the patches of patterns that cost more than they mend.

    Args:
        start: gives a trainer that holds the reward model as it was; the one before is not used any more.
        base: what the reward model learnt before, to be replayed.
        general: pairs of prompts that it never learns from; a sample of them, in which domains have their shares,
            judges a repair.
        lessons: those that teach what is mended are not replayed, and nothing is judged by them and by those that teach
            the contrary.
        beside_start: answers of the round's policy beside some of what it started from, with weights
            (:func:`cool_rlhf.stages.answers.beside_start`).
        gold_p: the p-value of their gold being higher.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: PreTrainedTokenizerBase,
        start: Callable[[], RemoteRewardTrainer],
        *,
        base: Sequence[PreferencePair],
        general: Sequence[PreferencePair],
        lessons: Lessons,
        round: int,
        beside_start: Sequence[tuple[PreferencePair, float]],
        gold_p: float,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._start = start
        self._base = [pair for pair in replayed_from(base, config) if pair_id(pair) not in lessons.teaching]
        judging = [pair for pair in judged_from(general, config) if pair_id(pair) not in lessons.all]
        self._general = self._encoded(sample_pairs(judging, config.online.judging_pairs, config.seed))
        self._seed = derive_seed(config.seed, "repair", round)
        self._round = round
        self._beside_start = self._encoded([pair for pair, _ in beside_start])
        self._weights = [weight for _, weight in beside_start]
        self._prompts = [prompt_key(pair.chosen[:-1]) for pair, _ in beside_start]
        self._gold_p = gold_p
        self._trainer: RemoteRewardTrainer
        self._learnt: Mapping[str, int] | None = None  # by the trainer's model; None: it is as it was
        self._trained = 0  # steps of all attempts
        self._attempts = 0

    def steps(self, new: NewPairs) -> int:
        """Of an attempt with all of the round's patches, the first."""
        return self._steps(self._mixed(new.training(dict.fromkeys(new.patches, 1))))

    def run(self, new: NewPairs, stage: StageTracker) -> tuple[Repair, RemoteRewardTrainer]:
        """Train with all of the round's patches, and anew as :func:`next_attempt` says, until that changes nothing.
        Returns what stayed, and the trainer that holds the model.

        Patterns answer for what their patches cost, not for what labels and replay do: where the model loses more than
        is allowed, it is compared with one that learnt those alone, in what is mended too.
        """
        judges = self._judges(new)
        self._trainer = self._start()
        untouched = self._right(self._trainer, judges)
        without = None if new.training({}) else untouched  # what the model is without the round's patches
        rise, rise_p = self._rise(self._trainer)
        times: Mapping[str, int] = dict.fromkeys(judges, 1)
        history: list[Attempt] = []
        while not history or times != history[-1].times:
            after = self._right(self._taught(new, times, stage), judges)
            if times and without is None and self._is_costly(untouched, after):
                without = self._right(self._taught(new, {}, stage), judges)
            found = {name: self._verdict(name, without or untouched, after) for name in times}
            history.append(Attempt(times, found))
            times = next_attempt(history)
            tell_of_next(history[-1], times)
        if self._is_costly(untouched, after):
            logger.warning("general accuracy falls with the labels and the replay of round %d", self._round)
        trainer = self._taught(new, times, stage)
        repair = Repair(
            self._attempts,
            times,
            {name: verdict for attempt in history for name, verdict in attempt.found.items()},
            share(untouched.general),
            share(after.general),
            *self._look_back(trainer, new),
            Rise(rise, self._rise(trainer)[0], rise_p, self._gold_p),
        )
        return repair, trainer

    def _taught(self, new: NewPairs, times: Mapping[str, int], stage: StageTracker) -> RemoteRewardTrainer:
        """The trainer with the model that has learnt each pattern's patches so many ``times``, beside the labels. It
        holds the last one that was tried; another is trained anew from the model as it was."""
        if times != self._learnt:
            if self._learnt is not None:
                self._trainer = self._start()
            self._train(self._trainer, new.training(times), stage)
            self._learnt = times
        return self._trainer

    def _judges(self, new: NewPairs) -> dict[str, JudgingPairs]:
        """The held-out pairs of every pattern of the round that can be judged by its own; the log names the others."""
        held_out = {name: [p.pair for p in patches if p.held_out] for name, patches in new.patches.items()}
        judging = {name: self._judging(pairs) for name, pairs in held_out.items()}
        found: dict[str, JudgingPairs] = {}
        for name, pairs in judging.items():
            count = len(set(pairs.places))
            if self._general and count >= LEAST_HELD_OUT:
                found[name] = pairs
            else:
                lacking = (
                    f"only {count} held-out pairs of its own, {LEAST_HELD_OUT} are needed"
                    if self._general
                    else "no held-out general pairs (reward.validation_share)"
                )
                logger.warning("%s is not mended: there are %s to judge that by", name, lacking)
        return found

    def _judging(self, pairs: Sequence[PreferencePair]) -> JudgingPairs:
        places: dict[tuple[str, str], int] = {}
        keys = [(str(pair.chosen), str(pair.rejected)) for pair in pairs]
        return JudgingPairs(self._encoded(pairs), [places.setdefault(key, len(places)) for key in keys])

    def _rise(self, trainer: RemoteRewardTrainer) -> tuple[float, float]:
        scores = trainer.scores(self._beside_start).result() if self._beside_start else []
        return effect(scores, self._weights, self._prompts)

    def _look_back(self, trainer: RemoteRewardTrainer, new: NewPairs) -> tuple[dict[str, float], list[str]]:
        """What became of the patterns that earlier rounds mended: shares of their held-out pairs that are right, and
        those that have relapsed: fewer than are asked for, and by more than one pair than were right when they were
        mended."""
        judges = {name: self._judging(pattern.pairs) for name, pattern in new.mended.items()}
        shares = {name: fmean(pairs.right(trainer)) for name, pairs in judges.items()}
        enough = self._config.online.least_mended
        relapsed = [
            name
            for name, right in shares.items()  # one pair fewer than after a repair in part is none
            if right < min(enough, new.mended[name].right - 1 / len(set(judges[name].places))) - 1e-9
        ]
        for name in relapsed:
            logger.warning(
                "%s, which an earlier round mended, is back: only %.1f%% of its held-out pairs are right",
                *(name, 100 * shares[name]),
            )
        return shares, relapsed

    def _right(self, trainer: RemoteRewardTrainer, judges: Mapping[str, JudgingPairs]) -> Right:
        return Right(preferred(trainer, self._general), {name: pairs.right(trainer) for name, pairs in judges.items()})

    def _is_costly(self, before: Right, after: Right) -> bool:
        return bool(before.general) and costs(before.general, after.general, self._config.online.most_lost)

    def _train(self, trainer: RemoteRewardTrainer, new: Sequence[PreferencePair], stage: StageTracker) -> None:
        if not new:
            return
        self._attempts += 1
        observer = AttemptObserver(stage, self._attempts, self._trained)
        settings, pairs = repair_settings(self._config), self._mixed(new)
        stage.expect(self._trained + self._steps(pairs) + 1)
        train_reward(trainer, pairs, settings, seed=self._seed, observer=observer)
        self._trained += observer.steps

    def _steps(self, pairs: Sequence[EncodedPair]) -> int:
        lengths = [len(pair) for pair in pairs]
        return len(token_batches(lengths, self._config.reward.batch_tokens, self._seed, epochs=1))

    def _mixed(self, new: Sequence[PreferencePair]) -> list[EncodedPair]:
        """What is trained on, as the first reward model's pairs were: with condition dropout, and what is too long cut
        or left out."""
        reward, online = self._config.reward, self._config.online
        return encode_pairs(
            self._tokenizer,
            Conditions(self._config.conditions),
            mix_with_replay(new, self._base, online.replay, self._seed, online.least_replay, online.epochs),
            reward.max_length,
            drop_too_long=reward.too_long == "drop",
            condition_dropout=reward.condition_dropout,
            seed=self._seed,
        ).pairs

    def _verdict(self, name: str, before: Right, after: Right) -> RepairVerdict:
        online = self._config.online
        return judge_repair(
            before.mended[name],
            after.mended[name],
            before.general,
            after.general,
            least_right=online.least_mended,
            most_fall=online.most_lost,
        )

    def _encoded(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair]:
        """Pairs to judge by. What is too long loses its beginning: none is dropped, so that pairs stay in step."""
        conditions = Conditions(self._config.conditions)
        return encode_pairs(self._tokenizer, conditions, pairs, self._config.reward.max_length).pairs


def replayed_from(base: Sequence[PreferencePair], config: Config) -> list[PreferencePair]:
    """The pairs that repairs of every round replay some of."""
    return sample_pairs(base, REPLAY_POOL, config.seed)


def judged_from(general: Sequence[PreferencePair], config: Config) -> list[PreferencePair]:
    """The pairs that repairs of every round are judged by some of: what lessons take away leaves enough."""
    return sample_pairs(general, 2 * config.online.judging_pairs, config.seed)


def tell_of_next(last: Attempt, following: Mapping[str, int]) -> None:
    """Which repairs are rolled back and which patches are learnt more or less often, and why."""
    for name, count in last.times.items():
        if name not in following:
            logger.warning("the repair of %s is rolled back: %s", name, last.found[name].reason)
        elif following[name] != count:
            told = "the patches of %s are learnt %d times instead of %d: %s"
            logger.info(told, name, following[name], count, last.found[name].reason)


def share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def preferred(trainer: RewardTrainer, pairs: Sequence[EncodedPair]) -> list[bool]:
    """Whether the model prefers each pair's chosen side; a tie does not count."""
    return [chosen > rejected for chosen, rejected in trainer.scores(pairs).result()] if pairs else []


def write_repair(path: Path, repair: Repair, new: NewPairs) -> None:
    """``kept`` and ``rolled_back`` patterns, those that there was nothing to judge by (``not_judged``), the kept ones
    whose patches were learnt more than once, with how many times (``repeated``), the ``rise`` of the policy's score as
    the reward model pays it before and after, ``attempts``, ``verdicts`` by pattern, of those that earlier rounds
    mended the share of held-out pairs that are right (``earlier``) and which have ``relapsed``, how many pairs there
    were, and the ``labels`` among them (:func:`cool_rlhf.stages.new_pairs.judgements`). Patterns and labels of the
    record are new to no later round."""
    content: dict[str, Any] = {
        "kept": repair.kept,
        "rolled_back": [name for name in repair.verdicts if name not in repair.kept],
        "not_judged": [name for name in new.patches if name not in {*repair.kept, *repair.verdicts}],
        "repeated": {name: count for name, count in repair.times.items() if count > 1},
        "rise": asdict(repair.rise),
        "attempts": repair.attempts,
        "verdicts": {name: asdict(verdict) for name, verdict in repair.verdicts.items()},
        "earlier": repair.earlier,
        "relapsed": repair.relapsed,
        "before": repair.before,
        "after": repair.after,
        "pairs": {
            "patches": sum(not p.held_out for name in repair.kept for p in new.patches[name]),
            "earlier_patches": len({pair_id(pair) for pair in new.kept}),
            "labels": len(new.labels),
        },
        "labels": judgements(new.labels),
    }
    write_atomically(path, f"{json.dumps(content, ensure_ascii=False, indent=1)}\n".encode())
