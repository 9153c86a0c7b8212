"""From ``module:function`` to a rule, and what a rule may give."""

from __future__ import annotations

import importlib
import inspect
import math
from numbers import Real
from typing import Any

import numpy as np

from cool_rlhf.protocols import Rule, UserError


def load_rule(name: str, key: str) -> Rule:
    """The function behind ``module:function``, which the setting ``key`` names.

    Raises: UserError where there is none, or where it does not take what a rule is given.
    """
    module, _, function = name.partition(":")
    try:
        rule: Rule = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise UserError(f"{key}: {name} is no module:function that can be imported ({error})") from error
    if not callable(rule):
        raise UserError(f"{key}: {name} is no function")
    try:
        inspect.signature(rule).bind([], "", "", None, True)
    except TypeError as error:
        raise UserError(
            f"{key}: {name} cannot be called as rule(messages, response, domain, answer, finished): {error}"
        ) from error
    return rule


def finite_number(value: Any) -> float | None:
    """What a rule gave, where it is a finite number, numpy's included; else None."""
    return float(value) if isinstance(value, Real | np.bool_) and math.isfinite(value) else None
