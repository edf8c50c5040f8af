"""Random numbers of one image, drawn one after the other."""

from __future__ import annotations

from protofast.data.randomness import uniform

_COUNT = 512  # more than any image needs


class Chance:
    """A stream of random numbers that depends on its keys alone."""

    def __init__(self, *keys: int) -> None:
        self._numbers = iter(uniform(_COUNT, *keys)[0].tolist())

    def number(self) -> float:
        """A number in [0, 1)."""
        number: float = next(self._numbers)
        return number

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.number()

    def below(self, count: int) -> int:
        """A whole number in 0 … count-1."""
        return int(self.number() * count)

    def happens(self, probability: float) -> bool:
        """True with the given probability."""
        return self.number() < probability
