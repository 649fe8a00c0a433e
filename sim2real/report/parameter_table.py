"""The table of parameters: each with its prior, nominal value, posterior and, for a twin, its truth on one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim2real.randomization import Parameter
from sim2real.report.notation import short
from sim2real.report.summary import Metrics, by_cost, moved


@dataclass(frozen=True)
class Span:
    """A stretch of a bar: where it starts and how long it is [% of the bar]."""

    left: float
    width: float


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
    first, last = min([prior[0], *values]), max([prior[1], *values])
    width = (last - first) or 1.0

    def place(x: float) -> float:
        return float(round(100 * (x - first) / width, 3))

    def span(a: float, b: float) -> Span:
        return Span(place(a), round(100 * (b - a) / width, 3))

    return ParameterRow(
        name=name,
        short=short(name),
        gap=name.partition(".")[0],
        unit="" if p["unit"] == "1" else p["unit"],
        nominal=p["nominal"],
        identified=p["mean"],
        truth=p.get("truth"),
        interval=(low, high),
        moved=moved(p),
        at_bound=name in ((metrics.get("identification") or {}).get("at_bound") or []),
        cost=((metrics.get("attribution") or {}).get("parameters") or {}).get(name),
        ends=(first, last),
        prior=span(*prior),
        posterior=span(low, high),
        marks=[(kind, place(x), x) for kind, x in points],
    )


def prior_range(name: str, notation: str, unit: str) -> tuple[float, float]:
    """Return the support of a prior, or its central 99 % where the support has no end.

    Raises:
        ParameterError: the notation cannot be read.
    """
    distribution = Parameter.parse(name, notation, unit).distribution
    low, high = distribution.support
    return (low, high) if math.isfinite(low) and math.isfinite(high) else distribution.interval(0.99)
