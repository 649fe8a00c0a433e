"""Figures of a posterior by itself: what each parameter gained over its prior, and which are known only together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sim2real.calibration import Posterior
from sim2real.randomization import Parameter
from sim2real.report.figures import INK, Panel, axis, draw, line
from sim2real.report.notation import digits, figure_text, look, resolving, short, small_percent, trimmed
from sim2real.report.parameter_figures import strongest, two_lines, varied
from sim2real.report.parameter_table import prior_ends, shown_unit, shrinkage

Array = NDArray[np.float64]
# Parameters whose distributions are drawn, and of those whose pairs are; the table has them all.
DRAWN, PAIRED = 24, 6
# Samples that a pair is drawn with.
DOTS = 300
# A posterior that takes up less than this share of its prior is drawn enlarged, with a strip that says where it lies.
NARROW = 0.3
FAINT = "#5a6573"
POSTERIOR = look("identified_simulator").colour


def distributions(posterior: Posterior) -> list[Panel]:
    """Draw prior and posterior of every parameter that has a spread, those that the recordings told least of last."""
    shares = shrinkage(posterior)
    shown = sorted(varied(posterior), key=lambda i: float(np.nan_to_num(shares[i])))[:DRAWN]
    return [_distribution(posterior, int(i), float(shares[i])) for i in shown]


def _distribution(posterior: Posterior, i: int, share: float) -> Panel:
    prior, samples = posterior.prior[posterior.names[i]], posterior.samples[:, i]
    low, high = prior_ends(prior)
    ends = min(low, float(samples.min())), max(high, float(samples.max()))
    inner = float(np.ptp(samples))
    narrow = inner < NARROW * (ends[1] - ends[0])
    first, last = (float(samples.min()), float(samples.max())) if narrow else ends
    margin = 0.25 * inner if narrow else 0.03 * (last - first)
    shown = (first - margin, last + margin)
    unit = shown_unit(prior.unit)
    traces, bar = _bars(samples, unit)
    traces += [_density(prior, shown, bar), *(_edge(traces[0], x) for x in posterior.interval(prior.name))]
    x = axis(f"value [{unit or 1}]", range=list(shown), nticks=5)
    y = axis("share per bar [%]", rangemode="tozero", nticks=4)
    layout: dict[str, Any] = {}
    if narrow:
        y["domain"] = [0, 0.76]
        traces += _strip(ends, samples)
        layout = _strip_axes(ends)
    low, high = posterior.interval(prior.name)
    value, low_end, high_end = (digits(x, resolving(low, high)) for x in (posterior.best[i], low, high))
    caption = f"{value} {unit}".rstrip() + f", 90 % from {low_end} to {high_end}."
    if np.isfinite(share):
        caption += f" Standard deviation: {small_percent(share)} of the prior's."
    return Panel(short(prior.name), caption, draw(traces, x, y, bargap=0, **layout), 260)


def _bars(samples: Array, unit: str) -> tuple[list[Any], float]:
    """Return the histogram of the samples, and how wide a bar is."""
    counts, edges = np.histogram(samples, int(np.clip(np.sqrt(len(samples)), 8, 24)))
    width = float(edges[1] - edges[0])
    bars = go.Bar(
        x=(edges[1:] + edges[:-1]) / 2,
        y=100 * counts / len(samples),
        width=width,
        marker={"color": POSTERIOR, "opacity": 0.6, "line": {"width": 0}},
        name="posterior",
        hovertemplate=f"%{{x:.4g}} {figure_text(unit)}: %{{y:.3g}} %<extra></extra>",
    )
    return [bars], width


def _density(prior: Parameter, shown: tuple[float, float], bar: float) -> go.Scatter:
    """Return the prior as the share that a bar would have."""
    ends = np.array([end for end in prior.distribution.support if shown[0] < end < shown[1]])
    # so that an end of the prior is upright
    at = np.sort(
        np.concatenate([np.linspace(*shown, 241), ends, np.nextafter(ends, -np.inf), np.nextafter(ends, np.inf)])
    )
    with np.errstate(divide="ignore"):
        share = 100 * bar * np.exp(prior.distribution.log_prob(at))
    style = {"color": INK, "width": 1.5}
    return go.Scatter(x=at, y=share, mode="lines", line=style, name="prior", hovertemplate="prior<extra></extra>")


def _edge(bars: go.Bar, x: float) -> go.Scatter:
    return line([x, x], [0, float(np.max(bars.y))])


def _strip(ends: tuple[float, float], samples: Array) -> list[Any]:
    """Return the prior as a strip, and where the posterior lies in it."""
    place = {"xaxis": "x2", "yaxis": "y2", "mode": "lines", "hoverinfo": "skip"}
    inside = [float(samples.min()), float(samples.max())]
    least = 0.012 * (ends[1] - ends[0])
    if inside[1] - inside[0] < least:
        middle = sum(inside) / 2
        inside = [middle - least / 2, middle + least / 2]
    return [
        go.Scatter(x=list(ends), y=[0, 0], line={"color": "#dde3ea", "width": 8}, **place),
        go.Scatter(x=inside, y=[0, 0], line={"color": POSTERIOR, "width": 12}, **place),
    ]


def _strip_axes(ends: tuple[float, float]) -> dict[str, Any]:
    """Return the axes of the strip, with its ends written above it."""
    above = {"xref": "paper", "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False, "font": {"size": 11}}
    sides = zip(ends, (0, 1), ("left", "right"), strict=True)
    return {
        "xaxis2": {"range": list(ends), "anchor": "y2", "visible": False, "fixedrange": True},
        "yaxis2": {"domain": [0.86, 0.98], "anchor": "x2", "visible": False, "range": [-1, 1], "fixedrange": True},
        "annotations": [{**above, "x": x, "xanchor": side, "text": trimmed(end)} for end, x, side in sides],
        "margin": {"l": 8, "r": 12, "t": 20, "b": 8},
    }


def by_recording(posterior: Posterior) -> list[Panel]:
    """Draw the parameters of which every recording has its own: value and 90 % interval of each."""
    of = posterior.evidence.get("of_recordings") or {}
    return [_by_recording(posterior.prior[name], each) for name, each in of.items()]


def _by_recording(parameter: Parameter, each: Mapping[str, Mapping[str, Any]]) -> Panel:
    names, rows = list(each)[::-1], np.arange(len(each))
    values = np.array([each[n]["mean"] for n in names], float)
    low, high = np.array([each[n]["interval90"] for n in names], float).T
    spread = {
        "array": np.maximum(high - values, 0),
        "arrayminus": np.maximum(values - low, 0),
        "thickness": 2,
        "width": 4,
    }
    dots = go.Scatter(
        x=values,
        y=rows,
        mode="markers",
        marker={"color": POSTERIOR, "size": 9},
        error_x={**spread, "color": POSTERIOR},
        customdata=[figure_text(n, 60) for n in names],
        hovertemplate="%{customdata}: %{x:.4g}<extra></extra>",
    )
    x = axis(f"value [{figure_text(shown_unit(parameter.unit)) or 1}]", nticks=6)
    ticks = [figure_text(n, 22) for n in names]
    y = axis("recording", tickvals=rows, ticktext=ticks, range=[-0.6, len(names) - 0.4])
    caption = "Every recording has its own value: the most probable one, and its 90 % interval."
    return Panel(short(parameter.name), caption, draw([dots], x, y), 110 + 30 * max(len(names), 2))


def pairs(posterior: Posterior) -> Panel | None:
    """Draw samples of the most correlated parameters against one another; None where fewer than two have a spread."""
    varying = varied(posterior)
    if len(varying) < 2:
        return None
    table = np.asarray(np.corrcoef(posterior.samples[:, varying].T))
    rows = strongest(table, PAIRED)
    names = [posterior.names[i] for i in varying[rows]]
    samples = posterior.samples[:, varying[rows]]
    figure = _matrix(samples, table[np.ix_(rows, rows)], names, [shown_unit(posterior.prior[n].unit) for n in names])
    caption = (
        "Each dot is a sample of the posterior; the number is the correlation of all samples. Near 1 or -1, the "
        "recordings fix only a combination of the two."
    )
    if len(names) < len(varying):
        caption += f" The {len(names)} parameters with the strongest correlations, of {len(varying)}."
    return Panel("Pairs", caption, figure, 70 + 130 * len(names))


def _matrix(samples: Array, table: Array, names: list[str], units: list[str]) -> go.Figure:
    """Draw a matrix: dots below its diagonal, names on it, correlations above."""
    many = len(names)
    traces: list[Any] = []
    layout: dict[str, Any] = {}
    notes = []
    for r in range(many):
        for c in range(many):
            if r > c:
                number = str(len(traces) + 1) if traces else ""
                traces.append(_dots(samples[:DOTS, c], samples[:DOTS, r], number))
                layout |= _cell(samples, units, r, c, number)
            elif r == c:
                text = f"<b>{two_lines(names[r])}</b>"
                notes.append(_note(f"{text}<br>[{figure_text(units[r]) or 1}]", r, c, many, 12))
            else:
                notes.append(_note(f"{table[r, c]:.2f}", r, c, many, 12 + round(6 * abs(table[r, c]))))
    return draw(traces, layout.pop("xaxis"), layout.pop("yaxis"), annotations=notes, **layout)


def _dots(x: Array, y: Array, number: str) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=y,
        xaxis=f"x{number}",
        yaxis=f"y{number}",
        mode="markers",
        marker={"color": POSTERIOR, "size": 4, "opacity": 0.4},
        hovertemplate="%{x:.4g}, %{y:.4g}<extra></extra>",
    )


def _cell(samples: Array, units: list[str], r: int, c: int, number: str) -> dict[str, Any]:
    """Return the axes of a cell: ticks at the outer edges alone."""
    many = len(units)

    def one(k: int, title: bool, domain: list[float], anchor: str) -> dict[str, Any]:
        low, high = float(samples[:, k].min()), float(samples[:, k].max())
        edge = 0.08 * (high - low)
        values, labels = two_ticks(low, high)
        return axis(
            f"[{figure_text(units[k]) or 1}]" if title else "",
            domain=domain,
            anchor=anchor,
            range=[low - edge, high + edge],
            tickvals=values,
            ticktext=labels,
            showticklabels=title,
            ticks="outside" if title else "",
            tickangle=0,
            showline=True,
            mirror=True,
        )

    across, down = _domain(c, many), _domain(many - 1 - r, many)
    return {
        f"xaxis{number}": one(c, r == many - 1, across, f"y{number}"),
        f"yaxis{number}": one(r, c == 0, down, f"x{number}"),
    }


def two_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return two round numbers that span most of an interval, and how they are written: a small axis takes no more."""
    places = 1 - math.floor(math.log10(high - low))
    values = [round(low + share * (high - low), places) for share in (0.2, 0.8)]
    if -4 <= places <= 6:
        return values, [f"{v:.{max(places, 0)}f}" for v in values]
    return values, [digits(v) for v in values]


def _domain(k: int, many: int) -> list[float]:
    gap = 0.012
    size = (1 - gap * (many - 1)) / many
    return [k * (size + gap), k * (size + gap) + size]


def _note(text: str, r: int, c: int, many: int, size: int) -> dict[str, Any]:
    (left, right), (bottom, top) = _domain(c, many), _domain(many - 1 - r, many)
    at: dict[str, Any] = {"x": (left + right) / 2, "y": (bottom + top) / 2, "xref": "paper", "yref": "paper"}
    at |= {"xanchor": "center", "yanchor": "middle"}
    colour = INK if size > 14 or r == c else FAINT
    return {**at, "text": text, "showarrow": False, "font": {"size": size, "color": colour}}
