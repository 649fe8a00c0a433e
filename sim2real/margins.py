"""How far a parameter may go: a rough scan, then halving of the stretch in which a policy begins to fail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Values of the rough scan from one end to the other, at least.
SCAN = 9
# A mean is told from the limit once it is so many standard errors away from it.
SURE = 3.0


@dataclass(frozen=True)
class Margin:
    """How far one parameter may go, the others nominal.

    Attributes:
        name: of the parameter, or the pattern of those that share the draw.
        unit: of the values; "" for a factor or a pure number.
        factor: whether values are factors on what is nominal.
        logarithmic: whether they are drawn evenly in their logarithm.
        nominal: its value.
        low, high: the furthest values that the policy was seen to survive, outwards from the nominal one.
        fails_below, fails_above: the nearest values where it was seen to fail; None where it survives to the end.
        tried: (value, mean return, episodes) of all values that were tried, in order.
    """

    name: str
    unit: str
    factor: bool
    logarithmic: bool
    nominal: float
    low: float
    high: float
    fails_below: float | None
    fails_above: float | None
    tried: tuple[tuple[float, float, int], ...]

    def told(self) -> str:
        """Say it in a line."""
        what = self.name.partition(".")[2]
        fails = self.failures()
        return f"{what}: survives {self.span()}, " + (
            f"fails at {' and at '.join(fails)}" if fails else "all that was asked"
        )

    def failures(self) -> list[str]:
        """Return the nearest values where it fails, the lower one first."""
        return [self.shown(value) for value in (self.fails_below, self.fails_above) if value is not None]

    def span(self) -> str:
        """Return what it survives."""
        return f"{self.shown(self.low)} to {self.shown(self.high)}"

    def shown(self, value: float) -> str:
        """Return a value with its unit, or as a factor."""
        # seconds of a delay are told in milliseconds
        if self.unit == "s" and abs(value) < 1:
            return f"{1e3 * value:.3g} ms"
        return f"{'x ' * self.factor}{value:.3g} {self.unit}".strip()


class Line:
    """The values of one parameter on a grid, and what was found at some of them.

    Attributes:
        column: of the parameter.
        start: where on the grid it is nominal.
        found: place on the grid -> mean return, and how many episodes it took.
    """

    def __init__(self, column: int, start: int, size: int) -> None:
        self.column, self.start, self.size = column, start, size
        self.found: dict[int, tuple[float, int]] = {}

    def scan(self) -> list[int]:
        """Return the places of a rough scan that are not known yet: the nominal one, both ends, and some between."""
        stride = max(1, round((self.size - 1) / (SCAN - 1)))
        outwards = [*range(self.start, -1, -stride), *range(self.start, self.size, stride)]
        return sorted({*outwards, 0, self.size - 1} - set(self.found))

    def good(self, at: int, lose: float) -> bool:
        return self.found[at][0] >= lose

    def edges(self, lose: float) -> tuple[int, int]:
        """Return the outermost places that are good, and so is every one that was tried between them."""
        low = high = self.start
        for step in (-1, 1):
            for at in sorted(
                (a for a in self.found if (a - self.start) * step >= 0), key=lambda a: abs(a - self.start)
            ):
                if not self.good(at, lose):
                    break
                low, high = (at, high) if step < 0 else (low, at)
        return low, high

    def next(self, lose: float) -> list[int]:
        """Return the places that halve the stretches in which it begins to fail."""
        out = []
        if not self.good(self.start, lose):
            return []
        for edge, step in zip(self.edges(lose), (-1, 1), strict=True):
            beyond = [a for a in self.found if (a - edge) * step > 0]
            if beyond:
                fails = min(beyond, key=lambda a: abs(a - edge))
                if abs(fails - edge) > 1:
                    out.append((fails + edge) // 2)
        return out


def surely(returns: Sequence[float], lose: float, reach: float) -> bool:
    """Return whether a mean return is clearly above or below a limit.

    Args:
        returns: of episodes from different starts.
        lose: the limit.
        reach: by how much a return from another start may differ; one of them more is reckoned with, as starts that
            few share may all be missing among a few.
    """
    many = len(returns)
    rare = reach * math.sqrt((1 / many) * (1 - 1 / many))
    spread = max(float(np.std(returns, ddof=1)), rare) / math.sqrt(many)
    return abs(float(np.mean(returns)) - lose) > SURE * spread
