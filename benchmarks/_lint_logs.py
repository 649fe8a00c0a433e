"""Generated logs of arms of one to three joints, clean ones and such with a planted fault, for the linter to look at.

All logs of a batch are simulated together, in steps of a millisecond: inertia with coupling, gravity, dry and viscous
friction, commands that are late by up to 15 ms; torques (open loop, or of a controller) or position targets of a servo.
What is logged has encoder steps, velocities with noise or from differences, and stamps that jitter by a few per cent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim2real.logs.raw import RawChannel, RawRecording

Array = NDArray[np.float64]
H = 0.001  # s
KINDS = ("torque", "controller", "target")


@dataclass(frozen=True)
class Log:
    """A log and what it was made with."""

    recording: RawRecording
    kind: str
    joints: int
    dt: float
    latency: float


def make_logs(count: int, seed: int) -> list[Log]:
    """Simulate clean logs."""
    rng = np.random.default_rng(seed)
    n = 3
    kind = rng.integers(0, 3, count)
    joints = rng.integers(1, n + 1, count)
    period = rng.choice([2, 4, 5, 8, 10, 20], count)  # steps of H
    latency = rng.integers(0, 16, count)
    duration = rng.uniform(6.0, 25.0, count)
    steps = int(duration.max() / H) + 50
    inertia = rng.uniform(0.02, 0.3, (count, n))
    coupling = rng.uniform(-0.25, 0.25, (count, n, n))
    mass = np.einsum(
        "li,lj,lij->lij", np.sqrt(inertia), np.sqrt(inertia), 0.5 * (coupling + coupling.transpose(0, 2, 1))
    )
    for k in range(n):
        mass[:, k, k] = inertia[:, k]
    inverse = np.linalg.inv(mass)
    gravity = inertia * rng.uniform(5, 30, (count, n))
    viscous = inertia * rng.uniform(0.5, 3, (count, n))
    dry = inertia * rng.uniform(0.2, 3, (count, n))
    stiff = inertia * rng.uniform(80, 400, (count, n))  # of servo and controller
    damp = 2 * rng.uniform(0.5, 1.0, (count, n)) * np.sqrt(stiff * inertia)
    t = H * np.arange(steps)
    reference = np.zeros((steps, count, n))
    for _ in range(5):
        f, p = rng.uniform(0.2, 2.5, (count, n)), rng.uniform(0, 2 * np.pi, (count, n))
        a = rng.uniform(0.1, 0.5, (count, n)) / np.maximum(f, 0.5)
        reference += a * np.sin(2 * np.pi * f * t[:, None, None] + p)
    levels = rng.normal(0, 0.5, (steps // 400 + 1, count, n))
    stepped = rng.random(count) < 0.3
    reference[:, stepped] = 0.6 * np.repeat(levels, 400, 0)[:steps][:, stepped] + 0.4 * reference[:, stepped]
    torque = 25 * inertia * reference + 6 * inertia * rng.normal(size=(steps // 20 + 1, count, n)).repeat(20, 0)[:steps]
    q = rng.normal(0, 0.2, (count, n))
    v = np.zeros((count, n))
    commands = np.zeros((steps, count, n))
    states = np.zeros((steps, count, 2, n))
    current = np.zeros((count, n))
    rows = np.arange(count)
    for k in range(steps):
        due = k % period == 0
        states[k, :, 0], states[k, :, 1] = q, v
        feedback = stiff * (reference[k] - q) - damp * v + 0.3 * torque[k]
        asked = np.where(kind[:, None] == 0, torque[k], np.where(kind[:, None] == 1, feedback, reference[k]))
        current = np.where(due[:, None], asked, current)
        commands[k] = current
        late = commands[np.maximum(k - latency, 0), rows]
        late = np.where((k >= latency)[:, None], late, 0.0)
        effort = np.where(kind[:, None] == 2, stiff * (late - q) - damp * v, late)
        force = effort - viscous * v - dry * np.tanh(v / 0.02) - gravity * np.sin(q)
        acceleration = np.einsum("lij,lj->li", inverse, force)
        q = q + H * v + 0.5 * H**2 * acceleration
        v = v + H * acceleration
    return [
        _logged(
            rng,
            k,
            KINDS[kind[k]],
            int(joints[k]),
            int(period[k]),
            H * int(latency[k]),
            float(duration[k]),
            commands,
            states,
        )
        for k in range(count)
    ]


def _logged(
    rng: np.random.Generator,
    k: int,
    kind: str,
    joints: int,
    period: int,
    latency: float,
    duration: float,
    commands: Array,
    states: Array,
) -> Log:
    dt = H * period
    ticks = np.arange(0, int(duration / H), period)
    t = H * ticks + dt * 0.01 * rng.uniform(0.2, 3.0) * rng.normal(size=len(ticks)).clip(-3, 3)
    fine = H * np.arange(len(states))
    encoder = rng.choice([0.0003, 0.001, 0.003])
    offset = rng.uniform(0, 1000)
    channels = []
    velocities = []
    for j in range(joints):
        q = np.interp(t, fine, states[:, k, 0, j])
        q = encoder * np.round(q / encoder)
        if rng.random() < 0.5:
            v = np.interp(t, fine, states[:, k, 1, j])
            v = v + rng.uniform(0.002, 0.02) * max(v.std(), 0.1) * rng.normal(size=len(t))
        else:
            v = np.concatenate([[0.0], np.diff(q) / np.diff(t)])
        channels.append(RawChannel("observations", f"position_{j}", "rad", t + offset, q, f"log {k}"))
        velocities.append(RawChannel("observations", f"velocity_{j}", "rad/s", t + offset, v, f"log {k}"))
    actions, measured = [], []
    unit = "rad" if kind == "target" else "N·m"
    for j in range(joints):
        u = commands[ticks, k, j]
        actions.append(RawChannel("actions", f"command_{j}", unit, t + offset, u, f"log {k}"))
        seen = u + 0.02 * u.std() * rng.normal(size=len(u))
        measured.append(RawChannel("measured_actions", f"command_{j}", unit, t + offset, seen, f"log {k}"))
    recording = RawRecording(f"log{k}", (*channels, *velocities, *actions, *measured), "commanded")
    return Log(recording, kind, joints, dt, latency)


Plant = Callable[[Log, np.random.Generator], RawRecording]


def _change(log: Log, group: str, number: int | None, values: Callable[[RawChannel], Array]) -> RawRecording:
    """Change the values of the channels of a group (or of one of them)."""
    seen, channels = 0, []
    for c in log.recording.channels:
        mine = c.group == group.split(".")[0] and c.name.startswith(group.split(".")[-1] if "." in group else "")
        if mine and (number is None or seen == number):
            c = replace(c, values=values(c))
        seen += mine
        channels.append(c)
    return replace(log.recording, channels=tuple(channels))


def _restamp(log: Log, t: Array, rows: NDArray[np.int_] | None = None) -> RawRecording:
    rows = np.arange(len(t)) if rows is None else rows
    return replace(
        log.recording, channels=tuple(replace(c, t=t, values=c.values[rows]) for c in log.recording.channels)
    )


def _clock(log: Log) -> Array:
    return log.recording.channels[0].t


def _jitter(log: Log, rng: np.random.Generator) -> RawRecording:
    t = _clock(log)
    late = t[0] + np.cumsum(np.concatenate([[0.0], log.dt * rng.uniform(0.5, 1.5, len(t) - 1)]))
    channels = tuple(replace(c, t=late, values=np.interp(late, t, c.values)) for c in log.recording.channels)
    return replace(log.recording, channels=channels)


def _gap(log: Log, rng: np.random.Generator) -> RawRecording:
    t = _clock(log)
    a = int(rng.integers(len(t) // 4, len(t) // 2))
    rows = np.concatenate([np.arange(a), np.arange(a + max(8, int(0.2 / log.dt)), len(t))])
    return _restamp(log, t[rows], rows)


def _duplicates(log: Log, rng: np.random.Generator) -> RawRecording:
    t = _clock(log)
    rows = np.arange(len(t))
    stale = rng.random(len(t)) < 0.03
    rows[1:][stale[1:]] -= 1
    return _restamp(log, t, rows)


def _missing(log: Log, rng: np.random.Generator) -> RawRecording:
    lost = rng.random(len(_clock(log))) < 0.002
    lost[5] = True
    return _change(log, "observations.velocity", 0, lambda c: np.where(lost, np.nan, c.values))


def _stuck(log: Log, rng: np.random.Generator) -> RawRecording:
    n = len(_clock(log))
    a = int(rng.integers(n // 5, n // 2))
    b = a + n // 4

    def freeze(c: RawChannel) -> Array:
        return np.concatenate([c.values[:a], np.full(b - a, c.values[a]), c.values[b:]])

    return _change(log, f"observations.{rng.choice(['position', 'velocity'])}", 0, freeze)


def _saturated(log: Log, rng: np.random.Generator) -> RawRecording:
    def clip(c: RawChannel) -> Array:
        limit = np.quantile(abs(c.values), 0.8)
        return np.clip(c.values, -limit, limit)

    return _change(log, "observations.velocity", 0, clip)


def _degrees(log: Log, rng: np.random.Generator) -> RawRecording:
    return _change(log, "observations.position", 0, lambda c: np.rad2deg(c.values))


def _order(log: Log, rng: np.random.Generator) -> RawRecording:
    names = [c.name for c in log.recording.group("actions")]
    turned = dict(zip(names, [*names[1:], names[0]], strict=True))
    by_role = {c.role: c for c in log.recording.channels}

    def other(c: RawChannel) -> RawChannel:
        if c.group not in ("actions", "measured_actions"):
            return c
        return replace(by_role[f"{c.group}.{turned[c.name]}"], name=c.name)

    return replace(log.recording, channels=tuple(map(other, log.recording.channels)))


def _sign(log: Log, rng: np.random.Generator) -> RawRecording:
    flipped = _change(log, "actions", 0, lambda c: -c.values)
    return _change(replace(log, recording=flipped), "measured_actions", 0, lambda c: -c.values)


def _scale(log: Log, rng: np.random.Generator) -> RawRecording:
    return _change(log, "observations.velocity", 0, lambda c: rng.choice([0.5, 2.0]) * c.values)


def _lag(log: Log, rng: np.random.Generator) -> RawRecording:
    late = max(0.012, 2.5 * log.dt)
    return _change(log, "observations.velocity", 0, lambda c: np.interp(c.t - late, c.t, c.values))


def _copied(log: Log, rng: np.random.Generator) -> RawRecording:
    asked = {c.name: c.values for c in log.recording.group("actions")}
    return _change(log, "measured_actions", None, lambda c: asked[c.name])


def _idle(log: Log, rng: np.random.Generator) -> RawRecording:
    n = len(_clock(log))
    slow = np.linspace(0.0, 1.0, n)
    still = _change(log, "observations.position", 0, lambda c: c.values[0] + slow)
    return _change(
        replace(log, recording=still), "observations.velocity", 0, lambda c: np.full(n, 1 / (c.t[-1] - c.t[0]))
    )


def _shifted(log: Log, rng: np.random.Generator) -> RawRecording:
    return _change(log, "actions", None, lambda c: np.concatenate([c.values[:1], c.values[:-1]]))


def _short(log: Log, rng: np.random.Generator) -> RawRecording:
    rows = np.arange(min(45, int(0.6 / log.dt)))
    return _restamp(log, _clock(log)[rows], rows)


def _always(log: Log) -> bool:
    return True


def _several(log: Log) -> bool:
    return log.joints > 1


def _efforts_seen(log: Log) -> bool:
    return log.kind == "torque" and log.dt - log.latency > 0.4 * log.dt and log.dt <= 0.01


# fault -> its code, how it is planted, and the logs in which it can be seen at all
FAULTS: dict[str, tuple[str, Plant, Callable[[Log], bool]]] = {
    "jitter": ("LOG001", _jitter, _always),
    "gap": ("LOG002", _gap, _always),
    "repeated samples": ("LOG003", _duplicates, _always),
    "missing values": ("LOG004", _missing, _always),
    "stuck channel": ("LOG005", _stuck, _always),
    "saturated channel": ("LOG006", _saturated, _always),
    "degrees for radians": ("LOG007", _degrees, _always),
    "order of joints": ("LOG008", _order, _several),
    "sign of a joint": ("LOG009", _sign, _always),
    "velocity of another scale": ("LOG010", _scale, _always),
    "late velocity": ("LOG011", _lag, _always),
    "commands copied from measurements": ("LOG013", _copied, _always),
    "low excitation": ("LOG014", _idle, _always),
    "off by one": ("LOG015", _shifted, _efforts_seen),
    "too short": ("LOG016", _short, _always),
}
