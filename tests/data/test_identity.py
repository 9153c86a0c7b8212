"""Which prompts stand apart."""

from __future__ import annotations

from cool_rlhf.data.identity import is_held_out, judges_repairs, prompt_key
from cool_rlhf.protocols import Message


def prompts(count: int) -> list[list[Message]]:
    return [[Message(role="user", content=f"question {n}")] for n in range(count)]


def test_a_quarter_judges_repairs_among_held_out_prompts_too():
    held_out = [prompt for prompt in prompts(20_000) if is_held_out(prompt_key(prompt), 0.02)]
    assert 300 < len(held_out) < 500
    share = sum(map(judges_repairs, held_out)) / len(held_out)
    assert 0.18 < share < 0.32


def test_the_same_prompt_stays_on_its_side_however_it_is_written():
    for prompt in prompts(50):
        shouted = [Message(role="user", content=prompt[0]["content"].upper().replace(" ", "  "))]
        assert judges_repairs(prompt) == judges_repairs(shouted)
