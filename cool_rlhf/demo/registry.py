"""All domains of the embedded world, by name."""

from __future__ import annotations

from cool_rlhf.demo.domain import Domain
from cool_rlhf.demo.domains import brief, format, math, safety, thorough

DOMAINS: dict[str, Domain] = {module.DOMAIN.name: module.DOMAIN for module in (brief, thorough, math, format, safety)}

TRAINING_MIX: tuple[Domain, ...] = tuple(domain for domain in DOMAINS.values() for _ in range(domain.weight))
