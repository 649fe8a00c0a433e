"""simulators.html: where two simulators of one robot part."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from sim2real.report.figures import Panel, axis, draw
from sim2real.report.notation import digits, figure_text, percent
from sim2real.report.page import fill, write_page
from sim2real.simulators import AGREE, Disagreement, read_disagreement, told

PAGE = "simulators.html"
COLOURS = ("#2f6fab", "#e08a1e")


def write_simulators_report(directory: Path) -> Path:
    """Write simulators.html beside simulators.json, in one piece.

    Raises:
        ModelError: simulators.json is missing or damaged.
    """
    found = read_disagreement(directory)
    ranked = sorted(found.explained, key=lambda name: -found.explained[name])
    verdict, *more = told(found)
    text = fill(
        "simulators_template.html",
        name=found.name or directory.name,
        verdict=verdict,
        more=more,
        simulators=list(zip(found.simulators, COLOURS, strict=True)),
        horizons=[f"{h:g}" for h in found.horizons],
        rows=[
            (channel, unit, [(digits(a), small(s), s >= AGREE) for a, s in zip(apart, share, strict=True)])
            for channel, unit, apart, share in zip(
                found.channels, found.units, found.apart.T, found.share.T, strict=True
            )
        ],
        explained=[(name, percent(max(found.explained[name], 0.0)), f"{found.shift[name]:+.3g}") for name in ranked],
        growth=Panel(
            "Apart, against time",
            "Root mean square over the draws, relative to how far the channel moves. Dotted: 2 %.",
            growth(found),
        ),
        paths=[path(found, k) for k in range(len(found.channels))],
    )
    return write_page(directory / PAGE, text)


def small(share: float) -> str:
    """Return a share in percent, in powers of ten where it is next to nothing."""
    return percent(share) if share >= 0.001 else f"{100 * share:.0e} %".replace("e-0", "e-")


def growth(found: Disagreement) -> go.Figure:
    """Draw the shares of all channels against the horizon, both axes logarithmic."""
    traces = [
        go.Scatter(
            x=found.horizons,
            y=found.share[:, k].clip(1e-9),
            mode="lines+markers",
            name=channel,
            showlegend=True,
            hovertemplate=f"{figure_text(channel)}<br>%{{x}} s: %{{y:.2g}}<extra></extra>",
        )
        for k, channel in enumerate(found.channels)
    ]
    limit = go.Scatter(
        x=[found.horizons[0], found.horizons[-1]],
        y=[AGREE, AGREE],
        mode="lines",
        line={"color": "#7a7a7a", "width": 1, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    ticks = [f"{h:g}" for h in found.horizons]
    x = axis("seconds after the start", type="log", tickvals=list(found.horizons), ticktext=ticks)
    y = axis("share of the motion", type="log", exponentformat="power", dtick=1)
    return draw([*traces, limit], x, y, showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})


def path(found: Disagreement, k: int) -> Panel:
    """Draw a channel of the draw whose simulators are the farthest apart, on both."""
    traces = [
        go.Scatter(
            x=found.times,
            y=one[:, k],
            mode="lines",
            name=name,
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate=f"{figure_text(name)}, %{{x:.3g}} s: %{{y:.4g}}<extra></extra>",
        )
        for one, name, colour, dash in zip(found.paths, found.simulators, COLOURS, ("solid", "dash"), strict=True)
    ]
    figure = draw(traces, axis("time [s]", nticks=6), axis(f"[{found.units[k]}]", nticks=5))
    return Panel(found.channels[k], "", figure, 240)
