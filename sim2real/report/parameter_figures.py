"""Figures of the parameters: what each costs, which one changed, and what the posterior leaves undecided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sim2real.calibration import Posterior
from sim2real.report.figures import NEUTRAL, Panel, axis, draw
from sim2real.report.notation import digits, figure_text, look, short

# Samples of a posterior that are drawn.
SAMPLES = 2000
# The spread of samples that differ by rounding alone, relative to their size.
ROUNDING = 1e-12
# Parameters whose costs are drawn; the table has them all.
COSTLY = 16
# Parameters whose correlations are drawn; more cannot be read.
CORRELATED = 12


def two_lines(parameter: str) -> str:
    """Write a parameter's name on two lines, so that it leaves room for the figure."""
    head, _, tail = short(parameter).rpartition(".")
    return "<br>".join(figure_text(part, 18) for part in (head, tail) if part)


def attribution(found: Mapping[str, Any]) -> Panel:
    """Draw what each parameter alone costs when it goes back to its nominal value."""
    errors = dict(sorted(found["parameters"].items(), key=lambda item: item[1])[-COSTLY:])
    rows = np.arange(len(errors))
    bars = go.Bar(
        x=list(errors.values()),
        y=rows,
        orientation="h",
        marker={"color": NEUTRAL},
        text=[digits(e) for e in errors.values()],
        textposition="outside",
        cliponaxis=False,
        customdata=[figure_text(n, 60) for n in errors],
        hovertemplate="%{customdata}: %{text}<extra></extra>",
    )
    ends = [-0.5, len(errors) - 0.5]
    marks = [
        go.Scatter(
            x=[value, value],
            y=ends,
            mode="lines",
            line={"color": look(name).colour, "width": 2, "dash": dash},
            name=name,
            hovertemplate=f"{figure_text(look(name).label)}: {digits(value)}<extra></extra>",
        )
        for name, value, dash in (
            ("identified_simulator", found["identified"], "dot"),
            ("nominal_simulator", found["nominal"], "dash"),
        )
    ]
    largest = max([*errors.values(), found["nominal"]], default=1.0)
    x = axis("mean NRMSE [1]", range=[0, 1.18 * largest], nticks=6)
    y = axis("parameter", tickvals=rows, ticktext=[two_lines(n) for n in errors], range=ends)
    figure = draw([bars, *marks], x, {**y, "showgrid": False}, bargap=0.35)
    caption = (
        "Each bar is the error on the training and validation recordings when that one parameter is put back to its "
        "nominal value and all others stay identified: the longer the bar, the more that part of the gap costs."
    )
    if len(errors) < len(found["parameters"]):
        caption += f" The {len(errors)} costliest of {len(found['parameters'])} parameters."
    return Panel("Cost of each part", caption, figure, 110 + 46 * max(len(errors), 2))


def adaptation(recording: str, found: Mapping[str, Any]) -> Panel:
    """Draw the replay error that is left when each parameter alone may move."""
    errors = dict(sorted(found["errors"].items(), key=lambda item: -item[1]))
    rows = np.arange(len(errors))
    bars = go.Bar(
        x=list(errors.values()),
        y=rows,
        orientation="h",
        marker={"color": [look("adapted_simulator").colour if n == found["moved"] else NEUTRAL for n in errors]},
        text=[digits(e) for e in errors.values()],
        textposition="outside",
        cliponaxis=False,
        customdata=[figure_text(n, 60) or "no parameter moves" for n in errors],
        hovertemplate="%{customdata}: %{text} rad<extra></extra>",
    )
    x = axis("replay error [rad]", range=[0, 1.3 * max([*errors.values(), 1e-9])], nticks=5)
    ticks = [two_lines(n) if n else "none<br>moves" for n in errors]
    y = axis("parameter that may move", tickvals=rows, ticktext=ticks, range=[-0.5, len(errors) - 0.5])
    caption = (
        "Mean absolute error left on the first seconds of the changed robot when one parameter alone may move; the "
        "shortest bar is the best single explanation, and coloured where it is good enough to be believed."
    )
    figure = draw([bars], x, {**y, "showgrid": False}, bargap=0.35)
    return Panel(recording, caption, figure, 110 + 46 * max(len(errors), 2))


def correlation(posterior: Posterior) -> list[Panel]:
    """Draw the posterior's correlations, and the most correlated pair; nothing where fewer than two parameters vary."""
    varying = varied(posterior)
    if len(varying) < 2:
        return []
    table = np.asarray(np.corrcoef(posterior.samples[:, varying].T))
    strength = np.abs(np.tril(table, -1))
    shown = strongest(table, CORRELATED)
    names = [posterior.names[i] for i in varying[shown]]
    # each pair once: rows from the second parameter on, columns up to the last but one
    part = np.where(np.triu(np.ones((len(shown), len(shown)))) > 0, np.nan, table[np.ix_(shown, shown)])[1:, :-1]
    labels, few = [two_lines(n) for n in names], len(names) <= 7
    at = {"tickvals": list(range(len(names) - 1)), "showgrid": False}
    if few:
        x = axis("parameter", **at, ticktext=labels[:-1], tickangle=-90)
    else:
        numbers = [str(i + 1) for i in range(len(names))]
        labels = [f"{label} ({i})" for label, i in zip(labels, numbers, strict=True)]
        x = axis(f"parameter (1: {figure_text(short(names[0]), 22)})", **at, ticktext=numbers[:-1], tickangle=0)
    y = axis("parameter", **at, ticktext=labels[1:], autorange="reversed")
    heat = go.Heatmap(
        z=part.round(3),
        zmin=-1,
        zmax=1,
        colorscale="RdBu",
        text=[[f"{v:.2f}" if np.isfinite(v) else "" for v in row] for row in part],
        texttemplate="%{text}" if few else None,
        textfont={"size": 11},
        hovertemplate="r = %{text}<extra></extra>",
        xgap=2,
        ygap=2,
        hoverongaps=False,
        showscale=not few,
        colorbar={"thickness": 8, "len": 0.9, "tickvals": [-1, 0, 1], "tickfont": {"size": 11}, "outlinewidth": 0},
    )
    height = 200 + min(44 * len(names), 500)
    caption = (
        "Correlation of the posterior's samples. Near 1 or -1, the recordings fix only a combination of the two "
        "parameters; near 0, each is known by itself."
    )
    if len(names) < len(varying):
        caption += f" The {len(names)} parameters with the strongest correlations, of {len(varying)}."
    a, b = np.unravel_index(strength.argmax(), strength.shape)
    pair = _pair(posterior, int(varying[b]), int(varying[a]), float(table[a, b]), height)
    return [Panel("Posterior correlation", caption, draw([heat], x, y), height), pair]


def varied(posterior: Posterior) -> NDArray[np.int_]:
    """Return which parameters have a spread that is more than rounding."""
    return np.flatnonzero(np.ptp(posterior.samples, 0) > ROUNDING * np.abs(posterior.samples).max(0))


def strongest(correlation: NDArray[np.float64], most: int) -> NDArray[np.int_]:
    """Return the rows of a table of correlations (P, P) that have the strongest ones, in their own order."""
    strength = np.abs(correlation - np.eye(len(correlation)))
    return np.sort(np.argsort(-strength.max(1), kind="stable")[:most])


def _pair(posterior: Posterior, a: int, b: int, r: float, height: int) -> Panel:
    label = [f"{figure_text(short(posterior.names[i]))} [{posterior.prior[posterior.names[i]].unit}]" for i in (a, b)]
    few = posterior.samples[:SAMPLES]
    dots = go.Scatter(
        x=few[:, a],
        y=few[:, b],
        mode="markers",
        marker={"color": look("identified_simulator").colour, "size": 5, "opacity": 0.45},
        hovertemplate="%{x:.4g}, %{y:.4g}<extra></extra>",
    )
    figure = draw([dots], axis(label[0], nticks=5), axis(label[1], nticks=6))
    caption = f"The pair that the recordings tell apart least (r = {r:.2f}); each dot is a sample of the posterior."
    return Panel("Most correlated pair", caption, figure, height)
