from __future__ import annotations

from pathlib import Path

from cool_rlhf.online.annotation.arrived import arrived
from cool_rlhf.online.annotation.store import FILE_NAME, Store
from cool_rlhf.online.detectors import own_detectors
from cool_rlhf.online.finding import find_patterns
from cool_rlhf.online.found import FindingSettings
from cool_rlhf.online.patches import PatchSettings, make_patches
from cool_rlhf.online.records import review_items


def test_the_clean_side_stands_first_in_half_of_the_pairs_under_review(world, tmp_path: Path) -> None:
    evidence = world(hack=lambda t, _p, _r: f"## About it\n\n{t}", bonus=lambda _p, t, _f: 1.5 * t.startswith("#"))
    finding = find_patterns(evidence, own_detectors(), FindingSettings(), seed=1).findings[0]
    patches = [p for p in make_patches(finding, evidence, PatchSettings(), seed=2) if not p.held_out]
    items = review_items(patches, 0, {})
    clean = [item.first.text == patch.chosen.response.text for item, patch in zip(items, patches, strict=True)]
    assert 0.25 < sum(clean) / len(clean) < 0.75
    with Store(tmp_path / FILE_NAME) as store:
        store.add_items(items)
        ada = store.annotator("Ada")
        for item, first in zip(items, clean, strict=True):
            store.record(item.id, ada, "first" if first else "second")
        judged = {str(pair.chosen) for pair in arrived(store)}
    assert judged == {str(patch.pair.chosen) for patch in patches}, "labels go by the response, not by its place"
