"""What the processes of roles do not import, and what they keep for good."""

from __future__ import annotations

import gc
import sys

# transformers imports them wherever they are installed, for losses of object detection and for one kind of speculative
# decoding: a quarter of the time that a role takes to import.
_UNUSED = ("sklearn", "scipy")


def skip_unused_packages() -> None:
    """Have this process pass for one where these packages are not installed, as far as it has not imported them."""
    for name in _UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # as Python's own import marks a missing module


def settle_memory() -> None:
    """What this process has built so far stays: collections of garbage, each of which would walk through a million
    objects of torch and its like, leave it out from now on."""
    gc.collect()
    gc.freeze()


def clear_memory() -> None:
    """What this process has let go of is garbage, whether it was there when memory settled or came later."""
    gc.unfreeze()
    gc.collect()
