"""Gold reward: the exact rule of each domain, with what holds for every response on top."""

from __future__ import annotations

from cool_rlhf.demo.domain import words
from cool_rlhf.demo.registry import DOMAINS
from cool_rlhf.protocols import Conversation, UserError

UNFINISHED_SHARE = 0.2  # what a response that hit the token limit keeps of its score
NOT_OURS = (
    "it judges the embedded world's own questions alone: name a rule of yours, or go without one by "
    "collect.prompts=0 and online.labeller=people"
)


def distinct_share(text: str) -> float:
    """Distinct 4-word windows as a share of all; 1 for fewer than five words. A loop tends to 0."""
    said = words(text)
    windows = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    return len(set(windows)) / len(windows) if len(windows) > 1 else 1.0


def score(messages: Conversation, response: str, domain: str, answer: str | None, finished: bool) -> float:
    """How good ``response`` to ``messages`` is under ``domain``, in [0, 1].

    An empty response and an echo of the question score 0; repeated text costs its share; a response cut off by the
    token limit keeps a fifth. Raises UserError for a prompt that is none of the world's: of an unknown domain, without
    an answer, or with one that the domain's rule cannot read.
    """
    if answer is None or domain not in DOMAINS:
        raise UserError(NOT_OURS)
    said = response.strip()
    if not said or said == messages[-1]["content"].strip():
        return 0.0
    try:
        value = DOMAINS[domain].rule(said, answer) * distinct_share(said)
    except (ValueError, LookupError, StopIteration) as error:  # of an answer that it cannot read
        raise UserError(NOT_OURS) from error
    return value if finished else UNFINISHED_SHARE * value
