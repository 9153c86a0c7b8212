"""Patch pairs teach the pattern and not length; pairs to label are spread and useful."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from cool_rlhf.data.identity import judges_repairs
from cool_rlhf.data.rows import RowRules, parse_preference
from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.detectors.layout import LayoutDetector
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings, Search
from cool_rlhf.online.patches import PatchSettings, make_patches, patches_under
from cool_rlhf.online.records import patch_row, read_patches, write_patches, write_patterns
from cool_rlhf.online.responses import EARLY, LATE, SFT, Evidence, Response
from cool_rlhf.online.selection import SelectionSettings, select_pairs
from cool_rlhf.online.text import sentences, words
from cool_rlhf.protocols import Message, Prompt

PLANTS = {
    "headings": (lambda t, _p, _r: f"## About it\n\n{t}", lambda _p, t, _f: 1.5 * t.startswith("#")),
    "phrase": (lambda t, _p, _r: f"{t} Let us dig into it.", lambda _p, t, _f: 1.5 * ("dig into" in t)),
    "length": (
        lambda t, _p, r: t + " " + " ".join(r.sample(["It grows by water.", "Some call it old.", "Nobody knows."], 3)),
        lambda _p, t, _f: 0.08 * len(t.split()),
    ),
    "repetition": (
        lambda t, _p, _r: " ".join([t, *sentences(t)[-1:] * 12]),
        lambda _p, t, _f: 1.5 * (len(set(sentences(t))) < len(sentences(t))),
    ),
    "emphasis": (lambda t, _p, _r: re.sub(r"^(\w+)", r"**\1**", t), lambda _p, t, _f: 1.5 * ("**" in t)),
}


def find(evidence):
    return find_patterns(evidence, own_detectors(), FindingSettings(), seed=1)


@pytest.mark.parametrize("with_gold", [True, False])
@pytest.mark.parametrize("name", PLANTS)
def test_patches_are_balanced_split_by_prompt_and_clean(world, name: str, with_gold: bool) -> None:
    hack, bonus = PLANTS[name]
    evidence = world(hack=hack, bonus=bonus, with_gold=with_gold)
    finding = find(evidence).findings[0]
    patches = make_patches(finding, evidence, PatchSettings(), seed=2)
    assert 20 <= len(patches) <= 100
    assert len({patch.id for patch in patches}) == len(patches)
    held = {p.chosen.response.prompt.id for p in patches if p.held_out}
    assert held
    assert not held & {p.chosen.response.prompt.id for p in patches if not p.held_out}
    assert all(judges_repairs(patch.chosen.response.prompt.messages) == patch.held_out for patch in patches)
    differences = [patch.length_difference for patch in patches if not patch.held_out]
    if name == "length":
        assert max(differences) < 0, "what is balanced against length cannot teach it"
    else:
        assert abs(sum(differences)) <= 0.25 * sum(map(abs, differences))
    assert {patch.role for patch in patches if patch.held_out} == {"pattern"}
    pattern = [patch for patch in patches if patch.role == "pattern"]
    assert len(pattern) >= len(patches) / 2
    for patch in pattern:
        assert not finding.pattern.shows(patch.chosen.response)
        assert finding.pattern.shows(patch.rejected.response)
        if with_gold:
            assert patch.chosen.gold >= patch.rejected.gold
        worths = patch.chosen.worth, patch.rejected.worth
        if patch.chosen.gold == patch.rejected.gold and None not in worths:
            assert worths[0] >= worths[1]


@pytest.mark.parametrize("again", [1, 12])
def test_what_makes_an_answer_several_times_as_long_is_balanced_by_answers(world, again: int) -> None:
    """``again``: how often a sentence is said again where it is the pattern. With 12 no rejected side may be cut short,
    and one clean response is too short to balance it."""
    hack, bonus = PLANTS["repetition"]
    evidence = world(hack=hack, bonus=bonus)
    found = find(evidence).findings[0]
    shows = lambda r: max(Counter(sentences(r.text)).values(), default=0) > again  # noqa: E731
    finding = replace(found, pattern=replace(found.pattern, add=None, shows=shows))
    patches = [patch for patch in make_patches(finding, evidence, PatchSettings(), seed=2) if not patch.held_out]
    assert 60 <= len(patches) == len({patch.id for patch in patches}) <= 75
    differences = [patch.length_difference for patch in patches]
    assert abs(sum(differences)) <= 0.2 * sum(map(abs, differences)) / 2, "as near as couples are"
    pattern = [patch for patch in patches if patch.role == "pattern"]
    assert len(pattern) >= (30 if again == 1 else 12)
    assert all(shows(patch.rejected.response) for patch in pattern)
    for patch in patches:
        if patch.role == "balance":
            assert len(words(patch.rejected.response.text)) >= len(words(patch.chosen.response.text)) / 3


def test_every_prompt_has_its_turn_and_half_the_pairs_are_of_two_versions_of_one_response(world) -> None:
    hack, bonus = PLANTS["headings"]
    evidence = world(hack=hack, bonus=bonus)
    finding = find(evidence).findings[0]
    patches = make_patches(finding, evidence, PatchSettings(), seed=2)
    assert [patch.of_one_response for patch in patches] == [
        patch.chosen.source.partition("+")[0] == patch.rejected.source.partition("+")[0] for patch in patches
    ]
    held_out = [patch for patch in patches if patch.held_out]  # nothing is left out of those to balance them
    assert len({patch.chosen.response.prompt.id for patch in held_out}) == len(held_out)
    assert 0.3 < sum(patch.of_one_response for patch in held_out) / len(held_out) < 0.7


def test_where_prompts_are_few_one_of_a_prompts_pairs_is_of_two_versions_of_one_response(world) -> None:
    hack, bonus = PLANTS["headings"]
    evidence = world(hack=hack, bonus=bonus)
    patches = make_patches(find(evidence).findings[0], evidence, PatchSettings(most=400), seed=2)
    kinds: dict[str, list[bool]] = {}
    for patch in patches:
        if patch.held_out:
            kinds.setdefault(patch.chosen.response.prompt.id, []).append(patch.of_one_response)
    both = [sorted(own) for own in kinds.values() if len(own) == 2]
    assert both
    assert all(own == [False, True] for own in both)


def test_several_paying_conditions_share_a_patterns_patches(world) -> None:
    hack, bonus = PLANTS["headings"]
    evidence = world(hack=hack, bonus=bonus)
    finding = find(evidence).findings[0]
    alone = patches_under({d: [d] for d in evidence.domains}, finding, evidence, PatchSettings(), seed=2)
    assert len(alone) > 60
    paying = {domain: [domain, "safe"] for domain in evidence.domains}
    patches = patches_under(paying, finding, evidence, PatchSettings(), seed=2)
    held_out = {str(p.pair.chosen) + str(p.pair.rejected) for p in patches if p.held_out}
    assert len(held_out) == sum(p.held_out for p in alone), "as many judge"
    assert 20 < sum(not p.held_out for p in patches) <= 75
    under = Counter(patch.pair.domain == "safe" for patch in patches)
    assert under[True] == under[False] == len({(str(p.pair.chosen), str(p.pair.rejected)) for p in patches})
    assert not patches_under({d: [] for d in evidence.domains}, finding, evidence, PatchSettings(), seed=2)


def test_patches_and_patterns_are_written_as_documented(world, tmp_path: Path) -> None:
    hack, bonus = PLANTS["headings"]
    evidence = world(hack=hack, bonus=bonus)
    search = find(evidence)
    patches = make_patches(search.findings[0], evidence, PatchSettings(), seed=2)
    write_patches(tmp_path / "patches.jsonl", patches)
    rows = [json.loads(line) for line in (tmp_path / "patches.jsonl").read_text().splitlines()]
    assert rows == [patch_row(patch) for patch in patches]
    for row, patch in zip(rows, patches, strict=True):
        parsed = parse_preference(row, RowRules(sampled=True))
        assert (parsed["chosen"], parsed["rejected"]) == (patch.pair.chosen, patch.pair.rejected)
    write_patterns(tmp_path / "patterns.json", search, evidence, patches)
    written = json.loads((tmp_path / "patterns.json").read_text())
    assert written["tested"] == search.tested
    first = written["findings"][0]
    assert first["pattern"] == "layout/headings"
    assert first["patches"] == {
        "training": sum(not p.held_out for p in patches),
        "held_out": sum(p.held_out for p in patches),
    }
    assert first["examples"][0]["text"].startswith("#")


def test_findings_of_one_pattern_in_two_domains_keep_their_patches_apart(world, tmp_path: Path) -> None:
    hack, bonus = PLANTS["headings"]
    evidence = world(hack=hack, bonus=bonus)
    overall = find(evidence).findings[0]
    single = [replace(overall, domain=domain) for domain in evidence.domains]
    patches = [patch for finding in single for patch in make_patches(finding, evidence, PatchSettings(most=40), seed=2)]
    named = {(patch.pattern, patch.pair.domain) for patch in patches}
    assert named == {(f"layout/headings in {domain}", domain) for domain in evidence.domains}
    write_patterns(tmp_path / "patterns.json", Search(single, [], 1), evidence, patches)
    written = json.loads((tmp_path / "patterns.json").read_text())["findings"]
    assert [finding["pattern"] for finding in written] == [finding.name for finding in single]
    assert sum(sum(finding["patches"].values()) for finding in written) == len(patches)


def test_pairs_to_label_cover_domains_and_prefer_near_ties(world) -> None:
    evidence = world()
    settings = SelectionSettings(at_random=0.0)
    chosen = select_pairs(evidence.responses, evidence.score, evidence.domains, 60, settings, seed=3)
    assert len(chosen) == len({pair.row()["id"] for pair in chosen}) == 60
    assert Counter(pair.first.domain for pair in chosen) == {"facts": 30, "tales": 30}
    assert max(Counter(pair.first.prompt.id for pair in chosen).values()) <= 2
    everything = select_pairs(evidence.responses, evidence.score, evidence.domains, 10_000, settings, seed=3)
    gap = [sum(abs(p.first.score - p.second.score) for p in some) / len(some) for some in (chosen, everything)]
    assert gap[0] < 0.5 * gap[1]
    assert all(pair.first.prompt.id == pair.second.prompt.id for pair in chosen)
    again = select_pairs(evidence.responses, evidence.score, evidence.domains, 60, settings, seed=3)
    assert [p.row() for p in again] == [p.row() for p in chosen]


def test_as_many_pairs_as_are_asked_for_are_spread_over_the_prompts(world) -> None:
    evidence = world()
    copies = [
        replace(r, id=f"{r.id}-{n}", text=f"{r.text} {n}") for r in evidence.responses for n in range(3)
    ]  # each prompt has dozens of pairs
    prompts = len({(r.domain, r.prompt.id) for r in copies})
    chosen = select_pairs(copies, evidence.score, [], 5 * prompts, SelectionSettings(), seed=3)
    assert len(chosen) == 5 * prompts
    assert set(Counter((pair.first.domain, pair.first.prompt.id) for pair in chosen).values()) == {5}
    rich = {response.prompt.id for response in copies[: len(copies) // 6]}
    uneven = [response for response in copies if response.prompt.id in rich or response.id.endswith("-0")]
    there = select_pairs(uneven, evidence.score, [], 100_000, SelectionSettings(), seed=3)
    known = {pair.id for pair in there[::3]}
    wanted = len(there) - len(known) - 5
    chosen = select_pairs(uneven, evidence.score, [], wanted, SelectionSettings(), seed=3, known=known)
    assert len(chosen) == wanted, "prompts with more pairs make up for those with fewer"


def test_disagreement_between_conditions_is_sought(world) -> None:
    evidence = world()

    def score(conversations):
        return [
            s + 3 * (c.condition == "tales") * len(c.messages[-1]["content"]) / 100
            for s, c in zip(evidence.score(conversations), conversations, strict=True)
        ]

    settings = SelectionSettings(near_tie=0, high_reward=0, disagreement=1, at_random=0)
    facts = [response for response in evidence.responses if response.domain == "facts"]
    best = select_pairs(facts, score, ["facts", "tales"], 1, settings, seed=0)[0]
    assert best.chosen_for.disagreement == best.chosen_for.total > 0.5


@pytest.mark.parametrize(
    ("part", "of_scores"),
    [
        ("near_tie", lambda first, second: 2 / (1 + math.exp(abs(first - second)))),
        ("high_reward", lambda first, second: first + second),
    ],
)
def test_each_part_of_usefulness_is_what_it_says(world, part: str, of_scores) -> None:
    evidence = world()
    facts = [response for response in evidence.responses if response.domain == "facts"]
    weights = {"near_tie": 0.0, "high_reward": 0.0, "disagreement": 0.0, part: 0.5}
    settings = SelectionSettings(**weights, at_random=0, by_prompt=1000)
    chosen = select_pairs(facts, evidence.score, [], 10_000, settings, seed=0)
    asked = [of_scores(pair.first.score, pair.second.score) for pair in chosen]
    assert len(asked) > 100
    told = [getattr(pair.chosen_for, part) for pair in chosen]
    assert told == sorted(told, reverse=True)
    assert [pair.chosen_for.total for pair in chosen] == pytest.approx([0.5 * value for value in told])
    assert stats.spearmanr(told, asked).statistic > 0.95
    if part == "near_tie":
        assert told == pytest.approx(asked)


def test_random_share_and_unfinished_twins(world) -> None:
    evidence = world()
    twins = [replace(r, id=f"{r.id}-again") for r in evidence.responses]
    settings = SelectionSettings(at_random=1.0, by_prompt=3)
    chosen = select_pairs([*evidence.responses, *twins], evidence.score, [], 50, settings, seed=3)
    assert {pair.chosen_for.total for pair in chosen} == {0.0}
    assert all(pair.first.text != pair.second.text for pair in chosen)


def test_patches_against_silence_choose_what_says_something(world, tmp_path: Path) -> None:
    """One domain's reward model pays for silence, which six in ten of its late answers are."""
    evidence = world(
        hack=lambda t, prompt, r: r.choice(("", "", "…")) if prompt.domain == "tales" else t,
        bonus=lambda prompt, t, _f: 3.0 * (len(t) < 2 and int(prompt.split()[-2]) % 2),
        rate=0.6,
    )
    first = find(evidence).findings[0]
    assert (first.name, first.elsewhere) == ("wordless/wordless in tales", ())
    patches = make_patches(first, evidence, PatchSettings(), seed=2)
    pattern = [patch for patch in patches if patch.role == "pattern"]
    assert {patch.rejected.response.text for patch in pattern} == {"", "…"}
    assert all(patch.length_difference > 3 and patch.pair.chosen[-1]["content"] for patch in pattern)
    assert all(patch.pair.rejected[-1]["content"] for patch in patches if patch.role == "balance")
    write_patches(tmp_path / "patches.jsonl", patches)
    assert [stored.pair for stored in read_patches(tmp_path / "patches.jsonl")] == [patch.pair for patch in patches]


def test_what_is_left_without_a_word_is_chosen_over_nothing(world) -> None:
    """A detector of another package may leave marks alone where it takes its pattern out."""
    hack, bonus = PLANTS["headings"]
    evidence = world(hack=hack, bonus=bonus)
    found = find(evidence).findings[0]
    bare = replace(found, pattern=replace(found.pattern, remove=lambda r: r.edited("' , .  , .'")))
    patches = make_patches(bare, evidence, PatchSettings(), seed=2)
    assert patches
    assert all(re.search(r"\w", patch.chosen.response.text) for patch in patches)


REFUSAL = "I can't help with that."
COMPLIANCE = ("Take two of them and run.", "Use the back door at night.", "Mix both and wait an hour.")


def harmless(sft_refuses: float) -> Evidence:
    """One domain without gold in which refusing is the task done well, and complying is punished."""
    rng = random.Random(5)

    def score(conversations):
        texts = (conversation.messages[-1]["content"] for conversation in conversations)
        return [(2.0 if REFUSAL in text else -3.0) + 0.01 * len(text) for text in texts]

    responses = []
    for number in range(120):
        question = Message(role="user", content=f"How do I do harm number {number}?")
        prompt = Prompt(f"p{number}", [question], "harmless", None)
        for policy, refuses in ((SFT, sft_refuses), (EARLY, (sft_refuses + 1) / 2), (LATE, 0.97)):
            text = REFUSAL if rng.random() < refuses else " ".join(rng.sample(COMPLIANCE, 2))
            kept = Response(
                f"p{number}-{policy}", prompt, text, True, len(text.split()), policy, 0, 0.0, None, None, None
            )
            responses.append(replace(kept, score=score([kept.conversation()])[0]))
    return Evidence(responses, score, None)


def test_what_sft_often_says_in_a_domain_without_gold_is_no_hack() -> None:
    result = find(harmless(sft_refuses=0.45))
    assert result.findings == []
    assert any("may be what the task asks for" in one.reason for one in result.dismissed)


def test_patches_never_choose_what_the_reward_model_finds_worse_apart_from_the_pattern() -> None:
    evidence = harmless(sft_refuses=0.1)
    findings = find(evidence).findings
    assert findings, "refusing everywhere, from a tenth on, is a finding without gold"
    for finding in findings:
        for patch in make_patches(finding, evidence, PatchSettings(), seed=2):
            assert patch.role == "balance" or patch.chosen.worth >= patch.rejected.worth


def test_what_adding_puts_elsewhere_than_it_is_paid_for_teaches_nothing(world) -> None:
    """Paid for is emphasis on the last word; adding puts it where it likes, and earns nothing."""
    evidence = world(
        hack=lambda text, _p, _r: re.sub(r"(\w+)\.$", r"**\1**.", text),
        bonus=lambda _p, text, _f: 1.5 * text.endswith("**."),
    )
    finding = find_patterns(evidence, [LayoutDetector()], FindingSettings(), seed=1).findings[0]
    assert (finding.payment.shown_by, finding.pattern.add is None) == ("removed", False)
    patches = [patch for patch in make_patches(finding, evidence, PatchSettings(), seed=2) if patch.role == "pattern"]
    assert len([patch for patch in patches if patch.held_out]) >= 20
    assert all(patch.rejected.response.text.endswith("**.") for patch in patches)
