"""Figures of what a posterior predicts beside what was measured, and of what it leaves over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sim2real.report.figures import INK, NEUTRAL, Panel, axis, draw, line
from sim2real.report.notation import Look, digits, figure_text, look, percent, quantity
from sim2real.report.replay_evidence import ReplayEvidence

Array = NDArray[np.float64]
# Figures of windows that a page takes; joint positions that are drawn of a window; recordings whose spectra are.
FIGURES, JOINTS, SPECTRA = 48, 3, 6
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
PREDICTED, BAND = look("identified_simulator").colour, "rgba(0, 114, 178, 0.22)"
# Units that residuals are small in, and what they are written in instead.
SMALL = {"rad": "mrad", "m": "mm"}


@dataclass(frozen=True)
class ReplayedRecording:
    """The windows of one recording that are drawn, a panel each and joint."""

    name: str
    seconds: float
    panels: list[Panel]


def small(unit: str) -> tuple[str, float]:
    """Return the unit that residuals are written in, and how many of it are one of the unit."""
    return (SMALL[unit], 1e3) if unit in SMALL else (unit, 1.0)


def replayed(found: ReplayEvidence, noise: Array) -> list[ReplayedRecording]:
    """Draw what was measured and predicted in typical and in the worst windows; the worst recordings first.

    Args:
        found: in the replay.
        noise: (D,) standard deviation of each joint position; where there are many, those that fit worst are drawn.
    """
    misfit = np.median(found.error / noise, 0)
    joints = np.sort(np.argsort(-misfit, kind="stable")[:JOINTS])
    owners = list(dict.fromkeys(found.owner.tolist()))
    most = max(FIGURES // (max(int(np.bincount(found.owner).max()), 1) * len(joints)), 1)
    return [
        ReplayedRecording(
            str(found.recordings[owner]),
            float(found.seconds[owner]),
            [_window(found, int(n), int(d)) for d in joints for n in np.flatnonzero(found.owner == owner)],
        )
        for owner in owners[:most]
    ]


def _window(found: ReplayEvidence, n: int, d: int) -> Panel:
    """Draw one joint in one window: its motion above, what is left of it below."""
    kept = np.isfinite(found.offset[n])
    time = found.start[n] + found.offset[n, kept].astype(float)
    measured, mean, low, high = (
        x[n, kept, d].astype(float) for x in (found.measured, found.mean, found.low, found.high)
    )
    unit, joint = str(found.units[d]), str(found.channels[d])
    fine, scale = small(unit)
    traces = [
        *_curves(time, measured, mean, (low, high), unit, "y"),
        *_curves(time, scale * (measured - mean), np.zeros(len(time)), (scale * (low - mean), scale * (high - mean)),
                 fine, "y2"),
    ]  # fmt: skip
    x = axis("time [s]", anchor="y2", nticks=5)
    y = axis(f"position [{figure_text(unit)}]", domain=[0.44, 1], nticks=5)
    rest = axis(f"residual [{figure_text(fine)}]", domain=[0, 0.36], anchor="x", nticks=5)
    inside = float(((measured >= low) & (measured <= high)).mean())
    caption = (
        f"{time[0]:.2f} to {time[-1]:.2f} s: error {quantity(scale * float(found.error[n, d]), fine)} "
        f"(root mean square), {percent(inside)} of the readings within the band."
    )
    kind = "Typical" if found.typical[n] else "Worst"
    title = kind if len(found.channels) == 1 else f"{kind}, {joint}"
    return Panel(title, caption, draw(traces, x, y, yaxis2=rest), 320)


def _curves(
    time: Array, measured: Array, mean: Array, band: tuple[Array, Array], unit: str, where: str
) -> list[go.Scatter]:
    outline, edges = np.concatenate([time, time[::-1]]), np.concatenate([band[0], band[1][::-1]])
    fill = {"fill": "toself", "fillcolor": BAND, "line": {"width": 0}, "hoverinfo": "skip"}
    dots = {"color": INK, "size": 3.5, "opacity": 0.75}
    hover = f"%{{x:.4g}} s: %{{y:.4g}} {figure_text(unit)}"
    return [
        go.Scatter(x=outline, y=edges, mode="lines", yaxis=where, name="band", **fill),
        go.Scatter(
            x=time,
            y=mean,
            mode="lines",
            yaxis=where,
            line={"color": PREDICTED, "width": 1.5},
            name="predicted",
            hovertemplate=f"predicted, {hover}<extra></extra>",
        ),
        go.Scatter(
            x=time,
            y=measured,
            mode="markers",
            yaxis=where,
            marker=dots,
            name="measured",
            hovertemplate=f"measured, {hover}<extra></extra>",
        ),
    ]


def recording_errors(errors: Mapping[str, float], unit: str, apart: set[str]) -> Panel:
    """Draw the error of every recording.

    Args:
        errors: by recording.
        unit: of theirs.
        apart: recordings that stand out.
    """
    fine, scale = small(unit)
    names = sorted(errors, key=lambda n: errors[n])
    values = [scale * errors[n] for n in names]
    rows = np.arange(len(names))
    bars = go.Bar(
        x=values,
        y=rows,
        orientation="h",
        marker={"color": [COLOURS[1] if n in apart else NEUTRAL for n in names]},
        text=[digits(v) for v in values],
        textposition="outside",
        cliponaxis=False,
        customdata=[figure_text(n, 60) for n in names],
        hovertemplate=f"%{{customdata}}: %{{text}} {figure_text(fine)}<extra></extra>",
    )
    ends, caption = [-0.5, len(names) - 0.5], "Median absolute residual of a window, mean over the windows."
    usual = [line([float(np.median(values))] * 2, ends)] if len(names) > 1 else []
    if usual:
        caption = f"{caption[:-1]}; the dotted line is the median recording."
    if apart:
        caption += " Coloured: much worse than the others."
    x = axis(f"error [{figure_text(fine)}]", range=[0, 1.25 * max([*values, 1e-12])], nticks=6)
    y = axis("recording", tickvals=rows, ticktext=[figure_text(n, 22) for n in names], range=ends)
    figure = draw([bars, *usual], x, {**y, "showgrid": False}, bargap=0.35)
    return Panel("Error of each recording", caption, figure, 110 + 30 * max(len(names), 2))


def recording_looks(found: ReplayEvidence) -> dict[str, Look]:
    """Return how the recordings whose spectra are drawn appear."""
    names = [str(found.recordings[i]) for i in found.spectral]
    return {name: Look(name, colour, "square") for name, colour in zip(names, COLOURS, strict=False)}


def spectra(found: ReplayEvidence) -> list[Panel]:
    """Draw the spectrum of what is left of each joint position, a line a recording."""
    looks = recording_looks(found)
    panels = []
    for d, (joint, unit) in enumerate(zip(found.channels, found.units, strict=True)):
        fine, scale = small(str(unit))
        factor = scale**2
        traces = [
            trace
            for q, one in enumerate(looks.values())
            for trace in _spectrum(found.frequency[q], factor * found.power[q, :, d], factor * found.level[q, d], one)
        ]
        if not traces:
            continue
        x = axis("frequency [Hz]", type="log", dtick="D2")
        y = axis(f"power density [{figure_text(fine)}²/Hz]", **_decades([v for t in traces for v in t.y]))
        caption = (
            "Welch's method, a segment a window; the dotted level is that of white noise of the same variance. "
            "A line that lies above it at low frequencies is motion that the model does not describe."
        )
        panels.append(Panel(f"Spectrum of what is left, {joint}", caption, draw(traces, x, y), 360))
    return panels


def _decades(values: Sequence[float]) -> dict[str, Any]:
    """Return the settings of a logarithmic axis that shows a decade at least."""
    low, high = math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1
    middle, half = (low + high) / 2, max(high - low, 1.2) / 2
    every = "D2" if half < 1 else math.ceil(half / 3)
    return {"type": "log", "exponentformat": "power", "dtick": every, "range": [middle - half, middle + half]}


def _spectrum(frequency: Array, power: Array, level: float, one: Look) -> list[go.Scatter]:
    kept = np.isfinite(frequency) & np.isfinite(power) & (power > 0)
    if not kept.any():
        return []
    at = frequency[kept].astype(float)
    hover = f"{figure_text(one.label)}<br>%{{x:.3g}} Hz: %{{y:.3g}}<extra></extra>"
    style = {"color": one.colour, "width": 1.5}
    flat = {"color": one.colour, "width": 1, "dash": "dot"}
    return [
        go.Scatter(x=at, y=power[kept].astype(float), mode="lines", line=style, name=one.label, hovertemplate=hover),
        go.Scatter(x=[at[0], at[-1]], y=[level, level], mode="lines", line=flat, name=one.label, hoverinfo="skip"),
    ]
