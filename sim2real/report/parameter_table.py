"""The table of parameters: each with its prior, nominal value, posterior and, for a twin, its truth on one scale."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.calibration import Posterior
from sim2real.randomization import Parameter
from sim2real.report.notation import resolving, short, trimmed
from sim2real.report.summary import Metrics, by_cost, moved

_NUMBER = re.compile(r"-?\d[\d.]*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Span:
    """A stretch of a bar: where it starts and how long it is [% of the bar]."""

    left: float
    width: float


@dataclass(frozen=True)
class Scale:
    """A bar that values are placed on.

    Attributes:
        first, last: values at its ends.
    """

    first: float
    last: float

    @classmethod
    def over(cls, values: Iterable[float]) -> Scale:
        """Return the shortest bar that holds some values."""
        found = list(values)
        return cls(min(found), max(found))

    def place(self, x: float) -> float:
        """Return where a value lies [% of the bar]."""
        return float(round(100 * (x - self.first) / self._length, 3))

    def span(self, low: float, high: float) -> Span:
        """Return the stretch between two values."""
        return Span(self.place(low), round(100 * (high - low) / self._length, 3))

    @property
    def _length(self) -> float:
        return (self.last - self.first) or 1.0


@dataclass(frozen=True)
class ParameterRow:
    """One parameter.

    Attributes:
        name: in full.
        short: without its gap.
        gap: dynamics, execution or perception.
        unit: of all its numbers.
        nominal, identified, truth: values; `truth` None where nobody knows it.
        interval: 90 % of the posterior.
        moved: whether the nominal value lies outside of it.
        at_bound: whether it ended at the edge of its prior.
        cost: mean NRMSE when it alone goes back to nominal, None where that was not tried.
        ends: values at the ends of the bar.
        prior, posterior: stretches of the bar.
        marks: `(kind, place in %, value)` of nominal, truth and adapted values.
    """

    name: str
    short: str
    gap: str
    unit: str
    nominal: float
    identified: float
    truth: float | None
    interval: tuple[float, float]
    moved: bool
    at_bound: bool
    cost: float | None
    ends: tuple[float, float]
    prior: Span
    posterior: Span
    marks: list[tuple[str, float, float]]


def parameter_rows(metrics: Metrics) -> list[ParameterRow]:
    """Return the parameters, the one that costs most first."""
    return [_row(name, metrics) for name in by_cost(metrics)]


def _row(name: str, metrics: Metrics) -> ParameterRow:
    p: Mapping[str, Any] = metrics["parameters"][name]
    low, high = p["interval90"]
    prior = prior_range(name, p["prior"], p["unit"])
    changed = (metrics.get("adaptation") or {}).values()
    points = [
        ("nominal", p["nominal"]),
        *([("truth", p["truth"])] if "truth" in p else []),
        *(("adapted", a["parameters"][name]["mean"]) for a in changed if a.get("moved") == name),
    ]
    values = [low, high, p["mean"], *(value for _, value in points)]
    scale = Scale.over([*prior, *values])
    return ParameterRow(
        name=name,
        short=short(name),
        gap=name.partition(".")[0],
        unit=shown_unit(p["unit"]),
        nominal=p["nominal"],
        identified=p["mean"],
        truth=p.get("truth"),
        interval=(low, high),
        moved=moved(p),
        at_bound=name in ((metrics.get("identification") or {}).get("at_bound") or []),
        cost=((metrics.get("attribution") or {}).get("parameters") or {}).get(name),
        ends=(scale.first, scale.last),
        prior=scale.span(*prior),
        posterior=scale.span(low, high),
        marks=[(kind, scale.place(x), x) for kind, x in points],
    )


@dataclass(frozen=True)
class KnownRow:
    """What identification says of one parameter, for the table and its bar.

    Attributes:
        name, short, gap, unit: as in `ParameterRow`.
        value: the most probable one.
        interval: 90 % of the posterior.
        significant: digits that the interval takes.
        notation: of the prior.
        shrinkage: standard deviation of the posterior relative to that of the prior; NaN where the prior has none.
        at_bound: whether it ended at the edge of its prior.
        added: whether it was not asked for, but is there for a discrepancy.
        ends, prior, posterior, marks: of the bar, as in `ParameterRow`.
    """

    name: str
    short: str
    gap: str
    unit: str
    value: float
    interval: tuple[float, float]
    significant: int
    notation: str
    shrinkage: float
    at_bound: bool
    added: bool
    ends: tuple[float, float]
    prior: Span
    posterior: Span
    marks: tuple[()] = ()


def known_rows(posterior: Posterior) -> list[KnownRow]:
    """Return what a posterior says of each parameter, in its own order."""
    shares = shrinkage(posterior)
    return [_known(posterior, name, float(share)) for name, share in zip(posterior.names, shares, strict=True)]


def shrinkage(posterior: Posterior) -> NDArray[np.float64]:
    """(P,) standard deviation of the posterior relative to that of the prior; NaN where the prior has none."""
    before = posterior.prior.std
    known = np.isfinite(before) & (before > 0)
    return np.where(known, posterior.samples.std(0, ddof=1) / np.where(known, before, 1.0), np.nan)


def _known(posterior: Posterior, name: str, share: float) -> KnownRow:
    prior, value, interval = posterior.prior[name], posterior.values[name], posterior.interval(name)
    ends = prior_ends(prior)
    scale = Scale.over([*ends, *interval, value])
    return KnownRow(
        name=name,
        short=short(name),
        gap=name.partition(".")[0],
        unit=shown_unit(prior.unit),
        value=value,
        interval=interval,
        significant=resolving(*interval),
        notation=_NUMBER.sub(lambda found: trimmed(float(found[0]), 4), prior.notation.removeprefix("=")),
        shrinkage=share,
        at_bound=name in (posterior.evidence.get("at_bound") or []),
        added=name in posterior.evidence.get("discrepancy", {}),
        ends=(scale.first, scale.last),
        prior=scale.span(*ends),
        posterior=scale.span(*interval),
    )


def shown_unit(unit: str) -> str:
    """Return a unit as it is written after a number: that of a pure number is not."""
    return "" if unit == "1" else unit


def prior_range(name: str, notation: str, unit: str) -> tuple[float, float]:
    """Return the support of a prior, or its central 99 % where the support has no end.

    Raises:
        ParameterError: the notation cannot be read.
    """
    return prior_ends(Parameter.parse(name, notation, unit))


def prior_ends(prior: Parameter) -> tuple[float, float]:
    """Return the support of a prior, or its central 99 % where the support has no end."""
    low, high = prior.distribution.support
    return (low, high) if math.isfinite(low) and math.isfinite(high) else prior.distribution.interval(0.99)
