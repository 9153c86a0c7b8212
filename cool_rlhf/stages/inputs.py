"""What a run reads: the user's sources, and the embedded world for what they leave out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from math import ceil

from cool_rlhf.config import Config
from cool_rlhf.data.identity import judges_repairs, prompt_key
from cool_rlhf.data.loading import (
    Chat,
    Reading,
    load_chats,
    load_pretrain,
    load_prompts,
)
from cool_rlhf.data.messages import with_system_turn, without_system_turn
from cool_rlhf.data.mixing import mixed_order
from cool_rlhf.data.preferences import PROMPT_HELD_OUT, PROMPT_TESTED, PreferenceSplit, load_split, split_pairs
from cool_rlhf.data.splitting import answers_any, hold_out_texts, leave_out, split_by_prompt, tested_keys
from cool_rlhf.data.streams import ShuffledStream, Stream, WeightedStream
from cool_rlhf.demo import gold as demo_gold
from cool_rlhf.demo.registry import DOMAINS
from cool_rlhf.demo.world import World
from cool_rlhf.derived_settings import has_paths, validation_share
from cool_rlhf.instructions import Instruction, make_instructions
from cool_rlhf.ppo.rewards import Recipe, apply_rules
from cool_rlhf.protocols import Conversation, PreferencePair, Prompt, UserError
from cool_rlhf.rules.loading import load_named
from cool_rlhf.schedule import derive_seed

logger = logging.getLogger(__name__)

VALIDATION_SHARE = 0.05  # of the prompts or pretraining texts, where no held-out ones are named
MOST_HELD_OUT_TEXTS = 256
CHARACTERS_PER_TOKEN = 4.0  # of English
COUNTED_ROWS = 1000


GoldRule = Callable[[Prompt, str, bool], float | None]
"""What a response (text, and whether it is finished) to a prompt is worth by a rule; None where there is none."""


@dataclass(frozen=True)
class Inputs:
    """Rows are read when a stage first asks for them."""

    config: Config

    @cached_property
    def world(self) -> World:
        sizes = self.config.data.world
        if sizes is None:
            raise UserError("the embedded world is off (data.world is null), and the stage needs rows: name your own")
        world = World(sizes, self.config.seed)
        for questions in ("prompts", "validation", "test"):
            getattr(world, questions)  # read now: sizes that ask for more than there are end before anything is trained
        return world

    @cached_property
    def chats(self) -> Sequence[Chat]:
        """Those to learn from."""
        own, tested, system = self.config.data.sft, self._tested, self.config.sampling.system_prompt
        chats: Sequence[Chat] = (
            load_chats(own, self._reading)
            if own
            else [Chat(messages=row["messages"], domain=row["domain"]) for row in self.world.sft]
        )
        if not tested:  # chats on disk stay there unread
            return chats
        return leave_out(chats, lambda chat: answers_any(chat["messages"], tested, system), "data.sft")

    @property
    def preferences(self) -> Sequence[PreferencePair]:
        """Those to learn from."""
        return self.preference_split.training

    @cached_property
    def preference_split(self) -> PreferenceSplit:
        data, share = self.config.data, validation_share(self.config)
        named = load_split(data, share, self._reading, derive_seed(self.config.seed, "preferences"))
        return named if data.preferences else named.joined(split_pairs(self.world.preferences, share, named.held))

    @cached_property
    def judging_pairs(self) -> Sequence[PreferencePair]:
        """Those that no reward model learns from, by which a repair is judged: the user's, else the embedded world's in
        the domains that the run has a condition for. Prompts of which the rounds make patches and labels are taught."""
        pairs: Sequence[PreferencePair] = self.preference_split.validation
        if not pairs and self.config.data.world is not None:
            pairs = [pair for pair in self.world.preference_validation if pair.domain in self.config.conditions]
        taught = self._taught_in_rounds()
        kept = [pair for pair in pairs if self._key(pair.chosen[:-1]) not in taught]
        most_lost = self.config.online.most_lost
        if len(kept) < min(len(pairs), ceil(1 / most_lost) if most_lost else 1):
            logger.warning(
                "general accuracy is judged by only %d pairs, too few to see a fall of online.most_lost in, since the "
                "rounds teach on the prompts of %d others: name pairs of other prompts in data.validation_preferences",
                *(len(kept), len(pairs) - len(kept)),
            )
        return kept

    @property
    def kept_from_reward_models(self) -> Mapping[str, str]:
        """Key of a prompt that no reward model may learn from, wherever a label of it comes from → why."""
        tested = {key: why for key, why in self.preference_split.held.items() if why == PROMPT_TESTED}
        return tested | {self._key(pair.chosen[:-1]): PROMPT_HELD_OUT for pair in self.judging_pairs}

    def _taught_in_rounds(self) -> set[str]:
        """Keys of the prompts that the rounds make patches and labels of."""
        if not has_paths(self.config):
            return set()
        asked = (prompt.messages for prompt in self.round_prompts)
        return {self._key(messages) for messages in asked if not judges_repairs(messages)}

    @cached_property
    def _tested(self) -> set[str]:
        """Keys of the prompts of test rows."""
        return tested_keys(self.config.data, self._reading)

    def _key(self, prompt: Conversation) -> str:
        """The same whether or not the policy's system turn stands in front."""
        return prompt_key(without_system_turn(prompt, self.config.sampling.system_prompt))

    @property
    def pretrain(self) -> Sequence[str]:
        """None at all where the run has none: a stage that needs them was refused before."""
        return self._texts[0]

    @property
    def held_out_texts(self) -> Sequence[str]:
        """Pretraining texts that nothing learns from."""
        return self._texts[1]

    @cached_property
    def _texts(self) -> tuple[Sequence[str], Sequence[str]]:
        data = self.config.data
        own = bool(data.pretrain) or data.world is None
        texts = load_pretrain(data.pretrain, self._reading) if own else self.world.pretrain
        if data.validation_pretrain:
            held = load_pretrain(data.validation_pretrain, self._reading)
            return leave_out(texts, set(held).__contains__, "data.pretrain"), held
        if not own:
            return texts, self.world.pretrain_heldout
        return hold_out_texts(texts, VALIDATION_SHARE, MOST_HELD_OUT_TEXTS)

    def tokens(self, what: str) -> float:
        """About how many tokens all of ``sft`` or ``reward`` has, or one ``prompt``, before a tokenizer has seen it.
        Raises: ValueError for anything else."""
        if what == "sft":
            return len(self.chats) * _mean_tokens(chat["messages"] for chat in self.chats)
        if what == "prompt":
            return _mean_tokens(prompt.messages for prompt in self.prompts)
        if what != "reward":
            raise ValueError(f"nothing is known of the length of {what!r}")
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
        """Held-out prompts. The first are those of PPO's validation, the last those of the rounds: both have all
        domains, whatever the order of the user's files."""
        return self._prompts[1]

    @cached_property
    def round_prompts(self) -> Sequence[Prompt]:
        """Those that every policy answers between rounds: ``online.prompts`` of them, or as many as there are. Where
        there are fewer than those and ``ppo.validation_prompts`` together, PPO's validation asks some of them too."""
        asked = self.config.online.prompts
        found = self.validation[-asked:] if asked else []
        if len(found) < asked:
            logger.warning(
                "only %d prompts are held out of the %d that online.prompts asks to be answered between rounds: the "
                "fast path sees less; name more in data.validation_prompts",
                *(len(found), asked),
            )
        return found

    @cached_property
    def _prompts(self) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
        data = self.config.data

        def key(prompt: Prompt) -> str:
            return self._key(prompt.messages)

        def is_tested(prompt: Prompt) -> bool:
            return key(prompt) in self._tested

        prompts = self.load_prompts(data.prompts) if data.prompts else self.addressed(self.world.prompts)
        prompts = leave_out(prompts, is_tested, "data.prompts")
        if data.validation_prompts:
            # Rounds make patches and labels of them, from which the reward model learns.
            named = self.load_prompts(data.validation_prompts)
            held = self._mixed(leave_out(named, is_tested, "data.validation_prompts"))
            keys = set(map(key, held))
            return leave_out(prompts, lambda prompt: key(prompt) in keys, "data.prompts"), held
        if not data.prompts:
            validation = self.addressed(self.world.validation)
            return prompts, leave_out(validation, is_tested, "the embedded world's validation prompts")
        kept, held = split_by_prompt(prompts, VALIDATION_SHARE, self.config.seed, lambda prompt: prompt.messages)
        return kept, self._mixed(held)

    @cached_property
    def _named_held(self) -> set[str]:
        """Keys of the held-out prompts that the user has named."""
        return (
            {self._key(prompt.messages) for prompt in self.validation} if self.config.data.validation_prompts else set()
        )

    def _mixed(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        domains = [prompt.domain for prompt in prompts]
        return [prompts[place] for place in mixed_order(domains, derive_seed(self.config.seed, "held-out prompts"))]

    def load_prompts(self, sources: Sequence[str], reading: Reading | None = None) -> Sequence[Prompt]:
        """Those of the user's ``sources``, as the policy is asked them."""
        return load_prompts(sources, reading or self._reading)

    def addressed(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts made here, as the policy is asked them: with ``sampling.system_prompt`` where there is one."""
        system = self.config.sampling.system_prompt
        return [replace(prompt, messages=with_system_turn(prompt.messages, system)) for prompt in prompts]

    def prompt_stream(self, seed: int) -> Stream[Prompt]:
        """The order in which PPO is asked the prompts. Raises UserError where ``data.domain_weights`` leaves none."""
        weights = self.config.data.domain_weights
        if not weights:
            return ShuffledStream(self.prompts, seed)
        domains = [prompt.domain for prompt in self.prompts]
        if all(weights.get(domain, 1.0) == 0 for domain in domains):
            raise UserError("data.domain_weights leaves no prompt: give a domain that prompts have a weight above 0")
        return WeightedStream(self.prompts, domains, weights, seed)

    @cached_property
    def instructions(self) -> list[Instruction]:
        """Those that validation checks, as the policy is asked them."""
        made = make_instructions(self.config.ppo.validation_instructions, self.config.seed)
        asked = self.addressed([instruction.prompt for instruction in made])
        return [replace(instruction, prompt=prompt) for instruction, prompt in zip(made, asked, strict=True)]

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """What PPO rewards in each domain that the config says so of. Raises UserError for a rule that is not there."""
        return {
            domain: Recipe(
                recipe.conditions,
                {name: (load_named(name, f"ppo.rewards.{domain}.rules"), w) for name, w in recipe.rules.items()},
            )
            for domain, recipe in self.config.ppo.rewards.items()
        }

    def gold_score(self, prompt: Prompt, response: str, finished: bool) -> float | None:
        """What judges a response beside the reward model: with the embedded world's prompts its exact rules, with the
        user's own those of ``ppo.rewards``; None where there is neither."""
        exact = self.world_score(prompt, response, finished)
        return self.rule_score(prompt, response, finished) if exact is None else exact

    def world_score(self, prompt: Prompt, response: str, finished: bool) -> float | None:
        """What the embedded world's rule gives a response to one of its own prompts; None with the user's, whatever
        their domains are called, and with those that it has no rule for."""
        if self.config.data.prompts or self._key(prompt.messages) in self._named_held:
            return None
        if prompt.domain not in DOMAINS or prompt.answer is None:
            return None
        return demo_gold.score(prompt.messages, response, prompt.domain, prompt.answer, finished)

    def rule_score(self, prompt: Prompt, response: str, finished: bool) -> float | None:
        """See :meth:`cool_rlhf.ppo.rewards.Recipe.gold`. Raises UserError where a rule fails."""
        recipe = self.recipes.get(prompt.domain)
        return recipe.gold(apply_rules(recipe, prompt, response, finished)) if recipe else None

    @property
    def _reading(self) -> Reading:
        return Reading.of(self.config)


def _mean_tokens(conversations: Iterable[Conversation]) -> float:
    few = list(islice(conversations, COUNTED_ROWS))
    characters = sum(len(turn["content"]) for conversation in few for turn in conversation)
    return characters / CHARACTERS_PER_TOKEN / max(len(few), 1)
