"""Rules of single channels: LOG003 (rows), LOG004, LOG005 and LOG006."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sim2real.episodes import Array
from sim2real.logs.lint.findings import Finding
from sim2real.logs.lint.view import POSITIONS, View
from sim2real.logs.raw import RawChannel

LONG_STUCK = 0.5  # s that a channel must stand still for, while its joint moves
FLAT = 4  # rows at a limit
FEW_FLATS = 3


def check_channels(view: View) -> Iterator[Finding]:
    """Yield what is wrong with single channels."""
    for channel in view.recording.channels:
        lost = np.flatnonzero(~np.isfinite(channel.values))
        if channel.group in ("actions", "measured_actions") and len(lost) and lost[0] == len(channel.values) - 1:
            lost = lost[:0]  # the action of the last row means nothing
        if len(lost):
            what = f"{len(lost)} of {len(channel.values)} values are missing or infinite"
            where = f"first in row {lost[0]}"
            yield Finding("LOG004", "error", view.recording.name, (channel.role,), what, where, {"count": len(lost)})
    if view.regular:
        yield from _repeated(view)
        yield from _stuck(view)
        for channel in view.recording.channels:
            yield from _saturated(view, channel)


def resolution(x: Array) -> float:
    """Return the resolution of a channel: its smallest change."""
    changes = abs(np.diff(x))
    changes = changes[changes > 1e-12 * max(1.0, float(abs(x).max()))]
    return float(np.quantile(changes, 0.02)) if len(changes) else 0.0


def _repeated(view: View) -> Iterator[Finding]:
    """Whole rows that are there twice, where positions go faster than their resolution before and after."""
    channels = [c for c in view.recording.group("observations") if c.clock == view.recording.channels[0].clock]
    x = np.stack([c.values for c in channels], 1)
    if not np.isfinite(x).all() or len(x) < 10:
        return
    change = abs(np.diff(x, axis=0))
    same = (change == 0).all(1)
    moving = [k for k, c in enumerate(channels) if c.unit in POSITIONS] or list(range(len(channels)))
    steps = np.array([resolution(x[:, k]) for k in moving])
    before, after = (np.roll(change[:, moving], by, 0) for by in (1, -1))
    fast = np.asarray(((before > 2.5 * steps) & (after > 2.5 * steps) & (steps > 0)).any(1))
    fast[[0, -1]] = False
    rows = np.flatnonzero(same & fast)
    if len(rows) >= 3 and len(rows) > 0.002 * len(x):
        what = f"{len(rows)} of {len(x)} rows repeat the one before them in the middle of a motion"
        where = f"first at row {rows[0] + 1}"
        values = {"count": len(rows), "share": len(rows) / len(x)}
        yield Finding("LOG003", "warning", view.recording.name, tuple(c.role for c in channels), what, where, values)


def _runs(same: Array) -> list[tuple[int, int]]:
    """Return the stretches [first, last) in which a mask is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _stuck(view: View) -> Iterator[Finding]:
    """A position that stands still while its velocity says otherwise, or a velocity while the position moves."""
    for joint in view.joints:
        if joint.velocity is None:
            continue
        q, v, t = joint.position.values, joint.velocity.values, joint.position.t
        n = min(len(q), len(v), len(t))
        q, v, t = q[:n], v[:n], t[:n]
        if not (np.isfinite(q).all() and np.isfinite(v).all()):
            continue
        travelled = np.concatenate([[0.0], np.cumsum(0.5 * (v[1:] + v[:-1]) * np.diff(t))])
        width = max(1, round(0.05 / view.dt))
        calm = np.convolve(v, np.full(width, 1 / width), "same")  # without most of its noise
        usual = float(np.sqrt((calm**2).mean()))
        for channel, x, moves in ((joint.position, q, travelled), (joint.velocity, v, q)):
            scale = float(np.quantile(moves, 0.95) - np.quantile(moves, 0.05))
            fine = max(resolution(moves), 1e-9)
            for a, b in _runs(np.diff(x) == 0):
                if t[b] - t[a] < LONG_STUCK:
                    continue
                part = moves[a : b + 1]
                span = float(part.max() - part.min())
                if channel is joint.velocity:  # a constant speed is not stuck
                    line = part[0] + x[a] * (t[a : b + 1] - t[a])
                    span = min(span, float(abs(part - line).max()))
                elif np.sqrt((calm[a : b + 1] ** 2).mean()) < max(0.2 * usual, 3 * resolution(v)):
                    continue  # the velocity of a joint at rest: noise, or off by a step
                if span > max(0.15 * scale, 20 * fine):
                    what = (
                        f"stands still at {x[a]:.4g} {channel.unit} for {t[b] - t[a]:.2f} s, while the joint moves by "
                        f"{span:.3g} {joint.position.unit}"
                    )
                    where = f"from {t[a] - t[0]:.2f} s to {t[b] - t[0]:.2f} s"
                    values = {"seconds": float(t[b] - t[a])}
                    yield Finding("LOG005", "error", view.recording.name, (channel.role,), what, where, values)
                    break


def _saturated(view: View, channel: RawChannel) -> Iterator[Finding]:
    """A limit that is run into again and again: flat tops of one height, entered and left at full speed."""
    x = channel.values[np.isfinite(channel.values)]
    if len(x) < 50:
        return
    step = resolution(x)
    inside = (x > x.min()) & (x < x.max())
    if step == 0.0 or inside.mean() < 0.2:
        return
    varies = (np.diff(x) != 0)[inside[1:]].mean()
    if varies < 0.6:  # held commands, steps, a joint at rest: flat anyway
        return
    for limit, name in ((x.max(), "upper"), (x.min(), "lower")):
        flats = [(a, b) for a, b in _runs(x == limit) if b - a >= FLAT and a >= 2 and b + 2 <= len(x)]
        sharp = [(a, b) for a, b in flats if min(abs(x[a] - x[a - 1]), abs(x[b] - x[b - 1])) > 3 * step]
        rows = sum(b - a for a, b in sharp)
        if len(sharp) >= FEW_FLATS or (len(sharp) >= 2 and rows > 0.03 * len(x)):
            share = f"in {100 * rows / len(x):.1f} % of the rows"
            what = f"is cut off at {limit:.4g} {channel.unit} {len(sharp)} times, {share}"
            values = {"limit": float(limit), "share": rows / len(x)}
            where = f"{name} limit, first at row {sharp[0][0]}"
            curves = {f"{channel.name} [{channel.unit}] over time [s]": (channel.t - channel.t[0], channel.values)}
            yield Finding("LOG006", "warning", view.recording.name, (channel.role,), what, where, values, curves)
