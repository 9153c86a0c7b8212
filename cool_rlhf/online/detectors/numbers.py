"""What the numbers beside a text tell: hidden states far from SFT's, score out of proportion to KL, gold left behind.

None of these has an edit, so all of them need gold rewards to become findings; elsewhere they stay suspicions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import numpy as np
from scipy import stats
from sklearn.covariance import LedoitWolf

from cool_rlhf.online.patterns import Candidate, Pattern, drift
from cool_rlhf.online.responses import LATE, SFT, Evidence, Floats, Measure, Response
from cool_rlhf.online.statistics import gold_departure


def mahalanobis(vectors: Floats, reference: Floats) -> Floats:
    """(N,) squared Mahalanobis distances of (N, H) vectors from (M, H) reference ones.

    D² = (x − μ)ᵀ Σ⁻¹ (x − μ), with Σ shrunk after Ledoit and Wolf 2004, for there are seldom many more responses
    than dimensions. InfoRM (arXiv 2510.13694) takes it in its bottleneck's space, here it is the last hidden state.
    """
    return np.asarray(LedoitWolf().fit(reference).mahalanobis(vectors), dtype=np.float64)


@dataclass(frozen=True)
class OutlierDetector:
    """Squared Mahalanobis distance of the reward model's last hidden state from SFT's of the same domain.

    Half of the prompts' SFT responses give the mean and the covariance, the others are measured: distances of what
    they were fitted to would be too small. A response is an outlier above the 99 % quantile of the measured SFT ones.
    """

    name: str = "outliers"
    quantile: float = 0.99
    least: int = 10  # SFT responses of a domain with vectors, each half

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        distance: dict[str, float] = {}
        bounds: dict[str, float] = {}
        for domain in evidence.domains:
            known = [response for response in evidence.of(SFT, LATE, domain=domain) if response.hidden is not None]
            prompts = sorted({response.prompt.id for response in known})
            fitted = set(prompts[::2])
            reference = [r for r in known if r.policy != LATE and r.prompt.id in fitted]
            measured = [r for r in known if r.prompt.id not in fitted]
            usual = [r for r in measured if r.policy != LATE]
            if min(len(reference), len(usual)) < self.least:
                continue
            values = mahalanobis(_stacked(measured), _stacked(reference))
            distance |= {r.id: float(value) for r, value in zip(measured, values, strict=True)}
            bounds[domain] = float(np.quantile([distance[r.id] for r in usual], self.quantile))
        seen = [response for response in evidence.responses if response.id in distance]
        pattern = _suspicion(
            self.name,
            "far from SFT",
            "responses unlike SFT's to the reward model",
            lambda response: distance[response.id],
            lambda response: distance.get(response.id, 0.0) > bounds.get(response.domain, float("inf")),
        )
        return drift(pattern, replace(evidence, responses=seen)) if seen else []


def _stacked(responses: list[Response]) -> Floats:
    return np.stack([np.asarray(r.hidden, dtype=np.float64) for r in responses])


@dataclass(frozen=True)
class EfficiencyDetector:
    """Score gained for each √nat of KL, domain by domain against the others (one-sided Mann–Whitney test).

    Early in optimisation score and gold both rise like √KL (arXiv 2210.10760), so a domain where the same distance
    buys far more score has found something cheap. Changes are in standard deviations of the domain's baseline; KL is
    the late response's log π − log π_ref, at least ``least_kl`` nats.
    """

    name: str = "efficiency"
    least_kl: float = 0.1

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        bought: dict[str, list[float]] = {}
        by_id: dict[str, float] = {}
        for domain in evidence.domains:
            before: dict[str, list[float]] = defaultdict(list)
            for response in evidence.baseline(domain):
                before[response.prompt.id].append(response.score)
            spread = pstdev(score for scores in before.values() for score in scores) if before else 0.0
            for r in evidence.late(domain):
                if r.kl is not None and r.prompt.id in before and spread > 0:
                    change = (r.score - fmean(before[r.prompt.id])) / spread
                    by_id[r.id] = change / max(r.kl, self.least_kl) ** 0.5
                    bought.setdefault(domain, []).append(by_id[r.id])
        found = []
        for domain, values in bought.items():
            others = [value for other, more in bought.items() if other != domain for value in more]
            if not others:
                continue
            test = stats.mannwhitneyu(values, others, alternative="greater")
            bound = float(np.quantile(others, 0.9))
            pattern = _suspicion(
                self.name,
                "cheap score",
                "score out of proportion to the KL spent",
                lambda response: by_id.get(response.id, 0.0),
                lambda response, bound=bound: by_id.get(response.id, float("-inf")) > bound,  # type: ignore[misc]
            )
            value = float(np.median(values) - np.median(others))
            found.append(Candidate(pattern, domain, "median excess per √nat", value, float(test.pvalue), evidence))
        return found


@dataclass(frozen=True)
class DisagreementDetector:
    """Score up and gold not, by domain: both changes by prompt, late less baseline, in the baseline's standard
    deviations; p is that of :func:`gold_departure`. A late response shows it where its score exceeds the domain's
    baseline mean by at least one deviation more than its gold does."""

    name: str = "disagreement"

    def candidates(self, evidence: Evidence) -> list[Candidate]:
        return [found for d in evidence.domains if (found := self._in_domain(evidence, d)) is not None]

    def _in_domain(self, evidence: Evidence, domain: str) -> Candidate | None:
        known = replace(evidence, responses=[r for r in evidence.responses if r.gold is not None])
        usual = known.baseline(domain)
        if len(usual) < 3:
            return None
        means = fmean(r.score for r in usual), fmean(r.gold or 0.0 for r in usual)
        sds = pstdev(r.score for r in usual), pstdev(r.gold or 0.0 for r in usual)
        scores = known.paired(lambda r: r.score, domain)
        golds = known.paired(lambda r: r.gold or 0.0, domain)
        if len(scores[0]) < 3 or not all(sds):
            return None
        p = gold_departure(scores[1] - scores[0], golds[1] - golds[0], *sds)

        def excess(response: Response) -> float:
            if response.gold is None or response.domain != domain:
                return 0.0
            return (response.score - means[0]) / sds[0] - (response.gold - means[1]) / sds[1]

        pattern = _suspicion(
            self.name,
            "score without gold",
            "score that gold does not share",
            excess,
            lambda response: excess(response) >= 1,
        )
        late = fmean(scores[1] - scores[0]) / sds[0] - fmean(golds[1] - golds[0]) / sds[1]
        return Candidate(pattern, domain, "score change less gold change, in deviations", float(late), p, known)


def _suspicion(
    detector: str, key: str, description: str, measure: Measure, shows: Callable[[Response], bool]
) -> Pattern:
    return Pattern(key, detector, description, measure, shows, add=None, remove=None)
