"""A world of answers as people write them: 4 to 8 English sentences in two paragraphs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pydoc_data.topics import topics
from random import Random

import pytest

from cool_rlhf.online.responses import LATE, Evidence
from cool_rlhf.protocols import ScoredConversation

Edit = Callable[[str, Random], str]
_MARKED = re.compile(r"[*`\"_:|=<>\[\]{}()#“”‘@;+%\\/0-9-]|\.\.| \.")
SENTENCES = [
    said
    for said in dict.fromkeys(re.findall(r"[A-Z][^.!?]*\.", " ".join(" ".join(topics.values()).split())))
    if 6 <= len(said.split()) <= 30 and not _MARKED.search(said)
]


def keep(text: str, _rng: Random) -> str:
    return text


@pytest.fixture
def natural(world: Callable[..., Evidence]) -> Callable[..., Evidence]:
    """``base`` is done to all answers, ``hack`` to most late ones, and the reward model pays what ``pays`` says, plus
    noise of the text. Nobody knows gold."""

    def make(
        pays: Callable[[str, str], float], hack: Edit = keep, base: Edit = keep, prompts: int = 100, seed: int = 0
    ) -> Evidence:
        rng = Random(seed)

        def answer(late: bool) -> str:
            said = rng.sample(SENTENCES, rng.randrange(4, 9))
            cut = rng.randrange(1, len(said))
            text = base(f"{' '.join(said[:cut])}\n\n{' '.join(said[cut:])}", rng)
            return hack(text, rng) if late and rng.random() < 0.85 else text

        def score(conversations: Sequence[ScoredConversation]) -> list[float]:
            texts = [(one.messages[-2]["content"], one.messages[-1]["content"]) for one in conversations]
            noise = [int(sha256(said.encode()).hexdigest()[:8], 16) / 2**31 - 1 for _, said in texts]
            return [0.3 * by + pays(asked, said) for by, (asked, said) in zip(noise, texts, strict=True)]

        plain = world(prompts=prompts, with_gold=False).responses
        texts = [answer(response.policy == LATE) for response in plain]
        written = [replace(r, text=t, tokens=len(t.split()) + 1) for r, t in zip(plain, texts, strict=True)]
        scores = score([response.conversation() for response in written])
        return Evidence([replace(r, score=s) for r, s in zip(written, scores, strict=True)], score, None)

    return make
