"""The figures of the report, as plotly figures that know their words; one look for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sim2real.report.notation import digits, figure_text, look, percent, trimmed
from sim2real.report.summary import Rows, horizons, nrmse, rmse

INK, GRID, NEUTRAL = "#1c2430", "#e6e9ee", "#9fabbb"
LEVELS = ("0.5", "0.9", "0.95")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Panel:
    """A figure with what is written around it.

    Attributes:
        title: above it.
        caption: below it: what is to be seen, in a sentence.
        figure: with axis titles and units.
        height: [px].
    """

    title: str
    caption: str
    figure: go.Figure
    height: int = 320


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """Return an axis: thin lines, its own margin, and a title with a unit."""
    return {
        "title": {"text": title, "font": {"size": 12}, "standoff": 8},
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": "#b8c0cc",
        "ticks": "outside",
        "tickcolor": "#b8c0cc",
        "tickfont": {"size": 11},
        "zeroline": False,
        **settings,
    }


def draw(traces: Sequence[Any], x: dict[str, Any], y: dict[str, Any], **layout: Any) -> go.Figure:
    """Return a figure without a legend: the page writes one that wraps on narrow screens."""
    return go.Figure(
        list(traces),
        {
            "template": go.layout.Template(),
            "font": {"family": _FONT, "size": 12, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "showlegend": False,
            "xaxis": x,
            "yaxis": y,
            "hoverlabel": {"font": {"family": _FONT, "size": 12}},
            **layout,
        },
    )


def line(x: Sequence[float], y: Sequence[float], **settings: Any) -> go.Scatter:
    """Return a thin reference line that is not hovered over."""
    style = {"color": "#7a7a7a", "width": 1, "dash": "dot"}
    return go.Scatter(x=x, y=y, mode="lines", line=style, hoverinfo="skip", **settings)


def _marker(name: str, size: int = 9) -> dict[str, Any]:
    # of symbols of one nominal size, these look smaller
    size += 3 if look(name).symbol in ("triangle-up", "star") else 0
    edge = {"color": "white", "width": 1}
    return {"color": look(name).colour, "symbol": look(name).symbol, "size": size, "line": edge}


def glance(rows: Rows) -> go.Figure:
    """Draw the mean NRMSE of every predictor on one scale."""
    names = [n for n in dict.fromkeys(p for r in rows.values() for p in r) if n != "persistence"][::-1]
    errors = {n: nrmse(rows, n) for n in names}
    traces = [
        go.Scatter(
            x=[errors[n]],
            y=[look(n).label],
            mode="markers+text",
            marker=_marker(n, 13),
            text=[digits(errors[n])],
            textposition="top center",
            cliponaxis=False,
            name=n,
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
        for n in names
    ]
    shown = [e for e in errors.values() if e > 0] or [1.0]
    # room for the number over the leftmost mark
    low = math.log10(min(*shown, 1.0)) - 0.55
    x = axis("mean NRMSE [1]", type="log", range=[low, 0.15], dtick=1, tickformat="~g")
    edge = line([1, 1], [-0.5, len(names) - 0.3])
    return draw([*traces, edge], x, axis("predictor", range=[-0.5, len(names) - 0.3]))


def error_by_horizon(predictors: Mapping[str, Any]) -> go.Figure:
    """Draw the RMSE of each predictor of one recording against the horizon."""
    return _against_horizon(predictors, rmse, "RMSE [rad]", "rad")


def calibration(predictors: Mapping[str, Any]) -> go.Figure:
    """Draw the observed against the nominal coverage, with the block-bootstrap interval at 90 %."""
    names = list(predictors)
    step = 0.7 / max(len(names), 1)
    traces: list[Any] = [line([k - 0.42, k + 0.42], [100 * float(v)] * 2) for k, v in enumerate(LEVELS)]
    for i, name in enumerate(names):
        scores = predictors[name]
        seen = [100 * float(np.mean([scores[h]["coverage"][v] for h in horizons(scores)])) for v in LEVELS]
        seen[1] = 100 * scores["coverage90"]
        low, high = (100 * v for v in scores["coverage90_interval"])
        none = [0.0] * len(LEVELS)
        up, down = none.copy(), none.copy()
        up[1], down[1] = max(high - seen[1], 0), max(seen[1] - low, 0)
        traces.append(
            go.Scatter(
                x=[k + step * (i - (len(names) - 1) / 2) for k in range(len(LEVELS))],
                y=seen,
                mode="markers",
                name=name,
                marker=_marker(name),
                error_y={"array": up, "arrayminus": down, "color": look(name).colour, "thickness": 1.5, "width": 3},
                hovertemplate=f"{figure_text(look(name).label)}: %{{y:.3g}} %<extra></extra>",
            )
        )
    levels = [trimmed(100 * float(v)) for v in LEVELS]
    x = axis("nominal coverage [%]", tickvals=[0, 1, 2], ticktext=levels, range=[-0.5, 2.5], showgrid=False)
    return draw(traces, x, axis("observed coverage [%]", range=[-3, 104]))


def sharpness(predictors: Mapping[str, Any]) -> go.Figure:
    """Draw the width of the 90 % intervals against the horizon."""

    def width(scores: Any, horizon: str) -> float:
        return float(scores[horizon]["width"]["0.9"])

    return _against_horizon(predictors, width, "width of 90 % interval [rad]", "rad wide")


def _against_horizon(
    predictors: Mapping[str, Any], value: Callable[[Any, str], float], title: str, unit: str
) -> go.Figure:
    """Draw `value(scores, horizon)` of each predictor against the horizon, both axes logarithmic."""
    traces, ticks = [], []
    for name, scores in predictors.items():
        ticks = horizons(scores)
        traces.append(
            go.Scatter(
                x=[float(h) for h in ticks],
                y=[value(scores, h) for h in ticks],
                mode="lines+markers",
                name=name,
                line={"color": look(name).colour, "width": 2},
                marker=_marker(name),
                hovertemplate=f"{figure_text(look(name).label)}<br>%{{x}} s: %{{y:.3g}} {unit}<extra></extra>",
            )
        )
    x = axis("horizon [s]", type="log", tickvals=[float(h) for h in ticks], ticktext=ticks)
    return draw(traces, x, axis(title, type="log", dtick=1, tickformat="~g"))


def stage_seconds(seconds: Mapping[str, float]) -> Panel:
    """Draw how long each stage took."""
    names = list(seconds)[::-1]
    bars = go.Bar(
        x=[seconds[n] for n in names],
        y=[figure_text(n) for n in names],
        orientation="h",
        marker={"color": NEUTRAL},
        text=[f"{digits(seconds[n])} s" if seconds[n] >= 0.05 else "0 s" for n in names],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    x = axis("time [s]", range=[0, 1.25 * max([*seconds.values(), 1e-3])], nticks=6)
    figure = draw([bars], x, {**axis("stage"), "showgrid": False}, bargap=0.35)
    total = sum(seconds.values())
    share = max(seconds.values(), default=0.0) / total if total else 0.0
    caption = f"{digits(total)} s in all; the longest stage takes {percent(share)} of it."
    return Panel("Seconds per stage", caption, figure, 110 + 28 * max(len(names), 2))
