"""What the models' scores of the test pairs say together: every interval goes by prompt, over the seeds' mean."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jobs import REWARD, Job
from preferences import CONFLICT, HUMAN_JUDGED, Preferences
from training import DONE, finish, finished

from cool_rlhf.protocols import PreferencePair, UserError
from reward.baselines import longer_wins, ngram_margins
from reward.evaluation import opposing_domains, prompt_numbers
from reward.statistics import Floats, Share, calibration, difference, hits, share

ALL, HUMAN = "all", "human-judged"


@dataclass(frozen=True)
class Trained:
    """One finished model: ``scores`` (N, 2) of all test pairs by condition, "" for none."""

    job: Job
    scores: dict[str, Floats]
    seconds: float
    pairs: int
    tokens: int
    cut: int

    def of(self, conditions: Sequence[str]) -> Floats:
        """(N, 2): each pair's scores under the condition named for it."""
        return np.stack([self.scores[name][row] for row, name in enumerate(conditions)])

    def own(self, pairs: Sequence[PreferencePair]) -> Floats:
        return self.of([pair.domain if self.job.conditions else "" for pair in pairs])


@dataclass(frozen=True)
class Test:
    """The test pairs with what groups them; ``parts`` (N,) bool by name."""

    pairs: list[PreferencePair]
    prompts: np.ndarray
    parts: dict[str, np.ndarray]
    opposed: np.ndarray  # (N,) bool: the pair stands again with the labels exchanged under another domain


def collect(models: Path, preferences: Preferences) -> dict[str, Any]:
    """All tables. An arm counts with the seeds that are finished; one without any is left out."""
    test, arms = test_of(preferences), read_models(models, preferences)
    ngram = ngram_baselines(models / "ngram", preferences)
    right = {
        "longer wins": hits(longer_wins(test.pairs)),
        **{name: hits(values) for name, values in ngram.items()},
        **{arm: seed_mean(trained, test) for arm, trained in arms.items() if not arm.startswith("only_")},
    }
    separate = separate_models(arms, test)
    if separate is not None:
        right["separate"] = separate
    return {
        "data": data_table(preferences),
        "models": model_table(arms, models),
        "accuracy": {arm: by_part(values, test) for arm, values in right.items()},
        "by_seed": {arm: by_seed(trained, test) for arm, trained in arms.items()},
        "ties": {arm: float(np.mean([np.mean(hits(gap(one, test)) == 0.5) for one in arms[arm]])) for arm in arms},
        "differences": differences(right, test),
        "conflict": conflict_table(arms, right, test),
        "focal": focal_table(arms, ngram["n-gram with domain"], test),
        "barrier": {arm: spread(arms[arm], test) for arm in ("with", "with_lambda_0") if arm in arms},
    }


def kept(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """``found`` and what only ``before`` has: arms whose models were trained, on the same pairs, on another machine."""
    if before["data"] != found["data"]:
        raise UserError("results.json was measured on other pairs: leave out --keep or give another --results")
    tables = ("models", "accuracy", "by_seed", "ties", "differences")
    joined = {name: {**before[name], **found[name]} for name in tables}
    rows = {**before["conflict"]["rows"], **found["conflict"]["rows"]}
    both = {name: found[name] or before[name] for name in ("focal", "barrier")}
    return {**found, **joined, **both, "conflict": {**found["conflict"], "rows": rows}}


def test_of(preferences: Preferences) -> Test:
    pairs, sources = preferences.test_pairs, np.array(preferences.test_sources)
    parts = {source: sources == source for source in preferences.test}
    parts[HUMAN] = np.isin(sources, HUMAN_JUDGED)
    parts[ALL] = np.ones(len(pairs), dtype=np.bool_)
    opposed = np.isin(np.arange(len(pairs)), list(opposing_domains(pairs)))
    return Test(pairs, prompt_numbers(pairs), {name: part for name, part in parts.items() if part.any()}, opposed)


def ngram_baselines(folder: Path, preferences: Preferences) -> dict[str, Floats]:
    """Margins (N,) of the linear Bradley–Terry model on n-grams, fitted without and with the domain as a feature."""
    stamp = {"baseline": preferences.digest()}
    if not finished(folder, stamp):
        begun = time.monotonic()
        train, test = [pair for pairs in preferences.train.values() for pair in pairs], preferences.test_pairs
        plain = [[replace(pair, domain="default") for pair in pairs] for pairs in (train, test)]
        without = ngram_margins(plain[0], plain[1], 0, len(train)).tolist()
        folder.mkdir(parents=True, exist_ok=True)
        finish(folder, stamp, begun, without=without, domain=ngram_margins(train, test, 0, len(train)).tolist())
    found = json.loads((folder / DONE).read_text(encoding="utf-8"))
    return {"n-gram": np.array(found["without"]), "n-gram with domain": np.array(found["domain"])}


def read_models(folder: Path, preferences: Preferences) -> dict[str, list[Trained]]:
    """Finished models by arm, of these pairs alone."""
    arms: dict[str, list[Trained]] = defaultdict(list)
    for file in sorted(folder.glob(f"*/{DONE}")):
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["stamp"].get("pairs") != preferences.digest():
            continue
        job = Job(**found["stamp"]["job"])
        scores = {name: np.array(values) for name, values in found["scores"].items()}
        arms[job.name].append(Trained(job, scores, found["seconds"], found["pairs"], found["tokens"], found["cut"]))
    return dict(arms)


def gap(one: Trained, test: Test) -> Floats:
    """Chosen less rejected, (N,), under each pair's own condition."""
    own = one.own(test.pairs)
    return own[:, 0] - own[:, 1]


def seed_mean(trained: Sequence[Trained], test: Test) -> Floats:
    """How often each pair is judged right over the seeds, (N,)."""
    return np.mean([hits(gap(one, test)) for one in trained], axis=0)


def separate_models(arms: dict[str, list[Trained]], test: Test) -> Floats | None:
    """As :func:`seed_mean`, each pair by the models of its own domain; None until every domain has one."""
    domains = np.array([pair.domain for pair in test.pairs])
    right = np.full(len(test.pairs), np.nan)
    for name in set(domains):
        if f"only_{name}" not in arms:
            return None
        right[domains == name] = seed_mean(arms[f"only_{name}"], test)[domains == name]
    return right


def by_part(right: Floats, test: Test) -> dict[str, dict[str, Any]]:
    return {name: asdict(_share(right[part], test.prompts[part])) for name, part in test.parts.items()}


def by_seed(trained: Sequence[Trained], test: Test) -> dict[str, dict[str, float]]:
    """Accuracy by seed; of a model of one domain on that domain's pairs alone."""
    rows = {}
    for one in trained:
        mine = np.array([one.job.domain in (None, pair.domain) for pair in test.pairs])
        right = hits(gap(one, test))
        rows[str(one.job.seed)] = {
            name: float(right[part & mine].mean()) for name, part in test.parts.items() if (part & mine).any()
        }
    return rows


def differences(right: dict[str, Floats], test: Test) -> dict[str, dict[str, Any]]:
    """Paired by test pair, clustered by prompt."""
    compared = [
        ("with", "without"),
        ("with", "separate"),
        ("with", "longer wins"),
        ("with", "n-gram with domain"),
        ("without", "n-gram"),
    ]
    return {
        f"{first} − {second}": {
            name: asdict(difference(right[first][part], right[second][part], test.prompts[part]))
            for name, part in test.parts.items()
        }
        for first, second in compared
        if first in right and second in right
    }


def conflict_table(arms: dict[str, list[Trained]], right: dict[str, Floats], test: Test) -> dict[str, Any]:
    """The test pairs that stand twice with opposite labels."""
    part, prompts = test.opposed, test.prompts[test.opposed]
    table: dict[str, Any] = {"pairs": int(part.sum()), "prompts": len(np.unique(prompts)), "rows": {}}
    if not part.any():
        return table
    against = opposing_domains(test.pairs)
    swapped = [against[row][0] if row in against else pair.domain for row, pair in enumerate(test.pairs)]
    measured: dict[str, Floats] = {
        name: right[name] for name in ("n-gram with domain", "n-gram", "longer wins", "without", "separate")
        if name in right
    }  # fmt: skip
    for arm, trained in arms.items():
        if trained[0].job.conditions:
            measured[f"{arm}: right condition"] = right[arm]
            scores = [one.of(swapped) for one in trained]
            measured[f"{arm}: swapped"] = np.mean([hits(each[:, 0] - each[:, 1]) for each in scores], axis=0)
            measured[f"{arm}: none"] = np.mean(
                [hits(one.scores[""][:, 0] - one.scores[""][:, 1]) for one in trained], axis=0
            )
    table["rows"] = {name: asdict(_share(values[part], prompts)) for name, values in measured.items()}
    return table


def focal_table(arms: dict[str, list[Trained]], ngram: Floats, test: Test) -> dict[str, Any]:
    """γ 2 against 0 on the half of the test pairs whose preference the n-gram baseline sees less clearly (its margin,
    chosen less rejected, is below the median: it finds them doubtful or gets them wrong), and on the other half."""
    if "with" not in arms or "with_gamma_0" not in arms:
        return {}
    hard = ngram < np.median(ngram)
    table: dict[str, Any] = {}
    for name, part in (("easy", ~hard), ("hard", hard), (ALL, np.ones(len(hard), dtype=np.bool_))):
        row: dict[str, Any] = {"pairs": int(part.sum())}
        for label, arm in (("gamma 2", "with"), ("gamma 0", "with_gamma_0")):
            gaps = np.array([gap(one, test)[part] for one in arms[arm]])
            row[label] = {
                **asdict(_share(hits(gaps).mean(axis=0), test.prompts[part])),
                "gap": float(gaps.mean()),
                "calibration_error": float(np.mean([calibration(each).expected_error for each in gaps])),
            }
        change = [seed_mean(arms[arm], test)[part] for arm in ("with", "with_gamma_0")]
        row["difference"] = asdict(difference(*change, test.prompts[part]))
        table[name] = row
    return table


def spread(trained: Sequence[Trained], test: Test) -> dict[str, float]:
    """Scores of all test responses under their own condition; means over the seeds, the extremes over all of them."""
    own = [one.own(test.pairs).ravel() for one in trained]
    over: Callable[[Callable[[Floats], Any]], float] = lambda measure: float(np.mean([measure(x) for x in own]))  # noqa: E731
    return {
        "seeds": len(trained),
        "mean": over(np.mean),
        "mean_between_seeds": float(np.std([x.mean() for x in own])),
        "deviation": over(np.std),
        "lowest": float(min(x.min() for x in own)),
        "highest": float(max(x.max() for x in own)),
        "outside": over(lambda x: (np.abs(x) >= REWARD.bound).mean()),
    }


def data_table(preferences: Preferences) -> dict[str, Any]:
    return {
        source: {
            "train": len(preferences.train[source]),
            "test": len(preferences.test[source]),
            "test_prompts": len(np.unique(prompt_numbers(preferences.test[source]))),
            "opposed": len(opposing_domains(preferences.test[source])) if source == CONFLICT else 0,
        }
        for source in preferences.train
    }


def model_table(arms: dict[str, list[Trained]], models: Path) -> dict[str, Any]:
    table: dict[str, Any] = {
        arm: {
            "seeds": [one.job.seed for one in trained],
            "pairs": trained[0].pairs,
            "tokens": trained[0].tokens,
            "cut": trained[0].cut,
            "seconds": float(np.mean([one.seconds for one in trained])),
        }
        for arm, trained in arms.items()
    }
    for file in sorted(models.glob(f"sft_*/{DONE}")):
        base = json.loads(file.read_text(encoding="utf-8"))
        table[file.parent.name] = {
            "tokens": base["tokens"],
            "seconds": base["seconds"],
            "loss": base["curve"][-1]["loss/sft"],
        }
    return table


def _share(right: Floats, prompts: np.ndarray) -> Share:
    return share(right, prompts)
