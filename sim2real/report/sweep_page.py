"""sweep.html: what a sweep tried, what came of it, which keys mattered, and whether other seeds agree."""

from __future__ import annotations

import inspect
import math
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sim2real.errors import ModelError
from sim2real.report.figures import Panel, axis, draw
from sim2real.report.notation import change, digits, figure_text, look, percent, resolving, trimmed
from sim2real.report.page import fill, write_page
from sim2real.run_directory import read_json

PAGE = "sweep.html"
COLUMNS = ("trial", "score", "status", "share", "seconds")
# The best scores are dark, the worst light; trials that were stopped early are grey, those that failed red.
DARK, LIGHT, PALE, RED = (8, 48, 107), (158, 202, 225), "#bcc5d0", "#b3261e"
DOT = "#2f6fab"
# How far outside of its range, relative to its width, a value is drawn that lies anywhere outside.
OUTSIDE = 0.035
# Finished trials without which importance would be noise, and shuffles that say how much of it is.
ENOUGH, SHUFFLES = 10, 40
# Failed trials with one reason that are listed.
LISTED = 20


@dataclass(frozen=True)
class Scale:
    """Places numbers between 0 and 1; what lies outside is drawn just outside."""

    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False

    def place(self, value: float) -> float | None:
        """Return where a value lies; None where it is not a number."""
        if math.isnan(value):
            return None
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else -1.0
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, -OUTSIDE), 1 + OUTSIDE)

    def value(self, place: float) -> float:
        """Return the value at a place."""
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** place)
        return self.low + place * (self.high - self.low)

    def drawn(self, value: float) -> float | None:
        """Return a value, moved to the edge of its axis where it lies outside."""
        place = self.place(value)
        if place is None or abs(place - 0.5) < 0.5 + OUTSIDE:
            return None if place is None else value
        return self.value(place)

    def ticks(self) -> list[tuple[float, str]]:
        """Return places with their numbers, both ends among them."""
        values = [self.value(k / 4) for k in range(5)]
        if self.whole:  # each has a place of its own between the halves at both ends
            low, high = round(self.low + 0.5), round(self.high - 0.5)
            values = [
                float(v) for v in (range(low, high + 1) if high - low < 10 else np.linspace(low, high, 5).round())
            ]
        return [(self.place(v) or 0.0, f"{v:.3g}".replace("e-0", "e-") if abs(v) < 1e3 else trimmed(v)) for v in values]

    def axis(self, title: str, **settings: Any) -> dict[str, Any]:
        """Return an axis of plotly over this range."""
        ends = [self.value(-2 * OUTSIDE), self.value(1 + 2 * OUTSIDE)]
        if not self.logarithmic:
            ticks: Any = {"tick0": 0, "dtick": 1} if self.whole and self.high - self.low < 10 else {"nticks": 5}
            return axis(title, **{"range": ends, **ticks, **settings})
        decades = math.log10(self.high / self.low)
        # D2: twos and fives as well, D1: all digits
        ticks = {"dtick": math.ceil(decades / 5) if decades >= 2 else "D2" if decades >= 0.5 else "D1"}
        logs = [math.log10(v) for v in ends]
        return axis(title, **{"type": "log", "range": logs, "tickformat": "~g", **ticks, **settings})


@dataclass(frozen=True)
class Key:
    """A swept key: its values, a row a trial, and where they are drawn.

    Attributes:
        name: dotted.
        notation: of its range.
        values: in words, as written in tables.
        options: those of a choice that were tried, in the order of the notation; none for numbers.
        numbers: of the values; empty for a choice.
        scale: of the numbers; of a choice, a place for each option.
    """

    name: str
    notation: str
    values: tuple[str, ...]
    options: tuple[str, ...]
    numbers: tuple[float, ...]
    scale: Scale

    @classmethod
    def of(cls, name: str, notation: str, column: Sequence[Any]) -> Key:
        """Read a key from its range and its column of the results."""
        kind, _, inside = notation.strip().partition("(")
        values = tuple(_told(v) for v in column)
        if kind == "choice" or not all(v is None or isinstance(v, int | float) for v in column):
            place = {v: inside.find(v) if v in inside else len(inside) for v in values}
            options = tuple(sorted(place, key=lambda v: (place[v], v)))
            return cls(name, notation, values, options, (), Scale(-0.5, len(options) - 0.5))
        numbers = tuple(math.nan if v is None else float(v) for v in column)
        try:
            low, high = (float(end) for end in inside.rstrip(") ").split(","))
        except ValueError:
            seen = [v for v in numbers if math.isfinite(v)] or [0.0]
            low, high = min(seen), max(seen)
        low, high = (low, high) if low < high and kind != "int" else (low - 0.5, high + 0.5)
        return cls(name, notation, values, (), numbers, Scale(low, high, kind == "LogU" and low > 0, kind == "int"))

    def number(self, row: int) -> float:
        """Return the value of a row, or the number of its option."""
        return float(self.options.index(self.values[row])) if self.options else self.numbers[row]

    def place(self, row: int, spread: float = 0.0) -> float | None:
        """Return where the value of a row lies, moved a little so that equal ones can be told apart."""
        place = self.scale.place(self.number(row))
        if place is None or not (self.options or self.scale.whole):
            return place
        return place + 0.35 * spread / (self.scale.high - self.scale.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return places and what is written there."""
        if not self.options:
            return self.scale.ticks()
        width = max(6, 110 // len(self.options))
        return [(self.scale.place(k) or 0.0, figure_text(o, width)) for k, o in enumerate(self.options)]

    def at_end(self, row: int) -> bool:
        """Return whether a value lies so near an end of its range that a wider one may hold a better value."""
        width, place = self.scale.high - self.scale.low, None if self.options else self.scale.place(self.numbers[row])
        if place is None or (self.scale.whole and width < 4):
            return False
        near = 0.51 / width if self.scale.whole else 0.02
        return not near < place < 1 - near


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep; row 0 is the recipe as it was.

    Attributes:
        keys: that were swept.
        trial, score, status, share, seconds: columns of the results.
        told: sweep.json.
    """

    keys: tuple[Key, ...]
    trial: tuple[int, ...]
    score: tuple[float, ...]
    status: tuple[str, ...]
    share: tuple[float, ...]
    seconds: tuple[float, ...]
    told: Mapping[str, Any]

    @property
    def less(self) -> bool:
        """Whether less is better."""
        return bool(self.told["better"] != "more")

    def rows(self, status: str, *, scored: bool = True) -> list[int]:
        """Return the rows of trials, the unswept recipe left out, whose status begins so."""
        found = [i for i in range(1, len(self.status)) if self.status[i].startswith(status)]
        return [i for i in found if math.isfinite(self.score[i])] if scored else found

    @cached_property
    def best(self) -> int:
        """The first row of the best score; the unswept recipe where nothing is better."""
        compared = [i for i in (0, *self.rows("finished")) if math.isfinite(self.score[i])]
        return min(compared, key=lambda i: self.score[i] if self.less else -self.score[i], default=0)

    @cached_property
    def scale(self) -> Scale:
        """The scale of scores: logarithmic where they differ much, and not stretched by a few that are far worse."""
        seen = [self.score[i] for i in (0, *self.rows("finished"), *self.rows("stopped"))]
        scores = np.array([s for s in seen if math.isfinite(s)] or [0.0])
        logarithmic = bool(scores.min() > 0 and scores.max() > 10 * scores.min())
        scores = np.log(scores) if logarithmic else scores
        low, high = float(scores.min()), float(scores.max())
        if len(scores) >= 8:
            first, third = np.quantile(scores, [0.25, 0.75])
            far = 3 * float(third - first)
            if far > 0:
                low, high = (low, min(high, third + far)) if self.less else (max(low, first - far), high)
        low, high = (
            (float(low), float(high)) if low < high else (low - 0.1 * (abs(low) or 1), low + 0.1 * (abs(low) or 1))
        )
        return Scale(math.exp(low), math.exp(high), True) if logarithmic else Scale(low, high)


def write_sweep_report(directory: Path) -> Path:
    """Write sweep.html into the directory of a sweep, in one piece.

    Args:
        directory: with results.parquet and sweep.json, as `sim2real sweep` leaves it.

    Returns:
        the path of the page.

    Raises:
        ModelError: a file of it is missing, damaged, or not that of a sweep.
    """
    found = read_sweep(directory)
    weights = importance(found)
    ranked = found.keys if isinstance(weights, str) else sorted(found.keys, key=lambda k: -weights[k.name][0])
    drawn = bool(found.rows("finished") or found.rows("stopped"))
    text = fill(
        "sweep.html",
        name=directory.resolve().name.rpartition("-sweep-")[0] or directory.resolve().name,
        verdict=verdict(found),
        measure=found.told["measure"],
        better="less" if found.less else "more",
        objective=found.told["objective"],
        strip=_strip(found),
        best_differs=found.best != 0,
        values=_values(found),
        parallel=_parallel(found) if drawn else None,
        history=_history(found) if drawn else None,
        slices=[_slice(found, key) for key in ranked] if drawn else [],
        outside=_outside(found),
        importance=weights if isinstance(weights, str) else _importance(found, weights),
        seeds=_seeds(found) if found.told["confirmed"] else None,
        failed=_failed(found),
        keys=[key.name for key in found.keys],
        colours={"dot": DOT, "pale": PALE, "red": RED, "dark": _mix(0.0), "light": _mix(1.0)},
        look=look,
    )
    return write_page(directory / PAGE, text)


def read_sweep(directory: Path) -> Sweep:
    """Read results.parquet and sweep.json.

    Raises:
        ModelError: one of them is missing, damaged, or not that of a sweep.
    """
    import pyarrow as pa
    from pyarrow import parquet

    told, path = read_json(directory / "sweep.json"), directory / "results.parquet"
    needed = {"objective", "measure", "better", "keys", "trials", "concurrent", "wall_seconds", "busy_fraction"}
    if not isinstance(told, dict) or not {*needed, "confirmed"} <= told.keys():
        raise ModelError(f"{directory / 'sweep.json'} is not that of a sweep; call `sim2real sweep` again")
    try:
        table = parquet.read_table(path).to_pydict()
    except (OSError, pa.ArrowInvalid) as error:
        raise ModelError(f"{path} cannot be read ({error}); call `sim2real sweep` again") from None
    missing = [name for name in (*COLUMNS, *told["keys"]) if name not in table]
    if missing or not table["trial"]:
        what = f"has no column {', '.join(missing)}" if missing else "has no row"
        raise ModelError(f"{path} {what}; call `sim2real sweep` again")
    keys = tuple(Key.of(name, notation, table[name]) for name, notation in told["keys"].items())
    score, share, seconds = (tuple(_number(v) for v in table[name]) for name in ("score", "share", "seconds"))
    return Sweep(keys, tuple(table["trial"]), score, tuple(map(str, table["status"])), share, seconds, told)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _told(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count(many: int, what: str) -> str:
    return f"{many:,} {what}" + ("" if many == 1 else "s")


def _gain(before: float, now: float) -> str:
    """Say how a score changed, by a ratio where there is one."""
    told = change(before, now)
    if told != "not comparable" or not (math.isfinite(before) and math.isfinite(now)):
        return told
    return f"{digits(abs(now - before))} {'less' if now < before else 'more'}" if now != before else "unchanged"


def _two_lines(key: str) -> str:
    """Write a key on two lines where it is long, for keys often differ in their middle alone."""
    head, dot, tail = key.rpartition(".")
    parts = [key] if len(key) <= 30 else [head + dot, tail]
    return "<br>".join(figure_text(part, 34) for part in parts if part)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _pair(found: Sweep) -> tuple[str, str]:
    """Return the unswept and the best score with digits that tell them apart."""
    unswept, best = found.score[0], found.score[found.best]
    many = resolving(*sorted((unswept, best)))
    return digits(unswept, many), digits(best, many)


def verdict(found: Sweep) -> str:
    """Return what the sweep found, in a sentence."""
    trials, (unswept, best) = len(found.trial) - 1, _pair(found)
    failed = len(found.rows("failed", scored=False))
    if not trials:
        return f"No trial was run; the recipe as it was scores {unswept}."
    if failed == trials:
        which = "The only trial" if trials == 1 else f"All {trials:,} trials"
        return f"{which} failed; the recipe as it was scores {unswept}."
    if found.best == 0:
        none = "The only trial was not" if trials == 1 else f"None of {trials:,} trials was"
        return f"{none} better than the recipe as it was, which scores {unswept}."
    if not math.isfinite(found.score[0]):
        return f"The best of {_count(trials, 'trial')} scores {best}; the recipe as it was has no score."
    return (
        f"The best of {_count(trials, 'trial')} scores {best}, the recipe as it was {unswept}: "
        f"{_gain(found.score[0], found.score[found.best])}."
    )


def _duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "–"
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{digits(seconds / size, 2 if seconds < 10 * size else 3)} {unit}"
    return f"{digits(seconds, 2)} s"


def _strip(found: Sweep) -> list[tuple[str, str, str]]:
    """Return the key figures: what it is, the figure, and a detail."""
    unswept, best = _pair(found)
    finished, stopped, failed = (found.rows(s, scored=False) for s in ("finished", "stopped", "failed"))
    without = len(finished) - len(found.rows("finished"))
    scored = "scored in full" + (f"; {without:,} without a finite score" if without else "")
    shares = sorted({percent(found.share[i]) for i in stopped})
    reasons = len({_reason(found.status[i]) for i in failed})
    told, took = found.told, float(np.nansum(found.seconds))
    busy = [f"cores busy {percent(told['busy_fraction'])} of it"] if told["busy_fraction"] is not None else []
    if found.best == 0:
        against = "that of the recipe as it was: no trial was better"
    else:
        against = (
            f"trial {found.trial[found.best]}; unswept {unswept}: {_gain(found.score[0], found.score[found.best])}"
        )
    return [
        ("best score", best, against),
        ("finished", f"{len(finished):,}", f"of {_count(len(found.trial) - 1, 'trial')}, {scored}"),
        ("stopped early", f"{len(stopped):,}", f"scored with {' or '.join(shares)} of the data" if stopped else "none"),
        ("failed", f"{len(failed):,}", f"for {_count(reasons, 'reason')}, listed below" if failed else "none"),
        (
            "wall time",
            _duration(told["wall_seconds"]),
            "; ".join([f"{told['concurrent']} at once", *busy, f"trials and unswept together {_duration(took)}"]),
        ),
    ]


def _values(found: Sweep) -> list[dict[str, Any]]:
    """Return a row of the table of values for each key."""
    best = found.best
    return [
        {
            "key": key.name,
            "unswept": key.values[0],
            "best": key.values[best],
            "changed": key.values[0] != key.values[best],
            "range": key.notation,
            "at_end": best != 0 and key.at_end(best),
        }
        for key in found.keys
    ]


def _mix(share: float) -> str:
    """Return the colour of a score: 0 for the best, 1 for the worst."""
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(DARK, LIGHT, strict=True))


def _score_told(found: Sweep, row: int) -> str:
    which = f"trial {found.trial[row]}" if row else "unswept"
    partly = f" with {percent(found.share[row])} of the data" if found.status[row].startswith("stopped") else ""
    return f"{which}: {digits(found.score[row], 4)}{partly}"


def _ordered(found: Sweep) -> list[tuple[int, str, float, float]]:
    """Return rows with colour, width and opacity of their lines, the better ones later, and so on top."""
    stopped, rows = found.rows("stopped"), found.rows("finished")
    levels = sorted({found.score[i] for i in rows}, reverse=not found.less)
    shares = {score: k / max(len(levels) - 1, 1) for k, score in enumerate(levels)}
    rows.sort(key=lambda i: -shares[found.score[i]])
    opacity = min(0.85, max(0.3, 50 / max(len(rows), 1)))
    return [
        *((i, PALE, 1.0, 0.8) for i in stopped),
        *((i, _mix(shares[found.score[i]]), 1.4, opacity) for i in rows if i != found.best),
    ]


def _ends(found: Sweep) -> list[tuple[int, str]]:
    """Return the rows of the unswept and the best recipe, and how they look; once where they are one."""
    return [(0, "before"), *([(found.best, "after")] if found.best else [])]


def _parallel(found: Sweep) -> Panel:
    """Draw the trials as lines across an axis for each key, the axes below one another, and the score at the bottom."""
    depth = len(found.keys)
    traces: list[Any] = []
    for k in range(depth + 1):
        traces.append(
            go.Scatter(x=[0, 1], y=[-k, -k], mode="lines", line={"color": "#8d98a6", "width": 1}, hoverinfo="skip")
        )

    def across(row: int, spread: float) -> dict[str, Any]:
        places = [key.place(row, spread) for key in found.keys]
        words = [f"{figure_text(key.name, 60)}: {figure_text(key.values[row], 60)}" for key in found.keys]
        if row == 0 or found.status[row] == "finished":
            places.append(found.scale.place(found.score[row]))
            words.append("score")
        hover = [f"{_score_told(found, row)}<br>{w}" for w in words]
        return {
            "x": places,
            "y": [-k for k in range(len(places))],
            "text": hover,
            "hovertemplate": "%{text}<extra></extra>",
        }

    for row, colour, width, opacity in _ordered(found):
        spread = 2 * math.fmod(0.618034 * found.trial[row], 1.0) - 1  # evenly, and the same in every drawing
        style, dot = {"color": colour, "width": width}, {"color": colour, "size": 4}
        path = across(row, spread)
        mode = "lines" if len(path["x"]) > 1 else "markers"
        traces.append(go.Scatter(**path, mode=mode, line=style, marker=dot, opacity=opacity))
    for row, how in _ends(found):
        style = {"color": look(how).colour, "width": 3, "dash": "dash" if how == "before" else "solid"}
        traces.append(go.Scatter(**across(row, 0.0), mode="lines+markers", line=style, marker=_mark(how), name=how))
    ticks = [(at, -k, told) for k, key in enumerate(found.keys) for at, told in key.ticks()]
    ticks += [(at, -depth, told) for at, told in found.scale.ticks()]
    labels = [
        {
            "x": at,
            "y": y - 0.07,
            "text": told,
            "yanchor": "top",
            "showarrow": False,
            "borderpad": 0,
            "bgcolor": "rgba(255,255,255,0.8)",
            "font": {"size": 11, "color": "#5a6573"},
        }
        for at, y, told in ticks
    ]
    names = [f"{_two_lines(key.name)}<br>{figure_text(key.notation, 30)}" for key in found.keys]
    x = axis("", visible=False, range=[-0.06, 1.06], fixedrange=True)
    y = axis("", tickvals=[-k for k in range(depth + 1)], ticktext=[*names, "score"], range=[-depth - 0.55, 0.25])
    figure = draw(
        traces, x, {**y, "showgrid": False, "showline": False, "ticks": "", "fixedrange": True}, annotations=labels
    )
    caption = (
        "Each line is a trial: where it crosses an axis is its value of that key. Lines are coloured by rank of the "
        "score. A mark beyond the end of an axis lies outside of the range."
    )
    return Panel("Parallel coordinates", caption, figure, 70 + 66 * (depth + 1))


def _mark(how: str, size: int = 11) -> dict[str, Any]:
    return {"color": look(how).colour, "symbol": look(how).symbol, "size": size, "line": {"color": "white", "width": 1}}


def _dots(found: Sweep, x: Mapping[int, float | None], more: Mapping[int, str]) -> list[Any]:
    """Return marks of the scores of all scored trials, the unswept and the best recipe on top."""
    ends = _ends(found)
    plain = [("stopped", found.rows("stopped"), {"color": PALE, "size": 6})]
    plain += [
        ("finished", [i for i in found.rows("finished") if i != found.best], {"color": DOT, "size": 7, "opacity": 0.75})
    ]
    return [
        go.Scatter(
            x=[x[i] for i in rows],
            y=[found.scale.drawn(found.score[i]) for i in rows],
            text=[_score_told(found, i) + more.get(i, "") for i in rows],
            mode="markers",
            marker=marker,
            name=name,
            cliponaxis=False,
            hovertemplate="%{text}<extra></extra>",
        )
        for name, rows, marker in (*plain, *((how, [row], _mark(how)) for row, how in ends))
        if rows
    ]


def _history(found: Sweep) -> Panel:
    """Draw the score of every trial, the best so far, and where trials failed."""
    worse = 1 + OUTSIDE if found.less else -OUTSIDE
    better = min if found.less else max
    reached, best = [], math.nan
    for i in (0, *found.rows("finished")):
        if math.isfinite(found.score[i]):
            best = better(best, found.score[i]) if math.isfinite(best) else found.score[i]
            reached.append((found.trial[i], best))
    reached += [(max(found.trial), best)] if reached else []
    line = go.Scatter(
        x=[t for t, _ in reached],
        y=[found.scale.drawn(s) for _, s in reached],
        text=[digits(s, 4) for _, s in reached],
        mode="lines",
        line={"color": look("after").colour, "width": 2, "shape": "hv"},
        name="best so far",
        hovertemplate="best so far: %{text}<extra></extra>",
    )
    failed = found.rows("failed", scored=False)
    crosses = go.Scatter(
        x=[found.trial[i] for i in failed],
        y=[found.scale.value(worse)] * len(failed),
        text=[f"trial {found.trial[i]}: {figure_text(found.status[i], 90)}" for i in failed],
        mode="markers",
        marker={"color": RED, "symbol": "x", "size": 7},
        name="failed",
        hovertemplate="%{text}<extra></extra>",
    )
    ticks = {"tick0": 0, "dtick": 1} if max(found.trial) < 10 else {"nticks": 9}
    x = axis("trial", **ticks, range=[-0.02 * max(found.trial) - 0.5, 1.02 * max(found.trial) + 0.5])
    title = "<br>".join(figure_text(part, 60) for part in textwrap.wrap(found.told["measure"], 36)[:3])
    dots = _dots(found, dict(enumerate(found.trial)), {})
    figure = draw([line, *dots, *([crosses] if failed else [])], x, found.scale.axis(title))
    caption = "The line is the best score so far of those that finished; the recipe as it was is trial 0."
    if failed:
        caption += " A cross at the edge is a trial that failed."
    return Panel("In the order of the trials", caption, figure, 340)


def _slice(found: Sweep, key: Key) -> Panel:
    """Draw the score against one key."""
    spread = {i: 0.6 * (math.fmod(0.618034 * t, 1.0) - 0.5) if key.options else 0.0 for i, t in enumerate(found.trial)}
    x = {i: _moved(key.scale.drawn(key.number(i)), 0.0 if i in (0, found.best) else spread[i]) for i in spread}
    if key.options:
        ticks = [figure_text(o, max(7, 36 // len(key.options))) for o in key.options]
        below = key.scale.axis("", tickvals=list(range(len(ticks))), ticktext=ticks, showgrid=False)
    else:
        below = key.scale.axis("")
    words = {i: f"<br>{figure_text(key.values[i], 60)}" for i in spread}
    figure = draw(_dots(found, x, words), below, found.scale.axis("score"))
    best = f"best {_cut(key.values[found.best], 40)}, " if found.best else ""
    return Panel(key.name, f"{_cut(key.notation, 40)}: {best}unswept {_cut(key.values[0], 40)}.", figure, 230)


def _moved(value: float | None, by: float) -> float | None:
    return None if value is None else value + by


def _outside(found: Sweep) -> int:
    """Return how many scores lie outside of the axis of scores."""
    rows = [i for i in (0, *found.rows("finished"), *found.rows("stopped")) if math.isfinite(found.score[i])]
    slack = 1e-9 * (found.scale.high - found.scale.low)
    return sum(not found.scale.low - slack <= found.score[i] <= found.scale.high + slack for i in rows)


def importance(found: Sweep) -> dict[str, tuple[float, float]] | str:
    """Return how much each key matters, by PED-ANOVA (Watanabe et al. 2023), or why that cannot be said.

    Args:
        found: whose finished trials are asked; scores of those that were stopped early do not compare.

    Returns:
        of each key, its share of the importance and what it reaches by chance: the 95 % quantile over shuffled scores.
    """
    rows = found.rows("finished")
    if len(found.keys) < 2:
        return "one key alone was swept, so there is nothing to compare it with"
    if len(rows) < ENOUGH:
        return f"{ENOUGH} finished trials are needed to tell importance from noise, and there are {len(rows)}"
    if len({found.score[i] for i in rows}) == 1:
        return "all finished trials have the same score"
    try:
        import optuna
    except ImportError:
        return "Optuna is not installed; pip install 'sim2real-toolkit[tune]' brings it"

    def distribution(key: Key) -> Any:
        if key.options:
            return optuna.distributions.CategoricalDistribution(key.options)
        values = [*(key.numbers[i] for i in rows), key.scale.low, key.scale.high]
        low, high = min(values), max(values)
        return optuna.distributions.FloatDistribution(low, high, log=key.scale.logarithmic and low > 0)

    asked = [k for k in found.keys if k.options or all(math.isfinite(k.numbers[i]) for i in rows)]
    spaces = {key.name: distribution(key) for key in asked}
    drawn = [{k.name: k.values[i] if k.options else k.numbers[i] for k in asked} for i in rows]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    optuna.logging.set_verbosity(verbosity)
    study.add_trials([optuna.trial.create_trial(params=p, distributions=spaces, value=0.0) for p in drawn])
    # five trials at least have to count as good; older releases of Optuna have another name for their share
    share = next(iter(inspect.signature(optuna.importance.PedAnovaImportanceEvaluator).parameters))
    good: Any = {share: max(0.1, 5 / len(rows))}

    def weigh(losses: Any) -> dict[str, float]:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(**good)
        return optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: float(losses[trial.number]), normalize=False
        )

    losses = np.array([found.score[i] if found.less else -found.score[i] for i in rows])
    draws = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that less has to be better, and that parts of this are experimental
        weights = weigh(losses)
        shuffled = [weigh(draws.permutation(losses)) for _ in range(SHUFFLES)]
    whole = sum(weights.values()) or 1.0
    chance = {name: float(np.quantile([s.get(name, 0.0) for s in shuffled], 0.95)) for name in weights}
    return {k.name: (weights.get(k.name, 0.0) / whole, chance.get(k.name, 0.0) / whole) for k in found.keys}


def _importance(found: Sweep, weights: Mapping[str, tuple[float, float]]) -> Panel:
    """Draw the importance of each key, the largest on top, with what chance alone reaches."""
    names = sorted(weights, key=lambda name: weights[name][0])
    shares, chances = ([100 * weights[name][k] for name in names] for k in (0, 1))
    rows = list(range(len(names)))
    bars = go.Bar(
        x=shares,
        y=rows,
        orientation="h",
        marker={"color": [DOT if s > c else PALE for s, c in zip(shares, chances, strict=True)]},
        customdata=[figure_text(name, 60) for name in names],
        hovertemplate="%{customdata}: %{x:.0f} %<extra></extra>",
    )
    marks = go.Scatter(
        x=chances,
        y=rows,
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 14, "color": "#1c2430", "line": {"width": 2}},
        hovertemplate="by chance: %{x:.0f} %<extra></extra>",
    )
    x = axis("share of the importance [%]", range=[0, 1.05 * max(*shares, *chances)], nticks=7)
    y = axis("", tickvals=rows, ticktext=[_two_lines(name) for name in names], range=[-0.5, len(names) - 0.5])
    counts = [name for name in names[::-1] if weights[name][0] > weights[name][1]]
    many = len(found.rows("finished"))
    caption = (
        f"PED-ANOVA of {many} finished trials: how far the values of the best ones differ from those of the others. "
        "Upright marks: what shuffled scores reach in 19 of 20 cases. "
        + (f"{len(counts)} of {len(names)} keys pass it." if counts else "No key passes it: this may all be chance.")
        + (f" By chance alone, {len(names) / 20:.0f} of so many would." if len(names) >= 15 else "")
    )
    figure = draw([bars, marks], x, {**y, "showgrid": False}, bargap=0.35)
    return Panel("What sets the best trials apart", caption, figure, 90 + 38 * len(names))


def _seeds(found: Sweep) -> tuple[str, Panel]:
    """Say whether other seeds agree, and draw the scores in pairs."""
    told = found.told["confirmed"]
    pairs = [(_number(a), _number(b)) for a, b in zip(told["default"], told["best"], strict=True)]
    both = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    gains = [a - b if found.less else b - a for a, b in both]
    agree, equal = sum(g > 0 for g in gains), sum(g == 0 for g in gains)
    said = f"With {agree} of {_count(len(both), 'other seed')} the best recipe scores better than the recipe as it was"
    said += f", with {equal} the same." if equal else "."
    if both:
        before, after = (float(np.mean(each)) for each in zip(*both, strict=True))
        many = resolving(*sorted((before, after)))
        said += f" The mean goes from {digits(before, many)} to {digits(after, many)}."
    if len(both) < len(pairs):
        said += f" {_count(len(pairs) - len(both), 'seed')} without a score of both."
    if found.best == 0:
        said = "No trial was better, so both recipes are the recipe as it was."
    at = list(range(len(pairs)))
    joined: list[Any] = [
        go.Scatter(x=[k, k], y=list(pair), mode="lines", line={"color": "#8d98a6", "width": 1.5}, hoverinfo="skip")
        for k, pair in enumerate(pairs)
        if pair in both
    ]
    marks = [
        go.Scatter(
            x=at,
            y=[pair[side] if math.isfinite(pair[side]) else None for pair in pairs],
            mode="markers",
            marker=_mark(how),
            name=how,
            hovertemplate=f"{name}: %{{y:.4g}}<extra></extra>",
        )
        for side, how, name in ((0, "before", "unswept"), (1, "after", "best"))
    ]
    seeds = [figure_text(str(seed), 12) for seed in told["seeds"]]
    x = axis("seed", tickvals=at, ticktext=seeds, range=[-0.5, len(pairs) - 0.5], showgrid=False)
    caption = "Two marks a seed: the recipe as it was and the best one, scored anew."
    return said, Panel("Scored again", caption, draw([*joined, *marks], x, axis("score", nticks=6)), 300)


def _reason(status: str) -> str:
    return status.partition(":")[2].strip() or "no reason was given"


def _failed(found: Sweep) -> list[dict[str, Any]]:
    """Return the trials that failed, by reason, the most frequent one first."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row in found.rows("failed", scored=False):
        groups[_reason(found.status[row])].append(row)
    return [
        {
            "reason": reason,
            "count": len(rows),
            "more": max(len(rows) - LISTED, 0),
            "rows": [
                (found.trial[i], [key.values[i] for key in found.keys], digits(found.seconds[i])) for i in rows[:LISTED]
            ],
        }
        for reason, rows in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
