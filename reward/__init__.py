"""The conditional reward model: its losses, training, scoring and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward.scoring import RewardModel

__all__ = ["RewardModel"]


def __getattr__(name: str) -> Any:
    # Late, so that `reward.losses` or `reward.conditions` do not wait for the import of transformers.
    if name == "RewardModel":
        from reward.scoring import RewardModel

        return RewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
