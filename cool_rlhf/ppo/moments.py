"""Mean and deviation of all scores so far, by which scores can be brought to one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Of equal numbers the deviation is what rounding leaves, some 1e-17 of 0.1: told from a real one by their size.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Moments:
    """Of all numbers seen so far, in double precision; what it is made of goes into a checkpoint."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared differences from the mean

    def including(self, numbers: Sequence[float]) -> Moments:
        """With ``numbers`` (one or more) seen too, in one pass (Chan, Golub and LeVeque 1979)."""
        mean = sum(numbers) / len(numbers)
        squares = sum((number - mean) ** 2 for number in numbers)
        count = self.count + len(numbers)
        apart = mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + apart * len(numbers) / count,
            squares=self.squares + squares + apart**2 * self.count * len(numbers) / count,
        )

    @property
    def deviation(self) -> float:
        """Root of the mean squared difference from the mean; 0 before there are any."""
        return (self.squares / self.count) ** 0.5 if self.count else 0.0

    def standardise(self, number: float) -> float:
        """(number − mean) / deviation; 0 where all numbers so far are equal."""
        return (number - self.mean) / self.deviation if self.deviation > ROUNDING * abs(self.mean) else 0.0
