"""What a run reads: the user's sources, and the embedded world for what they leave out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from cool_rlhf.config import Config
from cool_rlhf.data.loading import (
    Chat,
    Reading,
    load_chats,
    load_pretrain,
    load_prompts,
    split_by_prompt,
)
from cool_rlhf.data.preferences import PreferenceSplit, load_split, split_pairs
from cool_rlhf.demo import gold as demo_gold
from cool_rlhf.demo.registry import DOMAINS
from cool_rlhf.demo.world import World, generate
from cool_rlhf.protocols import Conversation, PreferencePair, Prompt, Rollout, UserError
from cool_rlhf.schedule import derive_seed

Labeller = Callable[[Conversation, str, str, str | None, bool], float]
VALIDATION_SHARE = 0.05  # of the prompts, where no validation prompts are named
CHARACTERS_PER_TOKEN = 4.0  # of English
COUNTED_ROWS = 1000


@dataclass(frozen=True)
class Inputs:
    """Rows are read when a stage first asks for them."""

    config: Config

    @cached_property
    def world(self) -> World:
        sizes = self.config.data.world
        if sizes is None:
            raise UserError("the embedded world is off (data.world is null), and the stage needs rows: name your own")
        return generate(sizes, self.config.seed)

    @cached_property
    def chats(self) -> Sequence[Chat]:
        own = self.config.data.sft
        if own:
            return load_chats(own, self._reading)
        return [Chat(messages=row["messages"], domain=row["domain"]) for row in self.world.sft]

    @property
    def preferences(self) -> Sequence[PreferencePair]:
        """Those to learn from."""
        return self.preference_split.training

    @cached_property
    def preference_split(self) -> PreferenceSplit:
        data, share = self.config.data, self.config.reward.validation_share
        named = load_split(data, share, self._reading, derive_seed(self.config.seed, "preferences"))
        return named if data.preferences else named.joined(split_pairs(self.world.preferences, share, named.held))

    @cached_property
    def pretrain(self) -> Sequence[str]:
        """None at all where the run has none: a stage that needs them was refused before."""
        own = self.config.data.pretrain
        if own or self.config.data.world is None:
            return load_pretrain(own, self._reading)
        return self.world.pretrain

    def tokens(self, what: str) -> float:
        """About how many tokens all of ``sft`` or ``reward`` has, or one ``prompt``, before a tokenizer has seen it."""
        if what == "sft":
            return len(self.chats) * _mean_tokens(chat["messages"] for chat in self.chats)
        if what == "prompt":
            return _mean_tokens(prompt.messages for prompt in self.prompts)
        collect = self.config.collect
        pairs = len(self.preferences) + collect.prompts * collect.pairs_per_prompt
        return 2 * pairs * _mean_tokens(pair.chosen for pair in self.preferences)

    def texts(self) -> Iterator[str]:
        """What a tokenizer of the run's own learns from: also the conditions, which the reward model reads so often."""
        for chat in self.chats:
            yield from (turn["content"] for turn in chat["messages"])
            yield self.config.conditions.get(chat["domain"], "")
        yield from self.pretrain

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self._prompts[0]

    @property
    def validation(self) -> Sequence[Prompt]:
        return self._prompts[1]

    @cached_property
    def _prompts(self) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
        data = self.config.data
        prompts = load_prompts(data.prompts, self._reading) if data.prompts else self.world.prompts
        if data.validation_prompts:
            return prompts, load_prompts(data.validation_prompts, self._reading)
        if not data.prompts:
            return prompts, self.world.validation
        return split_by_prompt(prompts, VALIDATION_SHARE, self.config.seed, lambda prompt: prompt.messages)

    @property
    def _reading(self) -> Reading:
        return Reading.of(self.config)


def _mean_tokens(conversations: Iterable[Conversation]) -> float:
    few = list(islice(conversations, COUNTED_ROWS))
    characters = sum(len(turn["content"]) for conversation in few for turn in conversation)
    return characters / CHARACTERS_PER_TOKEN / max(len(few), 1)


def gold_of(rollout: Rollout) -> float | None:
    """What the embedded world's rule gives a response; None for prompts that it has no rule for."""
    prompt = rollout.prompt
    if prompt.domain not in DOMAINS or prompt.answer is None:
        return None
    return demo_gold.score(prompt.messages, rollout.response, prompt.domain, prompt.answer, rollout.finished)


def no_gold(rollout: Rollout) -> float | None:
    """For runs on the user's own prompts."""
    return None


def resolve_labeller(name: str) -> Labeller:
    """The function behind ``module:function``. Raises UserError where there is none."""
    module, _, function = name.partition(":")
    try:
        labeller: Labeller = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"collect.labeller: {name} is no module:function that can be imported ({error})") from error
    return labeller
