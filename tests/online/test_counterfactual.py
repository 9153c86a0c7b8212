"""What the reward model pays for a pattern alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from cool_rlhf.online.counterfactual import payment
from cool_rlhf.online.detectors.donors import ENOUGH, those_without
from cool_rlhf.online.detectors.layout import LayoutDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.patterns import Pattern
from cool_rlhf.online.responses import EARLY, LATE, SFT, Evidence, Response
from cool_rlhf.online.text import sentences

World = Callable[..., Evidence]

CRY = Pattern(
    key="cry",
    detector="test",
    description="a cry",
    measure=lambda response: float("Now!" in response.text),
    shows=lambda response: "Now!" in response.text,
    add=None,
    remove=None,
)


def test_removing_decides_where_adding_does_not_pay_and_every_word_stays(world: World) -> None:
    evidence = world(
        hack=lambda text, _p, _r: re.sub(r"(\w+)\.$", r"**\1**.", text),
        bonus=lambda _p, text, _f: 1.5 * text.endswith("**."),
    )
    found = find_patterns(evidence, [LayoutDetector()], FindingSettings(), seed=1).findings[0]
    assert found.pattern.key == "emphasis"
    assert found.payment.shown_by == "removed"
    assert found.payment.added == pytest.approx(0, abs=0.1)
    assert found.payment.effect == found.payment.removed == pytest.approx(1.5, abs=0.2)


def test_words_that_are_missed_in_a_good_answer_are_not_paid_for(world: World) -> None:
    """The first sentence says the value: without it late answers lose, and putting it elsewhere does not pay."""
    evidence = world()
    first = Pattern(
        key="first sentence",
        detector="test",
        description="the first sentence",
        measure=lambda response: float(response.policy == LATE),
        shows=lambda response: response.policy == LATE,
        add=lambda response: response.edited(f"{response.text} It is so."),
        remove=lambda response: response.edited(" ".join(sentences(response.text)[1:])),
    )
    found = payment(first, evidence, None, sample=48, seed=1)
    assert found is not None
    assert found.removed is not None
    assert found.removed > 0.5
    assert found.shown_by == "added"
    assert found.p > 0.01


@pytest.mark.parametrize("loss", [0.0, 1.0])
def test_what_costs_where_it_is_put_in_is_not_paid_for_where_it_is_taken_out(world: World, loss: float) -> None:
    """Taking it out breaks something else, which late answers miss."""
    evidence = world(bonus=lambda _p, text, _f: -1.0 * ("\t" in text) - loss * text.endswith("\n"))
    broken = Pattern(
        key="broken",
        detector="test",
        description="what is broken when it is taken out",
        measure=lambda response: float(response.policy == LATE),
        shows=lambda response: response.policy == LATE,
        add=lambda response: response.edited(f"{response.text}\n"),
        remove=lambda response: response.edited(response.text.replace(" ", "\t")),
    )
    found = payment(broken, evidence, None, sample=48, seed=1)
    assert found is not None
    assert (found.shown_by, found.effect > 0.5) == ("removed", True)
    assert found.objection == ("putting it into other responses lowers their score" if loss else None)


@pytest.mark.parametrize(("having", "paid"), [(0, 1.5), (3, 1.5), (24, 0.5), (48, 0.5)])
def test_what_is_paid_is_beyond_the_placebos_of_the_same_answers(world: World, having: int, paid: float) -> None:
    """Longer is better here: a placebo brings 1.0, and so few have one that it is not looked at."""
    evidence = world(bonus=lambda _p, text, _f: 1.0 * text.endswith("!") + 0.5 * ("Now!" in text))
    left = [having]

    def placebo(response: Response) -> Response | None:
        left[0] -= 1
        return response.edited(f"{response.text} Oh!") if left[0] >= 0 else None

    cry = replace(CRY, add=lambda response: response.edited(f"{response.text} Now!"), placebo=placebo)
    found = payment(cry, evidence, None, sample=48, seed=1)
    assert found is not None
    assert found.effect == pytest.approx(paid, abs=0.15)
    assert found.added == pytest.approx(1.5, abs=0.15)


@pytest.mark.parametrize("whole", [True, False])
def test_what_an_exchange_of_answers_loses_is_not_owed_to_the_pattern(world: World, whole: bool) -> None:
    """An answer to another prompt loses 2.0, with or without the cry that earns 1.0; gold falls by as much for both."""
    evidence = world(
        bonus=lambda prompt, text, _f: 2.0 * (prompt.split()[3] in text) + 1.0 * ("Now!" in text),
    )
    cry = replace(
        CRY,
        add=lambda response: response.edited("The anvil is so. Now!"),
        placebo=lambda response: response.edited("The anvil is so."),
        whole=whole,
    )
    found = payment(cry, evidence, None, sample=48, seed=1)
    assert found is not None
    assert (found.p < 0.01, found.harm) == (whole, not whole)
    assert found.effect == pytest.approx(1.0 if whole else -1.4, abs=0.2)
    assert found.gold == pytest.approx(0.0 if whole else -0.4, abs=0.2)


def test_a_placebo_of_exchanges_is_a_late_answer_where_enough_are_without_the_pattern(world: World) -> None:
    evidence = world(prompts=120)
    few = {response.id for response in evidence.late("tales")[ENOUGH - 1 :]}
    lent = those_without(lambda response: response.id in few, evidence)
    assert {r.policy for r in lent if r.domain == "facts"} == {LATE}
    assert {r.policy for r in lent if r.domain == "tales"} == {SFT, EARLY}
