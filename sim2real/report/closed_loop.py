"""Figures of the closed loop: what each controller did with the same robots from the same starts."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sim2real.errors import ModelError
from sim2real.report.figures import Panel, axis, draw, line
from sim2real.report.notation import digits, figure_text, look

ORDER = ("fallback", "before", "after", "oracle")
MEANING = {
    "fallback": "the fallback alone, no plan",
    "before": "plans with a world model of the nominal simulator",
    "after": "plans with this run's world model",
    "oracle": "plans with a world model of the true parameters",
}
# Samples of a curve that are drawn; a screen shows no more.
POINTS = 300


@dataclass(frozen=True)
class Trajectories:
    """What closed_loop.npz holds.

    Attributes:
        time: (T + 1,) [s].
        positions: controller -> (n, T + 1, D) positions of the joints [rad or m].
        milliseconds: controller -> (T,) time from reading to command [ms].
    """

    time: NDArray[np.float64]
    positions: dict[str, NDArray[np.float64]]
    milliseconds: dict[str, NDArray[np.float64]]

    @classmethod
    def load(cls, path: Path) -> Trajectories:
        """Read closed_loop.npz.

        Raises:
            ModelError: it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                names = ordered([k.removesuffix(".states") for k in file if k.endswith(".states")])
                return cls(
                    file["time"],
                    {n: file[f"{n}.states"][:, :, : file[f"{n}.states"].shape[2] // 2] for n in names},
                    {n: file[f"{n}.milliseconds"] for n in names},
                )
        except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
            raise ModelError(f"{path} is damaged ({error}); remove {path.parent} and run again") from None


def ordered(names: Sequence[str]) -> list[str]:
    """Return controllers in the order in which they are read."""
    return sorted(names, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))


@dataclass(frozen=True)
class Drawn:
    """What is drawn of a closed loop.

    Attributes:
        joint: its number.
        name: of the joint.
        target: where it should be [rad or m]; None where that cannot be said of one joint.
        turns: whether it is there after every turn, too.
        slides: whether its position is a length.
    """

    joint: int = 0
    name: str = "the first joint"
    target: float | None = math.pi
    turns: bool = True
    slides: bool = False


def motion(found: Trajectories, drawn: Drawn) -> list[Panel]:
    """Draw a joint's position of every start against time, one panel a controller, all on the same scale."""
    every = max(1, len(found.time) // POINTS)
    time = found.time[::every].round(4)
    curves = {name: p[:, :, drawn.joint] for name, p in found.positions.items()}
    everything = np.concatenate([a.ravel() for a in curves.values()])
    span, ticks = (_lengths if drawn.slides else _angles)(everything)
    unit = "m" if drawn.slides else "rad"
    panels = []
    for name, angle in curves.items():
        each = [
            go.Scatter(
                x=time,
                y=row[::every].round(3),
                mode="lines",
                line={"color": look(name).colour, "width": 1},
                opacity=0.7,
                hovertemplate=f"start {i + 1}, %{{x:.3g}} s: %{{y:.3g}} {unit}<extra></extra>",
            )
            for i, row in enumerate(angle)
        ]
        targets = [line([float(time[0]), float(time[-1])], [at] * 2) for at in _targets(drawn, everything)]
        what = "position" if drawn.slides else "angle"
        y = axis(f"{what} of {figure_text(drawn.name)} [{unit}]", range=span, **ticks)
        figure = draw([*targets, *each], axis("time [s]", nticks=7), y)
        label = look(name).label
        panels.append(Panel(label, f"{MEANING.get(name, label)}.".capitalize(), figure, 260))
    return panels


def _targets(drawn: Drawn, everything: NDArray[np.float64]) -> list[float]:
    if drawn.target is None:
        return []
    if not drawn.turns:
        return [drawn.target]
    first = math.ceil((everything.min() - 0.3 - drawn.target) / (2 * math.pi))
    last = math.floor((everything.max() + 0.3 - drawn.target) / (2 * math.pi))
    return [drawn.target + 2 * math.pi * k for k in range(first, last + 1)]


def _lengths(everything: NDArray[np.float64]) -> tuple[list[float], dict[str, Any]]:
    margin = 0.05 * max(float(np.ptp(everything)), 1e-6)
    return [float(everything.min()) - margin, float(everything.max()) + margin], {"nticks": 6}


def _angles(everything: NDArray[np.float64]) -> tuple[list[float], dict[str, Any]]:
    low, high = float(min(everything.min(), -math.pi)) - 0.4, float(max(everything.max(), math.pi)) + 0.4
    step = max(1, math.ceil((high - low) / math.pi / 6))
    ticks = [k for k in range(math.ceil(low / math.pi), math.floor(high / math.pi) + 1) if k % step == 0]
    return [low, high], {"tickvals": [k * math.pi for k in ticks], "ticktext": [_multiple_of_pi(k) for k in ticks]}


def _multiple_of_pi(k: int) -> str:
    return "0" if k == 0 else f"{'−' if k < 0 else ''}{abs(k) if abs(k) > 1 else ''}π"


def scores(each: Mapping[str, Sequence[float]], measure: str) -> Panel:
    """Draw the mean score of each controller as a bar, and every start as a dot."""
    names = ordered(list(each))
    labels = [figure_text(look(n).label) for n in names]
    bars = go.Bar(
        x=list(range(len(names))),
        y=[float(np.mean(each[n])) for n in names],
        marker={"color": [look(n).colour for n in names], "opacity": 0.55},
        hovertemplate="mean %{y:.3g}<extra></extra>",
    )
    dots = [
        go.Scatter(
            x=k + np.linspace(-0.22, 0.22, max(len(each[n]), 2))[: len(each[n])],
            y=list(each[n]),
            mode="markers",
            marker={"color": look(n).colour, "size": 6, "line": {"color": "white", "width": 1}},
            hovertemplate="%{y:.3g}<extra></extra>",
        )
        for k, n in enumerate(names)
    ]
    x = axis("controller", tickvals=list(range(len(names))), ticktext=labels, showgrid=False)
    figure = draw([bars, *dots], x, axis(f"mean {measure} [1]", range=[0, 1.04]), bargap=0.4)
    away = "opposite to it" if measure == "uprightness" else "far away"
    caption = (
        f"1 is at the target and 0 {away}, averaged over the whole run, the way there included. The bar is the mean "
        "over starts, each dot is one start."
    )
    return Panel(measure.capitalize(), caption, figure)


@dataclass(frozen=True)
class InTime:
    """What loop/clock.npz holds of a loop in real time, as `Timing` has it.

    Attributes:
        times: (T + 1,) of the readings [s].
        readings: (T + 1, D) positions [rad or m].
        milliseconds: (T,) from reading to command [ms].
    """

    times: NDArray[np.float64]
    readings: NDArray[np.float64]
    milliseconds: NDArray[np.float64]

    @classmethod
    def load(cls, path: Path) -> InTime:
        """Read clock.npz.

        Raises:
            ModelError: it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["times"], file["readings"], file["milliseconds"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ModelError(f"{path} is damaged ({error}); remove {path.parent.parent} and run again") from None


def clock(told: Mapping[str, Any], found: InTime) -> Panel:
    """Draw by how much each period of the loop in real time was too long, in the order in which they came."""
    times, milliseconds = found.times, found.milliseconds
    period = 1e3 * float(np.median(np.diff(times)))
    curves = [
        go.Scatter(
            x=times[:-1].round(4),
            y=values.round(3),
            mode="markers",
            name=name,
            marker={"color": colour, "size": 4},
            hovertemplate=f"{name}, %{{x:.3g}} s: %{{y:.3g}} ms<extra></extra>",
        )
        for name, values, colour in (
            ("period", 1e3 * np.diff(times), look("oracle").colour),
            ("reading to command", milliseconds, look("after").colour),
        )
    ]
    figure = draw(curves, axis("time [s]", nticks=7), axis("time taken [ms]", rangemode="tozero"))
    caption = (
        "Black, each period; green, from reading to command. One robot by the clock, the planner in a process of its "
        f"own: {told['periods']} periods of {digits(period)} ms, {told['missed']} of them late by a tenth or more; 99 "
        f"% within {digits(told['jitter_ms_p99'])} ms. Command {digits(told['command_ms_p50'])} ms after the reading, "
        f"99 % within {digits(told['command_ms_p99'])} ms. A plan before was followed {told['followed']} times. Mean "
        f"closeness to the goal {digits(told['closeness'])}."
    )
    return Panel("In real time", caption, figure)


def planning_time(found: Trajectories) -> Panel | None:
    """Draw how often planning took how long; None where nothing was planned."""
    if "after" not in found.milliseconds:
        return None
    milliseconds = found.milliseconds["after"]
    period = 1e3 * float(np.median(np.diff(found.time)))
    starts = len(found.positions["after"])
    counts, edges = np.histogram(milliseconds, bins=30)
    bars = go.Bar(
        x=0.5 * (edges[1:] + edges[:-1]),
        y=counts,
        width=np.diff(edges),
        marker={"color": look("after").colour, "line": {"color": "white", "width": 0.5}},
        hovertemplate="%{x:.3g} ms: %{y} steps<extra></extra>",
    )
    figure = draw([bars], axis("planning time [ms]", nticks=7), axis("control steps [1]"), bargap=0)
    middle, late = np.quantile(milliseconds, [0.5, 0.99])
    caption = (
        f"Time from reading to command with this run's world model: median {digits(float(middle))} ms, 99 % of steps "
        f"within {digits(float(late))} ms, for {starts} robots planned together; control period {digits(period)} ms."
    )
    return Panel("Planning time", caption, figure)
