"""The numbers that the report leads with, pooled from metrics.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim2real.report.notation import digits, percent, quantity

Metrics = Mapping[str, Any]
Rows = Mapping[str, Mapping[str, Any]]
# The horizon that stands for all of them in a sentence [s].
HEADLINE_HORIZON = 0.5


@dataclass(frozen=True)
class KeyFigure:
    """One box of the strip of key figures; `value` is "not applicable" where there is none, and `detail` says why."""

    label: str
    value: str
    detail: str


def headline(metrics: Metrics) -> tuple[str, Rows]:
    """Return the split that the headline is about, and its recordings: test, else validation, else neither."""
    for split in ("test", "validation"):
        rows: Rows = metrics["scores"].get(split) or {}
        if rows:
            return split, rows
    return "", {}


def horizons(scores: Mapping[str, Any]) -> list[str]:
    """Return the keys of a predictor's scores that are horizons [s], from short to long."""
    return sorted((k for k, v in scores.items() if isinstance(v, Mapping)), key=float)


def headline_horizon(rows: Rows) -> str:
    """Return the scored horizon that is nearest to half a second."""
    keys = horizons(next(iter(next(iter(rows.values())).values())))
    return min(keys, key=lambda h: abs(float(h) - HEADLINE_HORIZON))


def rmse(scores: Mapping[str, Any], horizon: str) -> float:
    """Return the error of one recording at a horizon, over joints: root mean square [rad]."""
    return float(np.sqrt(np.mean(np.square(list(scores[horizon]["rmse"].values())))))


def pooled(rows: Rows, predictor: str, value: Callable[[Mapping[str, Any]], float]) -> float:
    """Return the mean of a score over recordings, weighted by their windows; NaN where the predictor is not there."""
    found = [r[predictor] for r in rows.values() if predictor in r]
    if not found:
        return math.nan
    return float(np.average([value(s) for s in found], weights=[s["windows"] for s in found]))


def nrmse(rows: Rows, predictor: str) -> float:
    """Return the mean NRMSE over recordings."""
    return pooled(rows, predictor, lambda s: s["mean_nrmse"])


def pooled_rmse(rows: Rows, predictor: str, horizon: str) -> float:
    """Return the RMSE at a horizon over recordings [rad]."""
    return math.sqrt(pooled(rows, predictor, lambda s: rmse(s, horizon) ** 2))


def worst_coverage(rows: Rows, predictor: str) -> tuple[str, float, list[float]] | None:
    """Return the recording on which the 90 % intervals are furthest off, their coverage, and its bootstrap interval."""
    found = {n: r[predictor] for n, r in rows.items() if predictor in r}
    if not found:
        return None
    name = max(found, key=lambda n: abs(found[n]["coverage90"] - 0.9))
    return name, found[name]["coverage90"], found[name]["coverage90_interval"]


def moved(parameter: Mapping[str, Any]) -> bool:
    """Return whether the nominal value lies outside the 90 % interval."""
    low, high = parameter["interval90"]
    slack = 1e-6 * max(abs(low), abs(high), abs(parameter["nominal"]))
    return not low - slack <= parameter["nominal"] <= high + slack


def by_cost(metrics: Metrics) -> list[str]:
    """Return the parameters, the costliest first; without attribution, the one furthest from nominal first."""
    parameters = metrics["parameters"]
    costs = (metrics.get("attribution") or {}).get("parameters", {})

    def distance(name: str) -> float:
        p = parameters[name]
        low, high = p["interval90"]
        return float(abs(p["mean"] - p["nominal"]) / max(high - low, 1e-12))

    return sorted(parameters, key=lambda n: (-costs.get(n, -math.inf), -distance(n)))


def recovered(returns: Mapping[str, float], name: str) -> float:
    """Return the share of what the oracle gains over the fallback; NaN where the oracle gains nothing."""
    if not {"fallback", "oracle", name} <= returns.keys():
        return math.nan
    gain = returns["oracle"] - returns["fallback"]
    return (returns[name] - returns["fallback"]) / gain if gain > 0.01 else math.nan


def no_closed_loop(metrics: Metrics) -> str:
    """Return why there is no closed loop."""
    return str(metrics.get("closed_loop_not_applicable") or "no controller was tried")


def key_figures(metrics: Metrics) -> list[KeyFigure]:
    """Return the strip of key figures."""
    return [_gap(metrics), _coverage(metrics), *_control(metrics), _recordings(metrics)]


def _gap(metrics: Metrics) -> KeyFigure:
    split, rows = headline(metrics)
    label = "gap: mean NRMSE"
    if not rows:
        return KeyFigure(label, "not applicable", "no recording was scored")
    before, now = nrmse(rows, "nominal_simulator"), nrmse(rows, "identified_simulator")
    model = nrmse(rows, "finetuned_model")
    detail = f"nominal → identified simulator, on {split} recordings; world model {digits(model)}"
    return KeyFigure(label, f"{digits(before)} → {digits(now)}", detail)


def _coverage(metrics: Metrics) -> KeyFigure:
    _, rows = headline(metrics)
    label, found = "coverage at 90 %", worst_coverage(rows, "finetuned_model")
    if found is None:
        return KeyFigure(label, "not applicable", "no recording was scored")
    name, share, (low, high) = found
    where = f"on {name}" + (", the recording furthest from 90 %" if len(rows) > 1 else "")
    spread = f"block bootstrap {percent(low).removesuffix(' %')} to {percent(high)}"
    return KeyFigure(label, percent(share), f"world model, {where}; {spread}")


def _control(metrics: Metrics) -> list[KeyFigure]:
    labels = "control recovered", "planning time"
    returns = metrics.get("closed_loop")
    if not returns:
        return [KeyFigure(label, "not applicable", no_closed_loop(metrics)) for label in labels]
    share, before = recovered(returns, "after"), recovered(returns, "before")
    if math.isfinite(share):
        first = KeyFigure(
            labels[0], percent(share), f"of the oracle's gain over the fallback; before {percent(before)}"
        )
    else:
        first = KeyFigure(labels[0], "not applicable", "the oracle is no better than the fallback")
    milliseconds = (metrics.get("planning_milliseconds") or {}).get("after")
    starts = len((metrics.get("closed_loop_each") or {}).get("after", [])) or 1
    together = f" for {starts} robots together" if starts > 1 else ""
    return [first, KeyFigure(labels[1], quantity(milliseconds, "ms"), f"median from reading to command{together}")]


def _recordings(metrics: Metrics) -> KeyFigure:
    seconds = metrics.get("recorded_seconds") or {}
    train, validation, test = (float(seconds.get(k, 0)) for k in ("train", "validation", "test"))
    detail = (
        f"{digits(train)} s to learn from, {digits(validation)} s to choose on; {digits(test)} s of test kept apart"
    )
    return KeyFigure("recordings used", f"{digits(train + validation)} s", detail)
