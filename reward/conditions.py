"""Conditions: which system prompt a preference domain is scored under (report, section 4.2.1, figure 8)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cool_rlhf.protocols import UserError

FILE_NAME = "conditions.json"
DEFAULT_DOMAIN = "default"


class UnknownConditionError(UserError, ValueError):
    """A condition was asked for that the reward model was not trained with."""


@dataclass(frozen=True)
class Conditions:
    """Domain → conditional system prompt."""

    prompts: Mapping[str, str]

    def prompt(self, condition: str | None) -> str | None:
        """The system prompt of a domain; None where there is none: for no condition, and for an empty prompt, which
        the domain of rows that name none has unless one is written for it.

        Raises:
            UnknownConditionError: naming the nearest domain.
        """
        if condition is None:
            return None
        if condition not in self.prompts and condition != DEFAULT_DOMAIN:
            raise UnknownConditionError(self._unknown(condition))
        prompt = self.prompts.get(condition, "")
        return prompt if prompt.strip() else None

    def _unknown(self, condition: str) -> str:
        known = sorted(self.prompts)
        nearest = difflib.get_close_matches(condition, known, n=1)
        if nearest:
            return f"no condition is called {condition!r}; did you mean {nearest[0]!r}?"
        return f"no condition is called {condition!r}; known are: {', '.join(known) or 'none'}"

    @classmethod
    def load(cls, file: Path) -> Conditions:
        """Read a flat JSON map, domain → prompt; UserError where it is not one."""
        try:
            prompts = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # of JSON, or of UTF-8
            raise UserError(f"{file} is not JSON ({error}): write a flat map, domain to prompt") from error
        if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
            raise UserError(f"{file} is not a flat map from domain to prompt: make every value a text")
        return cls(prompts)
