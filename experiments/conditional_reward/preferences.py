"""The experiment's preferences: which folder holds what, and the parts of it that are looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cool_rlhf.config import DataConfig
from cool_rlhf.data.identity import is_held_out, pair_key, prompt_key
from cool_rlhf.data.loading import Reading, load_preferences
from cool_rlhf.data.preferences import load_split
from cool_rlhf.protocols import PreferencePair, UserError

CONFLICT = "conflict_xstest"
HUMAN_JUDGED = ("harmless_hh", "helpful_pandalm", "helpful_llmbar")


@dataclass(frozen=True)
class Preferences:
    """Pairs by source, in the sources' order. A source is a pair of files, SOURCE.train.jsonl and SOURCE.test.jsonl."""

    train: dict[str, list[PreferencePair]]
    test: dict[str, list[PreferencePair]]

    @property
    def domains(self) -> list[str]:
        return sorted({pair.domain for pairs in self.train.values() for pair in pairs})

    @property
    def test_pairs(self) -> list[PreferencePair]:
        return [pair for pairs in self.test.values() for pair in pairs]

    @property
    def test_sources(self) -> list[str]:
        """Of each of ``test_pairs``."""
        return [source for source, pairs in self.test.items() for _ in pairs]

    def training(self, domain: str | None, share: float) -> list[PreferencePair]:
        """Of one domain or all; of the prompts about ``share``, whose choice is the same in every run and grows."""
        return [
            pair
            for pairs in self.train.values()
            for pair in pairs
            if domain in (None, pair.domain) and is_held_out(prompt_key(pair.chosen[:-1]), share)
        ]

    def digest(self) -> str:
        """Changes when any pair does."""
        text = hashlib.sha256()
        for part in (self.train, self.test):
            for source, pairs in part.items():
                for pair in pairs:
                    key = pair_key(pair.chosen, pair.rejected, pair.chosen_finished, pair.rejected_finished)
                    text.update(f"{source} {pair.domain} {key}".encode())
        return text.hexdigest()[:16]


def read_preferences(folder: Path) -> Preferences:
    """Every source of ``folder``/preferences. Left out of training are repeated pairs, those that one domain labels
    both ways, and those on a prompt that a test file of any source has, but for case and blanks.

    Raises UserError where there are no sources.
    """
    files = sorted((folder / "preferences").glob("*.train.jsonl"))
    if not files:
        raise UserError(f"{folder}/preferences holds no *.train.jsonl: give --data the folder that holds the data")
    train, test = {}, {}
    for file in files:
        source = file.name.removesuffix(".train.jsonl")
        train[source] = list(load_split(DataConfig(preferences=[str(file)]), 0.0, Reading(), 0).training)
        test[source] = list(load_preferences([str(file.with_name(f"{source}.test.jsonl"))]))
    judged = _prompts(test)
    kept = {
        source: [pair for pair in pairs if prompt_key(pair.chosen[:-1]) not in judged]
        for source, pairs in train.items()
    }
    return Preferences(kept, test)


def _prompts(part: Mapping[str, Sequence[PreferencePair]]) -> set[str]:
    return {prompt_key(pair.chosen[:-1]) for pairs in part.values() for pair in pairs}
