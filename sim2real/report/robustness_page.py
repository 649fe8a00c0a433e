"""robustness.html: how much of a difference a policy survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sim2real.margins import Margin
from sim2real.report.figures import Panel, axis, draw
from sim2real.report.notation import figure_text
from sim2real.report.page import fill, write_page
from sim2real.robustness import Robustness, read_robustness
from sim2real.run_directory import read_json

PAGE = "robustness.html"
GOOD, BAD, REST = "#2f6fab", "#d1495b", "#7a7a7a"


def write_robustness_report(directory: Path) -> Path:
    """Write robustness.html beside robustness.json, in one piece.

    Raises:
        ModelError: robustness.json is missing or damaged.
    """
    found, document = read_robustness(directory), read_json(directory / "robustness.json")
    verdict, *more = found.told()
    text = fill(
        "robustness_template.html",
        name=document["name"],
        policy=Path(document["policy"]).name,
        env=document["env"],
        verdict=verdict,
        more=more,
        nominal=f"{found.nominal:.4g}",
        lose=f"{found.lose:.4g}",
        episodes=f"{found.episodes:,}",
        rows=[_row(m) for m in found.margins],
        curves=[_curve(m, found.lose) for m in found.margins],
        shares=_shares(found) if found.sobol else None,
        maps=[_map(one, found) for one in found.maps],
    )
    return write_page(directory / PAGE, text)


def _row(m: Margin) -> tuple[str, ...]:
    def told(value: float | None) -> str:
        return "nowhere" if value is None else m.shown(value)

    tried = str(sum(many for *_, many in m.tried))
    return m.name, m.shown(m.nominal), m.span(), told(m.fails_below), told(m.fails_above), tried


def _curve(m: Margin, lose: float) -> Panel:
    """Draw the mean return against the value of one parameter, red where it fails."""
    value, mean, many = (np.array(column) for column in zip(*m.tried, strict=True))
    traces: list[Any] = [
        go.Scatter(
            x=value,
            y=mean,
            mode="lines+markers",
            line={"color": REST, "width": 1},
            marker={"size": 8, "color": [GOOD if y >= lose else BAD for y in mean]},
            customdata=many,
            hovertemplate="%{x:.4g}: %{y:.4g}, %{customdata} episodes<extra></extra>",
        ),
        go.Scatter(
            x=[value[0], value[-1]],
            y=[lose, lose],
            mode="lines",
            line={"color": BAD, "width": 1, "dash": "dot"},
            hoverinfo="skip",
        ),
    ]
    unit = "factor" if m.factor else figure_text(m.unit or "1")
    x = axis(f"[{unit}]", nticks=6, **({"type": "log", "dtick": "D2"} if m.logarithmic else {}))
    figure = draw(traces, x, axis("mean return", nticks=5))
    figure.add_vline(x=m.nominal, line={"color": REST, "width": 1, "dash": "dash"})
    return Panel(m.name, m.told().partition(": ")[2], figure, 260)


def _shares(found: Robustness) -> Panel:
    """Draw the Sobol indices with their intervals, the largest total on top."""
    ranked = sorted(found.sobol, key=lambda name: found.sobol[name]["total"])
    traces = [
        go.Bar(
            y=ranked,
            x=[found.sobol[name][kind] for name in ranked],
            error_x={"type": "data", "array": [found.sobol[name][f"{kind}_by_chance"] for name in ranked]},
            orientation="h",
            name=told,
            showlegend=True,
            marker={"color": colour},
            hovertemplate=f"{told}<br>%{{y}}: %{{x:.2f}}<extra></extra>",
        )
        for kind, told, colour in (("total", "with the others", "#a9c4de"), ("first", "by itself", GOOD))
    ]
    x = axis("share of the variance of returns", range=[0, 1.05])
    y = {"automargin": True, "title": {"text": ""}}
    figure = draw(
        traces, x, y, showlegend=True, barmode="group", legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    )
    text = "Sobol indices when all parameters vary at once; lines: what another design might have said (95 %)."
    return Panel("Which of them matter", text, figure, 120 + 60 * len(ranked))


def _map(one: dict[str, Any], found: Robustness) -> Panel:
    """Draw the mean return over two parameters, white where it is the limit."""
    first, second = one["names"]
    returns = np.array(one["returns"])
    reach = float(np.abs(returns - found.lose).max()) or 1.0
    heat = go.Heatmap(
        z=returns,
        customdata=[[[a, b] for b in one["values"][1]] for a in one["values"][0]],
        zmin=found.lose - reach,
        zmax=found.lose + reach,
        colorscale=[[0.0, BAD], [0.5, "#ffffff"], [1.0, GOOD]],
        colorbar={"title": {"text": "return"}, "thickness": 12},
        hovertemplate=(
            f"{figure_text(first)} %{{customdata[0]:.4g}}<br>{figure_text(second)} %{{customdata[1]:.4g}}"
            "<br>%{z:.4g}<extra></extra>"
        ),
    )
    y, x = (
        axis(
            figure_text(name.partition(".")[2]),
            tickvals=list(range(len(values))),
            ticktext=[f"{value:.3g}" for value in values],
            showgrid=False,
            zeroline=False,
        )
        for name, values in zip(one["names"], one["values"], strict=True)
    )
    figure = draw([heat], x, y)
    return Panel(f"{first} and {second}", "Red: it fails. The other parameters are nominal.", figure, 380)
