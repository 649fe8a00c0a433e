"""Rules of motion: positions and velocities of one joint, LOG007, LOG009, LOG010, LOG011 and LOG014."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.signal import savgol_coeffs

from sim2real.logs.lint.channels import resolution
from sim2real.logs.lint.findings import Finding
from sim2real.logs.lint.lags import regress_over_lags
from sim2real.logs.lint.view import Joint, View

UNITS = {57.29578: "degrees", 9.549297: "rpm", 0.1591549: "revolutions", 1000.0: "millimetres"}
LONGEST_LAG = 0.06  # s
WIDE = 100.0  # rad: no joint but a wheel turns so far, and back
LATE = 0.004  # s: what a sampled derivative may be late by
NARROW = 20.0  # steps of the encoder


def check_motion(view: View) -> Iterator[Finding]:
    """Yield what positions and velocities say of one another, and what they can teach."""
    if not view.regular:
        return
    for joint in view.joints:
        if not np.isfinite(joint.position.values).all():
            continue
        yield from _excitation(view, joint)
        wide = list(_wide(view, joint))
        yield from wide
        if joint.velocity is not None and np.isfinite(joint.velocity.values).all():
            yield from _velocity(view, joint)


def _wide(view: View, joint: Joint) -> Iterator[Finding]:
    q = joint.position.values
    span = float(q.max() - q.min())
    travelled = float(abs(np.diff(view.smooth(view.on_grid(joint.position), 0))).sum())
    if joint.position.unit == "rad" and span > WIDE and travelled > 1.5 * span:
        what = f"turns by {span:.0f} rad, and back: degrees that were read as radians?"
        values = {"span": span}
        yield Finding("LOG007", "error", view.recording.name, (joint.position.role,), what, values=values)


def _velocity(view: View, joint: Joint) -> Iterator[Finding]:
    assert joint.velocity is not None
    name, roles = view.recording.name, (joint.velocity.role, joint.position.role)
    q, v = view.on_grid(joint.position), view.on_grid(joint.velocity)
    fine = resolution(joint.position.values)
    for half in range(1, 2 + round(0.03 / view.dt)):  # no smoother than the steps of the encoder call for
        weights = savgol_coeffs(2 * half + 1, 2, deriv=1, delta=view.dt)
        noise = fine**2 / 12 * float(weights @ weights)
        inner = slice(4 * half, len(q) - 4 * half)
        derivative, speed = view.smooth(q, 1, half)[inner], view.smooth(v, 0, half)[inner]
        if noise < 0.01 * float(derivative.var()):
            break
    power = float(derivative.var())
    if power < 4 * noise or speed.std() == 0:
        return  # hardly a motion, beside the steps of the encoder
    x, y = derivative - derivative.mean(), speed - speed.mean()
    most = max(4, round(LONGEST_LAG / view.dt))
    if len(x) < 4 * most:
        return
    found = regress_over_lags(y, x[:, None], view.dt, -2, most, noise=noise)
    gain, explained = float(found.gain[0]), found.explained
    values = {"gain": gain, "explained": explained, "lag": found.lag, "low": found.low, "high": found.high}
    shown = min(len(x), round(4.0 / view.dt))
    part = slice(int(np.argmax(np.convolve(abs(x), np.ones(shown), "valid"))), None)
    times = (view.grid[inner] - view.grid[0])[part][:shown]
    unit = joint.velocity.unit
    curves = {
        f"logged [{unit}]": (times, speed[part][:shown]),
        f"derivative of the position [{unit}]": (times, derivative[part][:shown]),
    }
    if explained < 0.5:
        return
    if gain < 0:
        what = f"falls when {joint.position.name} rises: {gain:.2g} times its derivative"
        yield Finding("LOG009", "error", name, roles, what, values=values, curves=curves)
        gain = -gain
    units = {f: u for factor, u in UNITS.items() for f in (factor, 1 / factor) if abs(gain / f - 1) < 0.12}
    if units and abs(gain - 1) > 0.2:
        factor, wrong = next(iter(units.items()))
        which = "the velocity" if factor > 1 else "the position"
        what = f"is {gain:.3g} times the derivative of the position: {which} seems to be in {wrong}"
        yield Finding("LOG007", "error", name, roles, what, values=values, curves=curves)
    elif abs(gain - 1) > 0.15 and explained > 0.7:
        what = f"is {gain:.2f} times the derivative of the position"
        yield Finding("LOG010", "error", name, roles, what, values=values, curves=curves)
    if explained > 0.7 and found.low > max(1.3 * view.dt, LATE):
        interval = f"90 % interval {1e3 * found.low:.1f} to {1e3 * found.high:.1f} ms"
        what = f"is {1e3 * found.lag:.1f} ms late behind the derivative of the position ({interval})"
        yield Finding("LOG011", "warning", name, roles, what, values=values, curves=curves)


def _excitation(view: View, joint: Joint) -> Iterator[Finding]:
    q = joint.position.values
    span, fine = float(q.max() - q.min()), resolution(q)
    name, roles = view.recording.name, (joint.position.role,)
    if span == 0.0 or span < NARROW * fine:
        what = (
            f"hardly moves: by {span:.3g} {joint.position.unit}, in steps of {fine:.2g}; no parameter can be identified"
        )
        yield Finding("LOG014", "warning", name, roles, what, values={"span": span})
        return
    smooth = view.smooth(view.on_grid(joint.position), 1)
    fast = np.sign(smooth[abs(smooth) > 0.1 * abs(smooth).max()])
    reversals = int(np.count_nonzero(np.diff(fast)))
    if reversals < 2:
        what = f"turns back {reversals} times: dry friction, backlash and a bias of the effort cannot be told apart"
        yield Finding("LOG014", "warning", name, roles, what, values={"reversals": reversals})
    if joint.action is not None:
        u = joint.action.values[np.isfinite(joint.action.values)]
        changes = int(np.count_nonzero(np.diff(u)))
        if changes < 3:
            what = f"{joint.action.name} changes {changes} times: latency, gain and inertia cannot be identified"
            yield Finding("LOG014", "warning", name, (joint.action.role,), what, values={"changes": changes})
