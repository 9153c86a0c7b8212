"""The generator: chats, prompts, preferences and plain text, all from one seed.

A question belongs to the training, validation or test split by a hash of its text, so no question stands in two of
them, whatever the seeds and sizes.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import Literal, TypedDict

from cool_rlhf.config import WorldConfig
from cool_rlhf.data.labelling import Answer, label_pair
from cool_rlhf.demo import gold
from cool_rlhf.demo.corruption import CORRUPTIONS, cut_off, loop, nothing
from cool_rlhf.demo.domain import Domain, Task
from cool_rlhf.demo.pretrain import passage
from cool_rlhf.demo.registry import DOMAINS, TRAINING_MIX
from cool_rlhf.protocols import Conversation, PreferencePair, Prompt, UserError

Split = Literal["train", "validation", "test"]
_BUCKETS: dict[int, Split] = {0: "validation", 1: "test", 2: "test"}  # of 20
_GREETINGS = (("Hello!", "Hello! What can I do for you?"), ("Good morning.", "Good morning! How can I help?"))
GREETED_SHARE = 0.1
GOOD_SHARE, SLOPPY_SHARE = 0.4, 0.45  # of SFT chats; the rest is degenerate
TEST_PAIRS = 240
LEAST_GAP = 0.15  # of gold, between two answers that are no tie
TEST_GAP = 0.2  # held-out pairs are clear ones
OPPOSED_GAP = 0.3
MOST_DRAWS = 2000  # for one more question that has not been asked yet


class Chat(TypedDict):
    messages: Conversation
    domain: str


@dataclass(frozen=True)
class World:
    """Everything a run of the pipeline needs, from one seed. Lists mix the domains evenly.

    Each part has its own random stream, so changing one size leaves the others alone, and is made when it is first
    asked for: few stages read all of them. Raises UserError then, where there are not as many questions as asked for.
    """

    sizes: WorldConfig
    seed: int

    @cached_property
    def sft(self) -> list[Chat]:
        return list(islice(_chats(self._stream("sft")), self.sizes.sft))

    @cached_property
    def preferences(self) -> list[PreferencePair]:
        """Their labels err with the configured noise."""
        pairs = _preferences(self._stream("preferences"), self.sizes.label_noise)
        return list(islice(pairs, self.sizes.preferences))

    @cached_property
    def prompts(self) -> list[Prompt]:
        return _prompts("train", self.sizes.prompts, self._stream("prompts"))

    @cached_property
    def validation(self) -> list[Prompt]:
        return _prompts("validation", self.sizes.validation, self._stream("validation"))

    @cached_property
    def test(self) -> list[Prompt]:
        return _prompts("test", self.sizes.test, self._stream("test"))

    @cached_property
    def preference_validation(self) -> list[PreferencePair]:
        """Gold labels without noise, on questions of the validation split."""
        return _clear_pairs("validation", self.sizes.validation_pairs, self._stream("preference validation"))

    @cached_property
    def preference_test(self) -> list[PreferencePair]:
        """The same on questions of the test split."""
        return _clear_pairs("test", TEST_PAIRS, self._stream("preference test"))

    @cached_property
    def opposed_test(self) -> list[PreferencePair]:
        """The same, each pair of answers once under brief and once under thorough."""
        return _opposed_pairs(self._stream("opposed test"))

    @property
    def pretrain(self) -> list[str]:
        return self._passages[: self.sizes.pretrain]

    @property
    def pretrain_heldout(self) -> list[str]:
        return self._passages[self.sizes.pretrain :]

    @cached_property
    def _passages(self) -> list[str]:
        count = self.sizes.pretrain
        return _distinct_passages(self._stream("pretrain"), count + max(1, count // 10))

    def _stream(self, part: str) -> random.Random:
        return random.Random(f"{part} {self.seed}")


def split_of(question: str) -> Split:
    return _BUCKETS.get(zlib.crc32(question.encode()) % 20, "train")


def draw(domain: Domain, split: Split, rng: random.Random) -> Task:
    """A task whose question belongs to ``split``."""
    while True:
        task = domain.make(rng)
        if split_of(task.question) == split:
            return task


def _conversation(question: str, rng: random.Random) -> Conversation:
    """The question, in some chats after a greeting."""
    turns: Conversation = [{"role": "user", "content": question}]
    if rng.random() < GREETED_SHARE:
        hello, reply = rng.choice(_GREETINGS)
        turns = [{"role": "user", "content": hello}, {"role": "assistant", "content": reply}, *turns]
    return turns


def _off_question(domain: Domain, task: Task, rng: random.Random) -> str:
    """A good answer to another question, of this domain or any."""
    while True:
        other = rng.choice((domain, rng.choice(list(DOMAINS.values())))).make(rng)
        if other.answer != task.answer:
            return rng.choice(other.good)


def _chats(rng: random.Random) -> Iterator[Chat]:
    for domain in cycle(TRAINING_MIX):
        task = draw(domain, "train", rng)
        luck = rng.random()
        if luck < GOOD_SHARE:
            text = rng.choice(task.good)
        elif luck < GOOD_SHARE + SLOPPY_SHARE:
            text = rng.choice(task.sloppy)
        elif luck < GOOD_SHARE + SLOPPY_SHARE + 0.04:
            text = _off_question(domain, task, rng)
        else:
            fault = rng.choice((loop, cut_off, nothing))
            text = fault(rng.choice(task.good + task.sloppy), rng).text
        turns = _conversation(task.question, rng)
        yield {"messages": [*turns, {"role": "assistant", "content": text}], "domain": domain.name}


def _answers(domain: Domain, task: Task, rng: random.Random) -> tuple[Answer, Answer]:
    """Two answers to compare: a good one and the same made wrong in one place, or any two.

    The first kind teaches what is right, since nothing else differs; with the second alone a reward model learns
    style.
    """
    if rng.random() < domain.spoiled_share:
        text = rng.choice(task.good)
        return Answer(text, finished=True), Answer(domain.spoil(text, rng), finished=True)
    return _any_answer(domain, task, rng), _any_answer(domain, task, rng)


def _any_answer(domain: Domain, task: Task, rng: random.Random) -> Answer:
    luck = rng.random()
    if luck < 0.35:
        return Answer(rng.choice(task.good), finished=True)
    if luck < 0.70:
        return Answer(rng.choice(task.sloppy), finished=True)
    if luck < 0.93:
        return rng.choice(CORRUPTIONS)(rng.choice(task.good + task.sloppy), rng)
    return Answer(_off_question(domain, task, rng), finished=True)


def _prompt(domain: Domain, task: Task, id: str, rng: random.Random) -> Prompt:
    return Prompt(id, _conversation(task.question, rng), domain.name, task.answer)


def _preferences(rng: random.Random, noise: float) -> Iterator[PreferencePair]:
    """Pairs of any two answers, judged under every domain that judges such questions."""
    for domain in cycle(TRAINING_MIX):
        task = draw(domain, "train", rng)
        prompt = _prompt(domain, task, "", rng)
        answers = _answers(domain, task, rng)
        for judge_of in domain.judged_as:
            pair = label_pair(prompt, answers, judge_of, gold.score, noise, rng, LEAST_GAP)
            if pair is not None:
                yield pair


def _clear_pairs(split: Split, count: int, rng: random.Random) -> list[PreferencePair]:
    """``count`` pairs of each domain."""
    pairs = []
    for domain in DOMAINS.values():
        found = 0
        while found < count:
            task = draw(domain, split, rng)
            answers = _answers(domain, task, rng)
            pair = label_pair(_prompt(domain, task, "", rng), answers, domain.name, gold.score, 0.0, rng, TEST_GAP)
            if pair is not None:
                pairs.append(pair)
                found += 1
    return pairs


def _opposed_pairs(rng: random.Random) -> list[PreferencePair]:
    """A short and a full answer to one question, twice: under brief and, oppositely, under thorough."""
    pairs: list[PreferencePair] = []
    kinds = cycle((DOMAINS["brief"], DOMAINS["thorough"]))
    while len(pairs) < 2 * TEST_PAIRS:
        domain = next(kinds)
        task = draw(domain, "test", rng)
        prompt = _prompt(domain, task, "", rng)
        first, second = (Answer(text, finished=True) for text in rng.sample(task.good + task.sloppy, 2))
        judged = [
            label_pair(prompt, (first, second), name, gold.score, 0.0, rng, OPPOSED_GAP) for name in domain.judged_as
        ]
        clear = [pair for pair in judged if pair is not None]
        if len(clear) == 2 and clear[0].chosen != clear[1].chosen:
            pairs += clear
    return pairs


def _prompts(split: Split, count: int, rng: random.Random) -> list[Prompt]:
    """``count`` prompts with distinct questions. Raises UserError where a domain has not so many."""
    found: dict[str, Prompt] = {}
    for domain in islice(cycle(DOMAINS.values()), count):
        tasks = (draw(domain, split, rng) for _ in range(MOST_DRAWS))
        task = next((task for task in tasks if task.question not in found), None)
        if task is None:
            key = "prompts" if split == "train" else split
            raise UserError(
                f"data.world.{key} is {count}: the world's domain {domain.name} has no more questions; ask for at "
                f"most {len(found)}"
            )
        found[task.question] = _prompt(domain, task, f"{split}-{domain.name}-{len(found)}", rng)
    return list(found.values())


def _distinct_passages(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[passage(rng)] = None
    return list(found)
