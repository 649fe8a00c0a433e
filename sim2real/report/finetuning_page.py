"""finetuning.html: what held-out recordings say of a model before and after it was fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import yaml

from sim2real.episodes import Array
from sim2real.finetuning import Shown
from sim2real.report.figures import INK, Panel, axis, draw
from sim2real.report.notation import digits, figure_text, look, percent
from sim2real.report.page import fill, write_page
from sim2real.run_directory import read_json

PAGE = "finetuning.html"
# What the two models look like.
MODELS = ("pretrained_model", "finetuned_model")
# Windows and joints that are drawn.
WINDOWS, JOINTS = 8, 3


@dataclass(frozen=True)
class Row:
    """A horizon of the table: seconds ahead, CRPS before and after, and what became of it."""

    horizon: str
    before: str
    after: str
    change: str


def write_finetuning_report(run_directory: Path) -> Path:
    """Write finetuning.html into a run directory, in one piece.

    Args:
        run_directory: with stages/finetune.json, and model/finetuning.npz and recipe.yaml where the run has them.

    Returns:
        the path of the page.

    Raises:
        ModelError: the stage has not finished, or its file is damaged.
    """
    told = read_json(run_directory / "stages" / "finetune.json")["result"]
    path, recipe_file = run_directory / "model" / "finetuning.npz", run_directory / "recipe.yaml"
    shown = Shown.load(path) if path.is_file() else None
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8")) if recipe_file.is_file() else {}
    text = fill(
        "finetuning_template.html",
        name=str(recipe.get("name") or run_directory.name),
        accepted=told["accepted"],
        reason=told["reason"],
        method=told["method"],
        rows=[_row(h, told["crps"]) for h in told["crps"]["before"]],
        scores=Panel("CRPS against the horizon", "Lower is better.", crps_by_horizon(told["crps"])),
        tried=[(name, digits(error)) for name, error in sorted(told["tried"].items(), key=lambda item: item[1])],
        forgetting={k: digits(v) for k, v in told["forgetting"].items()},
        windows=windows(shown) if shown else [],
        models=MODELS,
        look=look,
    )
    return write_page(run_directory / PAGE, text)


def _row(horizon: str, crps: Mapping[str, Mapping[str, float]]) -> Row:
    before, after = crps["before"][horizon], crps["after"][horizon]
    return Row(horizon, digits(before), digits(after), f"{100 * (after / before - 1):+.0f} %")


def crps_by_horizon(crps: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Draw the CRPS of both models against the horizon, both axes logarithmic."""
    ticks = list(crps["before"])
    traces = [
        go.Scatter(
            x=[float(h) for h in ticks],
            y=[crps[when][h] for h in ticks],
            mode="lines+markers",
            name=name,
            line={"color": look(name).colour, "width": 2},
            marker={"color": look(name).colour, "symbol": look(name).symbol, "size": 9},
            hovertemplate=f"{figure_text(look(name).label)}<br>%{{x}} s: %{{y:.3g}}<extra></extra>",
        )
        for name, when in zip(MODELS, ("before", "after"), strict=True)
    ]
    x = axis("horizon [s]", type="log", tickvals=[float(h) for h in ticks], ticktext=ticks)
    return draw(traces, x, axis("CRPS [rad or m]", type="log", dtick="D2", tickformat="~g"))


def windows(shown: Shown) -> list[Panel]:
    """Draw what was measured, and foretold by both models: of each recording a typical window, and the worst."""
    joints = shown.measured.shape[2]
    apart = np.square(shown.before[0] - shown.measured).mean((0, 1)) / shown.measured.var((0, 1)).clip(1e-12)
    some = np.sort(np.argsort(-apart, kind="stable")[:JOINTS])
    return [
        _window(shown, n, int(d), f", joint {d + 1}" if joints > 1 else "")
        for n in range(min(len(shown.start), WINDOWS))
        for d in some
    ]


def _window(shown: Shown, n: int, d: int, joint: str) -> Panel:
    time = shown.start[n] + shown.ahead
    traces: list[Any] = []
    inside = []
    for name, (mean, low, high) in zip(MODELS, (shown.before[:, n, :, d], shown.after[:, n, :, d]), strict=True):
        colour = look(name).colour
        outline, edges = np.concatenate([time, time[::-1]]), np.concatenate([low, high[::-1]])
        band = {"fill": "toself", "fillcolor": colour, "opacity": 0.18, "line": {"width": 0}, "hoverinfo": "skip"}
        traces.append(go.Scatter(x=outline, y=edges, mode="lines", name=name, **band))
        line = {"color": colour, "width": 2}
        traces.append(go.Scatter(x=time, y=mean, mode="lines", name=name, line=line, hovertemplate=_hover(name)))
        inside.append(percent(_within(shown.measured[n, :, d], low, high)))
    dots = {"color": INK, "size": 4}
    traces.append(
        go.Scatter(
            x=time, y=shown.measured[n, :, d], mode="markers", marker=dots, hovertemplate="%{y:.4g}<extra></extra>"
        )
    )
    caption = f"Of the readings (dots) {inside[0]} lie within the 90 % band before, {inside[1]} after."
    title = f"{shown.recording[n]}, {'typical' if n % 2 == 0 else 'worst'} second{joint}"
    return Panel(title, caption, draw(traces, axis("time [s]", nticks=5), axis("position [rad or m]", nticks=5)), 280)


def _within(measured: Array, low: Array, high: Array) -> float:
    return float(((measured >= low) & (measured <= high)).mean())


def _hover(name: str) -> str:
    return f"{figure_text(look(name).label)}, %{{x:.4g}} s: %{{y:.4g}}<extra></extra>"
