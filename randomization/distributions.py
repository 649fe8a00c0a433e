"""Distributions of one number, as values: comparable, printable, and parsed back from what they print.

The mathematics is `scipy.stats`; the notation follows the prose of MuJoCo Playground's randomizers (`U(0.8, 1.2)`).
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

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

    def quantile(self, u: ArrayLike) -> Array:
        """Return the value below which a draw falls with probability `u` in [0, 1), of the shape of `u`."""
        return np.asarray(self._frozen.ppf(u), float)

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

    @classmethod
    def of(cls, arguments: Sequence[float]) -> Distribution:
        """Build one from the arguments of its notation."""
        names = [f.name for f in fields(cls)]
        if len(names) != len(arguments):
            raise ParameterError(
                f"{cls.symbol} takes {len(names)} numbers ({', '.join(names)}), found {len(arguments)}"
            )
        return cls(*arguments)

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

    def quantile(self, u: ArrayLike) -> Array:
        return np.full(np.shape(u), self.value)

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

    # the quantiles of the common families are spelt out: scipy takes 60 µs to check the arguments of one
    def quantile(self, u: ArrayLike) -> Array:
        return self.low + (self.high - self.low) * np.asarray(u, float)

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

    def quantile(self, u: ArrayLike) -> Array:
        return np.asarray(self.low * np.exp(np.log(self.high / self.low) * np.asarray(u, float)))

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

    def quantile(self, u: ArrayLike) -> Array:
        return np.asarray(self.mu + self.sigma * special.ndtri(np.asarray(u, float)))

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

    def quantile(self, u: ArrayLike) -> Array:
        return np.asarray(self.median * np.exp(self.sigma * special.ndtri(np.asarray(u, float))))

    def affine(self, scale: float, shift: float) -> Distribution:
        if shift:
            raise ParameterError("a log-normal distribution cannot be added to a nominal value; use * or =")
        return LogNormal(scale * self.median, self.sigma)


@dataclass(frozen=True)
class Categorical(Distribution):
    """One of some numbers, equally likely; a number that is named twice is twice as likely.

    `log_prob` is the log probability of a number, not a density.
    """

    values: tuple[float, ...]
    symbol: ClassVar[str] = "Cat"

    def __post_init__(self) -> None:
        if len(set(self.values)) < 2:
            raise ParameterError(f"Cat(a, b, ...) needs two different numbers or more, found {self}")

    @classmethod
    def of(cls, arguments: Sequence[float]) -> Categorical:
        return cls(tuple(arguments))

    @property
    def scipy(self) -> Any:
        values, counts = np.unique(self.values, return_counts=True)
        return stats.rv_discrete(values=(values, counts / counts.sum()))

    def quantile(self, u: ArrayLike) -> Array:
        # scipy places the quantile of 0 below the smallest value
        return np.maximum(super().quantile(u), min(self.values))

    def affine(self, scale: float, shift: float) -> Categorical:
        return Categorical(tuple(scale * x + shift for x in self.values))

    def log_prob(self, x: ArrayLike) -> Array:
        return np.asarray(self._frozen.logpmf(x), float)

    def __str__(self) -> str:
        return f"{self.symbol}({', '.join(_digits(x) for x in self.values)})"


@dataclass(frozen=True)
class Empirical(Distribution):
    """What samples say of one number: between neighbouring samples, equal probability (`scipy.stats.rv_histogram`).

    For samples of several numbers together see `JointEmpirical`.
    """

    samples: tuple[float, ...]
    symbol: ClassVar[str] = "Emp"

    def __post_init__(self) -> None:
        if len(set(self.samples)) < 2:
            raise ParameterError(f"Emp(a, b, ...) needs two different samples or more, found {len(self.samples)}")

    @classmethod
    def of(cls, arguments: Sequence[float]) -> Empirical:
        return cls(tuple(arguments))

    @property
    def scipy(self) -> Any:
        edges, counts = np.unique(self.samples, return_counts=True)
        # a sample gives half of its probability to each side of it, the first and the last all to one
        to_left, to_right = counts / 2.0, counts / 2.0
        to_right[0], to_left[-1] = counts[0], counts[-1]
        return stats.rv_histogram((to_right[:-1] + to_left[1:], edges), density=False)

    def affine(self, scale: float, shift: float) -> Empirical:
        return Empirical(tuple(scale * x + shift for x in self.samples))

    def __str__(self) -> str:
        return f"{self.symbol}({', '.join(_digits(x) for x in self.samples)})"


FAMILIES: dict[str, type[Distribution]] = {
    family.symbol: family
    for family in (Fixed, Uniform, LogUniform, Normal, TruncatedNormal, LogNormal, Categorical, Empirical)
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
    # the bounds of TN need not be finite
    if not all(math.isfinite(x) for x in (arguments[:2] if symbol == TruncatedNormal.symbol else arguments)):
        raise ParameterError(f"{text!r}: every argument must be finite")
    return FAMILIES[symbol].of(arguments)
