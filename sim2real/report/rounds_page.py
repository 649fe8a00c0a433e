"""rounds.html: what rounds of control, recording and tuning brought, by seconds of the robot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sim2real.errors import ModelError
from sim2real.report.figures import Panel, axis, draw, line
from sim2real.report.notation import digits, look, percent
from sim2real.report.page import fill, write_page
from sim2real.run_directory import read_json

PAGE = "rounds.html"
# What is drawn against the seconds: its key, how it looks, and in words.
CURVES = (
    ("after", "after", "planning with the model of the round"),
    ("scratch", "recordings_model", "planning with a model of the recordings alone"),
    ("recorded", "before", "the robot itself while it was recorded, the fallback's share included"),
)


@dataclass(frozen=True)
class Row:
    """A round in the table."""

    number: str
    seconds: str
    share: str
    before: str
    after: str
    closeness: str
    reason: str


def write_rounds_report(directory: Path) -> Path:
    """Write rounds.html into the directory of rounds, in one piece.

    Args:
        directory: with rounds.json, as `sim2real dagger` leaves it.

    Returns:
        the path of the page.

    Raises:
        ModelError: rounds.json is missing, damaged, or of no rounds.
    """
    told = read_json(directory / "rounds.json")
    if not isinstance(told, dict) or not {"rounds", "curve", "returns", "measure"} <= told.keys():
        raise ModelError(f"{directory / 'rounds.json'} is not that of rounds; call `sim2real dagger` again")
    curve, returns, measure = told["curve"], told["returns"], told["measure"]
    shown = [(key, how, words) for key, how, words in CURVES if any(point.get(key) for point in curve)]
    text = fill(
        "rounds_template.html",
        name=directory.parent.name,
        verdict=verdict(curve, returns, measure),
        returns=Panel(measure.capitalize(), _caption(shown, returns), against_seconds(curve, shown, returns, measure)),
        errors=Panel(
            "CRPS of the episodes held out",
            "Light blue before each round, green after it, hollow where the gate refused; lower is better.",
            errors(told),
        ),
        rows=[_row(r, point) for r, point in zip(told["rounds"], curve, strict=True)],
        measure=measure,
        legend=[(how, words) for _, how, words in shown],
        look=look,
    )
    return write_page(directory / PAGE, text)


def verdict(curve: Sequence[Mapping[str, Any]], returns: Mapping[str, float], measure: str) -> str:
    """Return what the rounds brought, in a sentence."""
    spent = digits(curve[-1]["seconds"]) if curve else "0"
    if returns:
        before, after = digits(returns["before"]), digits(returns["after"])
        return f"With {spent} s of the robot, mean {measure} went from {before} to {after}."
    first, last = (digits(float(np.mean(p["recorded"]))) for p in (curve[0], curve[-1])) if curve else ("-", "-")
    return f"In {spent} s of the robot, mean {measure} while it was recorded went from {first} to {last}."


def against_seconds(
    curve: Sequence[Mapping[str, Any]],
    shown: Sequence[tuple[str, str, str]],
    returns: Mapping[str, float],
    measure: str,
) -> go.Figure:
    """Draw returns against seconds of the robot: a line through means, a dot for every start or episode."""
    traces: list[Any] = []
    most = max((float(p["seconds"]) for p in curve), default=1.0)
    for key, how, words in shown:
        points = [(float(p["seconds"]), p[key]) for p in curve if p.get(key)]
        mean = [float(np.mean(each)) for _, each in points]
        at = [seconds for seconds, _ in points]
        if key != "recorded" and returns:
            at, mean = [0.0, *at], [returns["before"] if key == "after" else returns["fallback"], *mean]
        style = {"color": look(how).colour, "width": 2, "dash": "dot" if key == "recorded" else "solid"}
        marker = {"color": look(how).colour, "symbol": look(how).symbol, "size": 9}
        hover = f"{words}<br>%{{x:.3g}} s: %{{y:.3g}}<extra></extra>"
        traces.append(go.Scatter(x=at, y=mean, mode="lines+markers", line=style, marker=marker, hovertemplate=hover))
        every = [(s, v) for s, each in points for v in each]
        small = {"color": look(how).colour, "size": 4, "opacity": 0.5}
        traces.append(
            go.Scatter(x=[s for s, _ in every], y=[v for _, v in every], mode="markers", marker=small, hoverinfo="skip")
        )
    if returns:
        traces.append(line([0.0, most], [returns["fallback"]] * 2))
    x = axis("time of the robot [s]", rangemode="tozero", nticks=7)
    return draw(traces, x, axis(f"mean {measure} [1]", range=[0, 1.04]))


def _caption(shown: Sequence[tuple[str, str, str]], returns: Mapping[str, float]) -> str:
    dots = "Lines go through means; small dots are single starts or episodes."
    return f"{dots} The dotted line is the fallback alone." if returns else dots


def errors(told: Mapping[str, Any]) -> go.Figure:
    """Draw the CRPS of each round before and after; hollow where the gate refused."""
    rounds, curve = told["rounds"], told["curve"]
    seconds = [float(p["seconds"]) for p in curve]
    traces = []
    for key, how in (("before", "pretrained_model"), ("after", "finetuned_model")):
        symbols = [look(how).symbol + ("" if r["accepted"] or key == "before" else "-open") for r in rounds]
        marker = {"color": look(how).colour, "symbol": symbols, "size": 9}
        traces.append(
            go.Scatter(
                x=seconds,
                y=[r[key] for r in rounds],
                mode="lines+markers",
                line={"color": look(how).colour, "width": 2},
                marker=marker,
                hovertemplate=f"{key}<br>%{{x:.3g}} s: %{{y:.3g}}<extra></extra>",
            )
        )
    x = axis("time of the robot [s]", rangemode="tozero", nticks=7)
    return draw(traces, x, axis("CRPS [rad or m]", rangemode="tozero"))


def _row(r: Mapping[str, Any], point: Mapping[str, Any]) -> Row:
    each = point.get("after") or point["recorded"]
    return Row(
        str(r["number"]),
        digits(point["seconds"]),
        percent(r["share"]),
        digits(r["before"]),
        digits(r["after"]),
        digits(float(np.mean(each))) if each else "-",
        r["reason"],
    )
