"""Who labels preferences, and how."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from cool_rlhf.checks.ranges import FUNCTION, check_numbers
from cool_rlhf.config import Config
from cool_rlhf.protocols import UserError

EXCHANGE_SUFFIXES = (".json", ".jsonl")


def check_labelling(config: Config) -> None:
    """Raises UserError for settings of labellers that cannot be had, alone or together."""
    annotate = config.annotate
    if not FUNCTION.fullmatch(config.collect.labeller):
        raise UserError(f"collect.labeller is {config.collect.labeller!r}: it must be of the form module:function")
    if config.collect.prompts > 0:
        wanted = "it must be 2 or more where collect.prompts asks for any: a pair takes two responses"
        check_numbers(config, ["collect.samples_per_prompt"], lambda value: value >= 2, wanted)
    if annotate.port > 65535:
        raise UserError(f"annotate.port is {annotate.port}: it must be at most 65535")
    if annotate.token is not None and not re.fullmatch(r"[\w-]{16,}", annotate.token, re.ASCII):
        raise UserError("annotate.token must be 16 or more letters, digits, - and _, or null for a new one")
    if not 0 <= annotate.rule_noise < 0.5:
        raise UserError(f"annotate.rule_noise is {annotate.rule_noise}: it must lie in [0, 0.5)")
    if not FUNCTION.fullmatch(annotate.rule):
        raise UserError(f"annotate.rule is {annotate.rule!r}: it must be of the form module:function")
    for key in ("import_labels", "export_labels"):
        named = getattr(annotate, key)
        if named is not None and Path(named).suffix not in EXCHANGE_SUFFIXES:
            raise UserError(f"annotate.{key} is {named!r}: it must end in .json (Label Studio) or .jsonl (TRL)")
    for key, labeller in (("annotate", annotate.labeller), ("online", config.online.labeller)):
        if labeller == "judge" and not annotate.judge.model:
            raise UserError(f"{key}.labeller is judge, but annotate.judge.model is empty: name the model to ask")
    if annotate.judge.temperature is not None:
        wanted = "it must be 0 or more, or null for the endpoint's own"
        check_numbers(config, ["annotate.judge.temperature"], lambda value: value >= 0, wanted)
    if not _is_url(annotate.judge.url):
        raise UserError(
            f"annotate.judge.url is {annotate.judge.url!r}: it must be http:// or https:// and a host (and port)"
        )


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", url)
        return named and parts.port != 0
    except ValueError:  # of a port that is no number, or half a bracket
        return False
