"""The findings as one HTML file: readable offline, figures drawn as SVG, what comes from outside escaped."""

from __future__ import annotations

from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from markupsafe import Markup, escape

from sim2real.episodes import Array
from sim2real.logs.lint.findings import Finding

if TYPE_CHECKING:
    from sim2real.logs.lint.report import LintReport

SHOWN = 12  # findings of a kind that are listed
POINTS = 600  # of a curve
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 220, 58, 34, 12, 12
COLOURS = ("var(--first)", "var(--second)")


def write_page(report: LintReport) -> str:
    """Return the page."""
    folder = files("sim2real.logs.lint")
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = env.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    groups = report.groups()
    return template.render(
        style=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        summary=report.summary(),
        total=len(report.recordings),
        groups=[
            {
                "first": group[0],
                "names": list(dict.fromkeys(f.recording for f in group)),
                "shown": group[:SHOWN],
                "more": max(0, len(group) - SHOWN),
                "figure": next((figure(f) for f in group if f.curves), ""),
                "drawn": next((f for f in group if f.curves), None),
            }
            for group in groups
        ],
    )


def figure(finding: Finding) -> Markup:
    """Return the curves of a finding as SVG: over time, with the two axes named."""
    curves = {name: thinned(*xy) for name, xy in finding.curves.items()}
    x = np.concatenate([c[0] for c in curves.values()])
    y = np.concatenate([c[1] for c in curves.values()])
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    if not len(x) or not len(y):
        return Markup("")
    (x0, x1), (y0, y1) = _span(x), _span(y)

    def at(px: Array, py: Array) -> str:
        sx = LEFT + (px - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        sy = HEIGHT - BOTTOM - (py - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(sx, sy, strict=True) if np.isfinite(b))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">']
    for value in _ticks(y0, y1):
        level = float(at(np.array([x0]), np.array([value])).split(",")[1])
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(x0, x1):
        place = float(at(np.array([value]), np.array([y0])).split(",")[0])
        parts.append(f'<text class="tick" x="{place:.1f}" y="{HEIGHT - 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">time [s]</text>')
    for colour, (cx, cy) in zip(COLOURS, curves.values(), strict=False):
        parts.append(f'<polyline style="stroke: {colour}" points="{at(cx, cy)}"/>')
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background: {colour}"></i>{escape(_label(name))}</span>'
        for colour, name in zip(COLOURS, curves, strict=False)
    )
    return Markup("".join(parts) + f'<p class="legend">{legend}</p>')


def thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """Return a curve of fewer points that keeps the least and the greatest value of every piece."""
    if len(x) <= 2 * POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)
    pieces = [(a, y[a:b]) for a, b in pairwise(edges) if np.isfinite(y[a:b]).any()]
    keep = np.unique([a + int(find(part)) for a, part in pieces for find in (np.nanargmin, np.nanargmax)])
    return x[keep], y[keep]


def _label(name: str) -> str:
    return name.removesuffix(" over time [s]")


def _span(values: Array) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = 0.04 * (high - low) or 1.0
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** np.floor(np.log10((high - low) / 3))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) < 6)
    return [float(f"{k * step:.6g}") for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
