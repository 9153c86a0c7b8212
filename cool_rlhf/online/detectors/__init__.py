"""The detectors of the fast path: one small class each."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from importlib.metadata import entry_points

from cool_rlhf.online.detectors.copying import CopyingDetector
from cool_rlhf.online.detectors.endings import EndingDetector
from cool_rlhf.online.detectors.gaps import GapDetector
from cool_rlhf.online.detectors.insensitivity import BoilerplateDetector, RelevanceDetector, SwapDetector
from cool_rlhf.online.detectors.kinds import KindDetector
from cool_rlhf.online.detectors.language import LanguageDetector
from cool_rlhf.online.detectors.layout import LayoutDetector
from cool_rlhf.online.detectors.length import LengthDetector
from cool_rlhf.online.detectors.numbers import DisagreementDetector, EfficiencyDetector, OutlierDetector
from cool_rlhf.online.detectors.phrases import PhraseDetector
from cool_rlhf.online.detectors.repetition import RepetitionDetector
from cool_rlhf.online.detectors.script import ScriptDetector
from cool_rlhf.online.detectors.stance import StanceDetector
from cool_rlhf.online.detectors.vocabulary import VocabularyDetector
from cool_rlhf.online.detectors.wordless import WordlessDetector
from cool_rlhf.online.patterns import Detector
from cool_rlhf.protocols import UserError

ENTRY_POINTS = "cool_rlhf.detectors"


def own_detectors() -> list[Detector]:
    return [
        PhraseDetector(),
        LengthDetector(),
        RepetitionDetector(),
        LayoutDetector(),
        GapDetector(),
        ScriptDetector(),
        LanguageDetector(),
        VocabularyDetector(),
        CopyingDetector(),
        StanceDetector(),
        KindDetector(),
        EndingDetector(),
        WordlessDetector(),
        BoilerplateDetector(),
        RelevanceDetector(),
        SwapDetector(),
        OutlierDetector(),
        EfficiencyDetector(),
        DisagreementDetector(),
    ]


def all_detectors(without: Collection[str] = ()) -> list[Detector]:
    """The project's own, then those that installed packages add through entry points, by name; all but ``without``.

    Raises: UserError where an entry point cannot be loaded or gives no detector, two detectors have one name, or
    ``without`` names none.
    """
    detectors = own_detectors()
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            detector = point.load()()
        except Exception as error:  # what another package's code may raise
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"the entry point {point.name!r} of {ENTRY_POINTS} ({point.value}) cannot be loaded ({said}): mend or "
                "uninstall its package"
            ) from error
        if not isinstance(getattr(detector, "name", None), str) or not callable(getattr(detector, "candidates", None)):
            raise UserError(
                f"the entry point {point.name!r} of {ENTRY_POINTS} ({point.value}) gives {detector!r}, which has no "
                "`name` and `candidates`: point it at a detector"
            )
        if detector.name in {other.name for other in detectors}:
            raise UserError(f"two detectors are called {detector.name!r}: rename the one of {point.value}")
        detectors.append(detector)
    names = [detector.name for detector in detectors]
    for name in without:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"is {near[0]} meant?" if near else f"there are {', '.join(names)}"
            raise UserError(f"online.without_detectors names {name!r}, which is no detector: {hint}")
    return [detector for detector in detectors if detector.name not in without]
