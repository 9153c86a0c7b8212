"""From ``module:function`` to a rule, and what a rule may give."""

from __future__ import annotations

import importlib
import inspect
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from cool_rlhf.protocols import Conversation, Rule, UserError


@dataclass(frozen=True)
class NamedRule:
    """A rule that the setting ``key`` names: whatever it cannot judge is a mistake there, a UserError that says on
    which prompt."""

    rule: Rule
    name: str  # module:function
    key: str

    def __call__(
        self, messages: Conversation, response: str, domain: str, answer: str | None, finished: bool, /
    ) -> float:
        asked = (
            f"{'a' if finished else 'an unfinished'} response to {messages[-1]['content'][:60]!r} of domain {domain!r}"
        )
        try:
            own: Conversation = [message.copy() for message in messages]  # which a rule may go on writing in
            value = self.rule(own, response, domain, answer, finished)
        except UserError as error:
            raise UserError(f"{self.key}: the rule {self.name} refuses {asked}: {error}") from error
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{self.key}: the rule {self.name} fails on {asked} with {said}; mend it or name another"
            ) from error
        number = finite_number(value)
        if number is None:
            raise UserError(
                f"{self.key}: the rule {self.name} gave {value!r} for {asked}: it must give a finite number; mend it "
                "or name another"
            )
        return number


def load_named(name: str, key: str) -> NamedRule:
    """As :func:`load_rule`, and whatever the rule cannot judge is answered in one sentence too."""
    return NamedRule(load_rule(name, key), name, key)


def load_rule(name: str, key: str) -> Rule:
    """The function behind ``module:function``, which the setting ``key`` names.

    Raises: UserError where there is none, or where it does not take what a rule is given.
    """
    module, _, function = name.partition(":")
    try:
        rule: Rule = getattr(importlib.import_module(module), function)
    except Exception as error:  # the module is the user's own: what it does while it is imported may fail in any way
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{key}: {name} is no module:function that can be imported ({said})") from error
    if not callable(rule):
        raise UserError(f"{key}: {name} is no function")
    try:
        inspect.signature(rule).bind([], "", "", None, True)
    except (TypeError, ValueError) as error:  # ValueError: of some builtins Python knows no signature
        raise UserError(
            f"{key}: {name} cannot be called as rule(messages, response, domain, answer, finished): {error}"
        ) from error
    return rule


def finite_number(value: Any) -> float | None:
    """What a rule gave, where it is a finite number, numpy's included; else None."""
    if not isinstance(value, Real | np.bool_):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float holds
        return None
    return number if math.isfinite(number) else None
