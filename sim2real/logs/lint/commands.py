"""Rules of commands and what they cause: LOG008, LOG009, LOG012, LOG013 and LOG015."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import permutations, product

import numpy as np
from scipy.signal import savgol_coeffs

from sim2real.episodes import Array
from sim2real.logs.lint.findings import Finding
from sim2real.logs.lint.lags import Lag, regress_over_lags
from sim2real.logs.lint.view import EFFORTS, Joint, View

SPAN = 0.06  # of the polynomials that give accelerations [s]
LONGEST_DELAY, LONGEST_SERVO = 0.06, 0.4  # s, of efforts and of position targets
MOST_ROWS = 20_000
MOST_JOINTS = 4  # whose orders are compared


def check_commands(view: View) -> Iterator[Finding]:
    """Yield what commands and responses say of each other."""
    yield from _measured(view)
    if not view.regular or view.recording.action_source != "commanded":
        return
    joints = [j for j in view.joints if j.action is not None]
    whole = [j for j in joints if np.isfinite(j.position.values).all() and np.isfinite(j.action.values[:-1]).all()]  # type: ignore[union-attr]
    efforts = [j for j in whole if j.action.unit in EFFORTS]  # type: ignore[union-attr]
    targets = [j for j in whole if j.action.unit == j.position.unit]  # type: ignore[union-attr]
    if efforts and len(efforts) == len(joints):
        yield from _efforts(view, efforts)
    elif targets and len(targets) == len(joints):
        yield from _targets(view, targets)


def _measured(view: View) -> Iterator[Finding]:
    recording = view.recording
    actions = {c.name: c for c in recording.group("actions")}
    if recording.action_source == "measured":
        what = "the actions are what the actuators reported; what was asked for is not in the log"
        yield Finding("LOG013", "note", recording.name, tuple(c.role for c in actions.values()), what)
        return
    for channel in recording.group("measured_actions"):
        asked = actions.get(channel.name)
        if asked is None:
            continue
        n = min(len(asked.values), len(channel.values)) - 1
        a, b = asked.values[:n], channel.values[:n]
        ok = np.isfinite(a) & np.isfinite(b)
        if n > 20 and a[ok].std() > 0 and (a[ok] == b[ok]).mean() > 0.99:
            what = "what was measured equals what was commanded, to the last digit: one was copied from the other"
            yield Finding("LOG013", "warning", recording.name, (asked.role, channel.role), what)


def _efforts(view: View, joints: list[Joint]) -> Iterator[Finding]:
    """Efforts: the acceleration that is left when the state is accounted for goes with the command, a delay later."""
    half = max(3, round(SPAN / 2 / view.dt))
    kernel = {d: savgol_coeffs(2 * half + 1, 2, deriv=d, delta=view.dt, use="dot") for d in (0, 1, 2)}
    rows = min(len(view.grid), MOST_ROWS)

    def smooth(x: Array, order: int) -> Array:
        return np.correlate(x[:rows], kernel[order], mode="valid")

    q = np.stack([smooth(view.on_grid(j.position), 0) for j in view.joints], 1)
    v = np.stack([smooth(view.on_grid(j.position), 1) for j in view.joints], 1)
    a = np.stack([smooth(view.on_grid(j.position), 2) for j in joints], 1)
    u = np.stack([smooth(view.on_grid(j.action, hold=True), 0) for j in joints], 1)  # type: ignore[arg-type]
    most = max(3, round(LONGEST_DELAY / view.dt))
    if len(a) < 6 * most or (u.std(0) == 0).any() or (a.std(0) == 0).any():
        return
    scale = v.std(0) + 1e-12
    state = np.concatenate([np.ones((len(a), 1)), q, np.sin(q), np.cos(q), v, np.tanh(5 * v / scale), v * abs(v)], 1)
    basis = np.linalg.qr(state)[0]

    def beyond_the_state(x: Array) -> Array:
        return x - basis @ (basis.T @ x)

    free = beyond_the_state(u)
    if (free.var(0) < 0.1 * u.var(0)).any():
        return  # a feedback law: what the state does to the command looks like what the command does to it
    rest = beyond_the_state(a)
    found = [regress_over_lags(a[:, k], u, view.dt, -3, most, beside=state, seed=k) for k in range(len(joints))]
    gains = np.stack([f.gain * free.std(0) / rest[:, k].std() for k, f in enumerate(found)])
    sure = np.stack([(f.gain_low > 0).astype(int) - (f.gain_high < 0).astype(int) for f in found])
    strong = [f.explained > 0.05 for f in found]
    if not all(strong):
        return
    wrong = yield from _order_and_sign(view, joints, gains, sure)
    if not wrong:
        yield from _delay(view, joints, found, "the acceleration", acausal=True)


def _targets(view: View, joints: list[Joint]) -> Iterator[Finding]:
    """Position targets: positions follow them, a delay later."""
    step = max(1, len(view.grid) // MOST_ROWS)
    q = np.stack([view.on_grid(j.position) for j in joints], 1)[::step]
    u = np.stack([view.on_grid(j.action, hold=True) for j in joints], 1)[::step]  # type: ignore[arg-type]
    moving = (q.std(0) > 1e-3) & (u.std(0) > 1e-3)
    if not moving.all():
        keep = np.flatnonzero(moving)
        joints, q, u = [joints[k] for k in keep], q[:, keep], u[:, keep]
    most = round(LONGEST_SERVO / view.dt / step)
    if not joints or len(q) < 4 * most or len(q) < 100:
        return
    q, u = q - q.mean(0), u - u.mean(0)
    found = [regress_over_lags(q[:, k], u[:, k : k + 1], view.dt * step, -2, most, seed=k) for k in range(len(joints))]
    if len(joints) <= MOST_JOINTS:
        gains = np.empty((len(joints), len(joints)))
        for k in range(len(joints)):
            for i in range(len(joints)):
                lag = regress_over_lags(q[:, k], u[:, i : i + 1], view.dt * step, 0, most)
                gains[k, i] = np.sign(lag.gain[0]) * np.sqrt(max(lag.explained, 0.0))
    else:
        gains = np.diag([np.sign(f.gain[0]) * np.sqrt(max(f.explained, 0.0)) for f in found])
    sure = np.where(abs(gains) > 0.6, np.sign(gains), 0)
    wrong = yield from _order_and_sign(view, joints, gains, sure)
    if not wrong and all(f.explained > 0.7 for f in found):
        yield from _delay(view, joints, found, "the position", acausal=False)


def _order_and_sign(view: View, joints: list[Joint], gains: Array, sure: Array) -> Generator[Finding, None, bool]:
    """Compare the order and the signs of the schema with all others; return whether another one is clearly better.

    What a command does to its own joint is positive, as inertia is, and outweighs what it does to others.
    """
    n = len(joints)
    straight = float(np.trace(gains))
    orders = list(permutations(range(n))) if n <= MOST_JOINTS else [tuple(range(n))]
    best, order, signs = max(
        (sum(s * gains[k, p] for k, (p, s) in enumerate(zip(ps, ss, strict=True))), ps, ss)
        for ps in orders
        for ss in (product((1, -1), repeat=n) if n <= MOST_JOINTS else [tuple(np.sign(np.diag(gains)).astype(int))])
    )
    # of hypotheses that are as good, the one with fewer changes is meant: an order without signs before signs
    for ps in orders:
        score = sum(gains[k, p] for k, p in enumerate(ps))
        if score > 0.9 * best:
            best, order, signs = score, ps, (1,) * n
            break
    changed = [k for k in range(n) if order[k] != k or signs[k] < 0]
    if not changed or best - straight < 0.25 * len(changed) or any(sure[k, order[k]] != signs[k] for k in changed):
        return False
    name = view.recording.name
    if any(order[k] != k for k in changed):
        pairs = ", ".join(f"{joints[order[k]].action.name} moves {joints[k].position.name}" for k in changed)  # type: ignore[union-attr]
        roles = tuple(joints[k].action.role for k in changed)  # type: ignore[union-attr]
        values = {"score": float(best), "as_written": straight}
        yield Finding("LOG008", "error", name, roles, f"the order of the joints is another one: {pairs}", values=values)
    else:
        for k in changed:
            action = joints[k].action
            assert action is not None
            what = f"{joints[k].position.name} moves against {action.name} (normalised gain {gains[k, k]:.2f})"
            values = {"gain": float(gains[k, k])}
            yield Finding("LOG009", "error", name, (action.role, joints[k].position.role), what, values=values)
    return True


def _delay(view: View, joints: list[Joint], found: list[Lag], response: str, acausal: bool) -> Iterator[Finding]:
    for joint, lag in zip(joints, found, strict=True):
        action = joint.action
        assert action is not None
        roles = (action.role, joint.position.role)
        # beside chance: what friction and gravity leave unexplained moves the estimate by up to a tenth of a step or so
        unsure = 0.1 * view.dt + 0.0003
        low, high = lag.low - unsure, lag.high + unsure
        values = {"delay": lag.lag, "low": low, "high": high, "explained": lag.explained}
        interval = f"90 % interval {1e3 * low:.1f} to {1e3 * high:.1f} ms"
        # a row too late is a row: what is less sure, or earlier still, is the work of a controller that looks ahead
        by_a_row = high < -0.1 * view.dt and lag.lag > -1.6 * view.dt and high - low < view.dt + 0.002
        if acausal and by_a_row and lag.explained > 0.1:
            what = f"{response} comes {-1e3 * lag.lag:.1f} ms before {action.name} ({interval})"
            yield Finding("LOG015", "error", view.recording.name, roles, what, values=values)
        elif high - low < max(0.02, 4 * view.dt):
            what = f"{response} follows {action.name} after {1e3 * lag.lag:.1f} ms ({interval})"
            yield Finding("LOG012", "note", view.recording.name, roles, what, values=values)
