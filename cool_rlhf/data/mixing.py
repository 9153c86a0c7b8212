"""An order of which any stretch holds what the whole does."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from cool_rlhf.schedule import derive_seed


def mixed_order(groups: Sequence[str], seed: int) -> list[int]:
    """The places of items whose ``groups`` are given, every group shuffled and spread evenly from the first to the
    last: of the first or last N, each group has its share of the whole, to about one item."""
    members: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        members[group].append(place)
    spread: list[tuple[float, str, int]] = []
    for group, places in members.items():
        random.Random(derive_seed("mixed order", seed, group)).shuffle(places)
        spread += [((rank + 0.5) / len(places), group, place) for rank, place in enumerate(places)]
    return [place for _, _, place in sorted(spread)]
