"""Distributions of one number, as values: comparable, printable, and parsed back from what they print.

The mathematics is `scipy.stats`; the notation follows the prose of MuJoCo Playground's randomizers (`U(0.8, 1.2)`).
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sim2real.errors import ParameterError, did_you_mean

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Distribution(ABC):
    """The distribution of one real number; its fields are its arguments in the notation."""

    symbol: ClassVar[str]

    @property
    @abstractmethod
    def scipy(self) -> Any:
        """The frozen `scipy.stats` distribution that does the mathematics."""

    @abstractmethod
    def affine(self, scale: float, shift: float) -> Distribution:
        """Return the distribution of `scale * x + shift`, with `scale` > 0."""

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...] = ()) -> Array:
        """Return independent draws of the given shape."""
        return np.asarray(self._frozen.rvs(size=shape, random_state=rng), float)

    def log_prob(self, x: ArrayLike) -> Array:
        """Return the log density at `x`, of the shape of `x`; -inf outside the support."""
        return np.asarray(self._frozen.logpdf(x), float)

    @property
    def support(self) -> tuple[float, float]:
        """The smallest interval that holds every draw."""
        low, high = self._frozen.support()
        return float(low), float(high)

    @property
    def mean(self) -> float:
        return float(self._frozen.mean())

    @property
    def std(self) -> float:
        return float(self._frozen.std())

    def interval(self, level: float) -> tuple[float, float]:
        """Return the central interval of the given probability."""
        low, high = self._frozen.interval(level)
        return float(low), float(high)

    @cached_property
    def _frozen(self) -> Any:
        return self.scipy

    def __str__(self) -> str:
        return f"{self.symbol}({', '.join(_digits(x) for x in astuple(self))})"


def _digits(x: float) -> str:
    """The shortest text that is read back as the same number."""
    return repr(float(x)).removesuffix(".0")


@dataclass(frozen=True)
class Fixed(Distribution):
    """Always the same number. Prints as the number alone."""

    value: float
    symbol: ClassVar[str] = "Fixed"

    @property
    def scipy(self) -> Any:
        return stats.uniform(self.value, 0.0)

    def affine(self, scale: float, shift: float) -> Fixed:
        return Fixed(scale * self.value + shift)

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...] = ()) -> Array:
        return np.full(shape, self.value)

    def log_prob(self, x: ArrayLike) -> Array:
        return np.where(np.asarray(x) == self.value, 0.0, -np.inf)

    @property
    def support(self) -> tuple[float, float]:
        return self.value, self.value

    @property
    def mean(self) -> float:
        return self.value

    @property
    def std(self) -> float:
        return 0.0

    def interval(self, level: float) -> tuple[float, float]:
        return self.value, self.value

    def __str__(self) -> str:
        return _digits(self.value)


@dataclass(frozen=True)
class Uniform(Distribution):
    """Uniform between `low` and `high`."""

    low: float
    high: float
    symbol: ClassVar[str] = "U"

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ParameterError(f"U(low, high) needs low < high, found U({self.low:g}, {self.high:g})")

    @property
    def scipy(self) -> Any:
        return stats.uniform(self.low, self.high - self.low)

    def affine(self, scale: float, shift: float) -> Uniform:
        return Uniform(scale * self.low + shift, scale * self.high + shift)


@dataclass(frozen=True)
class LogUniform(Distribution):
    """Uniform in the logarithm between `low` and `high`, both positive."""

    low: float
    high: float
    symbol: ClassVar[str] = "LogU"

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ParameterError(f"LogU(low, high) needs 0 < low < high, found LogU({self.low:g}, {self.high:g})")

    @property
    def scipy(self) -> Any:
        return stats.loguniform(self.low, self.high)

    def affine(self, scale: float, shift: float) -> Distribution:
        if shift:
            raise ParameterError("a log-uniform distribution cannot be added to a nominal value; use * or =")
        return LogUniform(scale * self.low, scale * self.high)


@dataclass(frozen=True)
class Normal(Distribution):
    """Normal with a mean and a standard deviation."""

    mu: float
    sigma: float
    symbol: ClassVar[str] = "N"

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ParameterError(f"N(mean, standard deviation) needs a positive one, found {self.sigma:g}")

    @property
    def scipy(self) -> Any:
        return stats.norm(self.mu, self.sigma)

    def affine(self, scale: float, shift: float) -> Normal:
        return Normal(scale * self.mu + shift, scale * self.sigma)


@dataclass(frozen=True)
class TruncatedNormal(Distribution):
    """Normal, cut to [low, high] and renormalised."""

    mu: float
    sigma: float
    low: float
    high: float
    symbol: ClassVar[str] = "TN"

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and self.low < self.high):
            raise ParameterError(f"TN(mean, deviation, low, high) needs deviation > 0 and low < high, found {self}")

    @property
    def scipy(self) -> Any:
        return stats.truncnorm(
            (self.low - self.mu) / self.sigma, (self.high - self.mu) / self.sigma, self.mu, self.sigma
        )

    def affine(self, scale: float, shift: float) -> TruncatedNormal:
        return TruncatedNormal(
            scale * self.mu + shift, scale * self.sigma, scale * self.low + shift, scale * self.high + shift
        )


@dataclass(frozen=True)
class LogNormal(Distribution):
    """Log-normal: `median` times the exponential of a normal with standard deviation `sigma`."""

    median: float
    sigma: float
    symbol: ClassVar[str] = "LogN"

    def __post_init__(self) -> None:
        if not (self.median > 0 and self.sigma > 0):
            raise ParameterError(f"LogN(median, sigma) needs both positive, found {self}")

    @property
    def scipy(self) -> Any:
        return stats.lognorm(self.sigma, scale=self.median)

    def affine(self, scale: float, shift: float) -> Distribution:
        if shift:
            raise ParameterError("a log-normal distribution cannot be added to a nominal value; use * or =")
        return LogNormal(scale * self.median, self.sigma)


FAMILIES: dict[str, type[Distribution]] = {
    family.symbol: family for family in (Fixed, Uniform, LogUniform, Normal, TruncatedNormal, LogNormal)
}


def parse_distribution(text: str) -> Distribution:
    """Parse the notation that `str(distribution)` prints: `U(0.8, 1.2)`, or a number alone.

    Raises:
        ParameterError: an unknown family, a wrong number of arguments, or an argument that is not a number.
    """
    text = text.strip()
    match = re.fullmatch(r"([A-Za-z]+)\((.*)\)", text)
    symbol, numbers = (match[1], match[2]) if match else (Fixed.symbol, text)
    try:
        arguments = [float(x) for x in numbers.split(",")]
    except ValueError:
        raise ParameterError(
            f"cannot read {text!r}: expected a number or one of {', '.join(FAMILIES)} with numbers, as U(0.8, 1.2)"
        ) from None
    if symbol not in FAMILIES:
        raise ParameterError(f"no distribution named {symbol!r}{did_you_mean(symbol, FAMILIES)}")
    if not all(math.isfinite(x) for x in arguments[:2]):  # the bounds of TN need not be
        raise ParameterError(f"{text!r}: every argument must be finite")
    family = FAMILIES[symbol]
    names = [f.name for f in fields(family)]
    if len(names) != len(arguments):
        raise ParameterError(f"{text!r}: {symbol} takes {len(names)} numbers ({', '.join(names)})")
    return family(*arguments)
