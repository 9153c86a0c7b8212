"""Between two rounds of PPO (report, section 4.2.2): the policies answer, the fast path looks for what the policy
learned to cheat with, and the slow path chooses what is labelled."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cool_rlhf.config import Config
from cool_rlhf.data.identity import judges_repairs
from cool_rlhf.files import write_atomically
from cool_rlhf.folders import RoundFolder
from cool_rlhf.online.annotation.items import read_pairs_to_label, write_pairs_to_label
from cool_rlhf.online.annotation.labellers import Labeller, label_with
from cool_rlhf.online.annotation.store import FILE_NAME as STORE_FILE
from cool_rlhf.online.annotation.store import Store
from cool_rlhf.online.detectors import all_detectors
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.lessons import lessons, write_lessons
from cool_rlhf.online.patches import PatchSettings, patches_under
from cool_rlhf.online.records import review_items, write_patches, write_patterns
from cool_rlhf.online.responses import EARLY, LATE, SFT, Gold, Response
from cool_rlhf.online.selection import PairToLabel, SelectionSettings, select_pairs
from cool_rlhf.online.wordings import other_wordings
from cool_rlhf.ppo.rewards import recipe_for
from cool_rlhf.protocols import PreferencePair, Prompt
from cool_rlhf.roles.reference import RemoteLanguageModel
from cool_rlhf.roles.sampler import RolloutGroup
from cool_rlhf.roles.scorer import RemoteScorer
from cool_rlhf.schedule import derive_seed
from cool_rlhf.stages.annotate import RunPairs, make_labeller
from cool_rlhf.stages.answers import Payer, drawn, evidence_of, read_responses, with_divergence, write_responses
from cool_rlhf.stages.inputs import Inputs

logger = logging.getLogger(__name__)

FEW_PATCHES = 20  # the fewest that the report names for a pattern


@dataclass(frozen=True)
class Answerers:
    """The roles that a round of PPO leaves running: who answers, who says how likely that was, who scores it."""

    rollouts: RolloutGroup
    reference: RemoteLanguageModel
    scorer: RemoteScorer


def clear_paths(folder: RoundFolder) -> None:
    """Take away what both paths of an attempt that is made again have left, and ask nobody about it any more; what was
    labelled stays."""
    folder.clear_paths()
    store = folder.output_dir / STORE_FILE
    if store.exists():
        with Store(store) as labels:
            labels.withdraw(folder.round)


def answer_prompts(
    config: Config,
    roles: Answerers,
    prompts: Sequence[Prompt],
    checkpoints: dict[str, str],
    payer: Payer,
    gold: Gold,
    round: int,
    *,
    resumed: bool,
) -> list[Response]:
    """The responses of all policies so far to the same prompts, scored by the round's reward model; left in the round's
    file at once. SFT answers in the first round only, and what earlier rounds' policies said is read again; so each
    policy answers once. A round's file holds all answers until then, of which its own are taken.

    Args:
        checkpoints: of the policies SFT, early and late, in the order in which they answer.
        resumed: the round had begun before, with the same settings: if its file is there, nobody answers again.
    """
    file = RoundFolder(Path(config.output_dir), round).responses
    found = read_responses(file) if resumed else []
    responses = payer.judged(found or _drawn_responses(config, roles, prompts, checkpoints, round), gold)
    write_responses(file, responses)
    return responses


def _drawn_responses(
    config: Config, roles: Answerers, prompts: Sequence[Prompt], checkpoints: dict[str, str], round: int
) -> list[Response]:
    """Those of earlier rounds, and what the round's policies say; not scored yet."""
    folders = [RoundFolder(Path(config.output_dir), past) for past in range(round)]
    earlier = [r for folder in folders for r in read_responses(folder.responses) if r.round == folder.round]
    asked = [prompt for prompt in prompts for _ in range(config.online.samples_per_prompt)]
    found = []
    for place, (policy, path) in enumerate(checkpoints.items()):
        if policy == SFT and round > 0:
            continue
        version = -1 - place  # the pushed weights of training count upwards
        roles.rollouts.load(path, version)
        seed = derive_seed(config.seed, "held-out answers", round, policy)
        rollouts = roles.rollouts.sampler.sample(asked, seed=seed, version=version).result()
        found += with_divergence(drawn(rollouts, policy, round, seed), rollouts, roles.reference)
    return [*earlier, *found]


def response_gold(inputs: Inputs) -> Gold:
    """See :meth:`cool_rlhf.stages.inputs.Inputs.gold_score`."""
    return lambda response: inputs.gold_score(response.prompt, response.text, response.finished)


def fast_path(
    config: Config,
    responses: Sequence[Response],
    payer: Payer,
    gold: Gold,
    known: Sequence[PreferencePair],
    round: int,
) -> dict[str, float]:
    """Find what the round's policy cheats with, in other words of the ``known`` pairs too, make pairs that mend it, and
    note which of those, from which a repair draws what it replays and is judged by, teach it. All of it is left in
    ``fast_path``."""
    evidence = evidence_of(responses, round, payer.score, gold)
    seed = derive_seed(config.seed, "fast path", round)
    looking = FindingSettings(alpha=config.online.significance, least_gain=config.online.least_gain)
    search = find_patterns(evidence, all_detectors(config.online.without_detectors), looking, seed)
    if config.online.other_wordings:
        others = other_wordings(search, evidence, known, looking, seed)
        search = replace(search, foreseen=[others] if others else [])
    settings = PatchSettings(most=config.online.patches)
    paying = {domain: recipe_for(payer.recipes, domain).paying for domain in evidence.domains}
    patches = [p for finding in search.to_mend for p in patches_under(paying, finding, evidence, settings, seed)]
    folder = RoundFolder(Path(config.output_dir), round)
    write_patterns(folder.patterns, search, evidence, patches)
    write_patches(folder.patches, patches)
    write_lessons(folder.lessons, lessons(search.to_mend, evidence, known, paying))
    if config.online.review:
        write_pairs_to_label(folder.review, review_items(patches, round, config.conditions))
    for finding in search.findings:
        logger.info(
            "round %d: the policy is paid for %s (%s): %+.2f of score, shown by %.0f%% of its answers",
            *(round, finding.pattern.description, finding.domain or "all domains", finding.payment.effect),
            100 * (finding.shares[LATE] or 0.0),
        )
    for finding in search.to_mend:
        count = sum(patch.pattern == finding.name for patch in patches)
        if count < FEW_PATCHES:
            logger.warning("round %d: the answers hold only %d pairs that mend %s", round, count, finding.name)
    for finding in search.foreseen:
        logger.info(
            "round %d: the reward model would pay for %s too: %+.2f of score",
            *(round, finding.pattern.description, finding.payment.effect),
        )
    return {
        "findings": len(search.findings),
        "foreseen": len(search.foreseen),
        "dismissed": len(search.dismissed),
        "tests": search.tested,
        "patches": len(patches),
    }


def slow_path(config: Config, responses: Sequence[Response], payer: Payer, round: int) -> dict[str, float]:
    """Choose the pairs that labels would help most with, of prompts whose pairs teach and domains that the reward model
    pays in, each under the condition that weighs most there; where no people are asked, have them labelled at once."""
    output_dir = Path(config.output_dir)
    seed = derive_seed(config.seed, "slow path", round)
    domains = sorted({response.domain for response in responses})
    paying = {domain: recipe_for(payer.recipes, domain).paying for domain in domains}
    under = {domain: conditions[0] for domain, conditions in paying.items() if conditions}
    earlier = [folder for past in range(round) if (folder := RoundFolder(output_dir, past)).pairs.exists()]
    known = {
        item.id for folder in earlier for item in read_pairs_to_label(folder.pairs, folder.round, config.conditions)
    }
    pairs: list[PairToLabel] = []
    if config.online.pairs:
        teaching = [r for r in responses if r.domain in under and not judges_repairs(r.prompt.messages)]
        settings = SelectionSettings()
        pairs = select_pairs(
            teaching, payer.score, sorted(under), config.online.pairs, settings, seed, known=known, judged_under=under
        )
    rows = "".join(f"{json.dumps(pair.row(), ensure_ascii=False)}\n" for pair in pairs)
    write_atomically(RoundFolder(output_dir, round).pairs, rows.encode())
    with Store(output_dir / STORE_FILE, overlap=config.annotate.overlap) as store:
        kept = RunPairs(config, output_dir, store)
        kept.take_in()
        if config.online.labeller != "people":
            label_round(make_labeller(config, config.online.labeller), store, round)
        kept.keep_up()
        labels = len(store.labels())
    return {"pairs": len(pairs), "labels": labels}


def label_round(labeller: Labeller, store: Store, round: int) -> None:
    """Have the round's pairs labelled. Those that a judge who fails has not come to stay open: a round waits for
    nobody."""
    from cool_rlhf.online.annotation.judge import JudgeError  # late: it imports the endpoint's client

    annotator = store.annotator(labeller.name, labeller.kind)
    before = len(store.unlabelled(annotator, round))
    try:
        label_with(labeller, store, round)
    except JudgeError as error:
        logger.warning(
            "round %d goes on with %d of its pairs unlabelled, which stage=annotate can still have labelled: %s",
            *(round, len(store.unlabelled(annotator, round)), error),
        )
    given = before - len(store.unlabelled(annotator, round))
    logger.info("round %d: labels from %s: %d", round, labeller.name, given)


def checkpoints_of(sft: str, folder: RoundFolder) -> dict[str, str]:
    """Policy → checkpoint, of those that a round has left in ``folder``."""
    early = {EARLY: str(folder.early_policy)} if folder.early_policy.exists() else {}
    return {SFT: sft, **early, LATE: str(folder.policy)}
