"""Causal state estimation from encoder positions: a derivative filter, and an observer with a model.

Recorded velocities lag or are noisy, so the state that a window or a control step starts from is estimated from the
positions and the commands up to that instant, and from nothing later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array, Episode
from sim2real.plant import Plant, RunningPlant
from sim2real.windows import Windows, at_offsets, cut_windows, joint_positions


@dataclass(frozen=True)
class Estimate:
    """What is known of n plants at one instant.

    Attributes:
        state: (n, X) joint positions, then velocities.
        commands: (n, L, A) the last L commands of the model clock, oldest first: some are still on their way.
        positions: (n, K, D) the last K positions read before the present ones, on the model clock, oldest first; for
            models that look back.
        reading: (n, D) the present positions as they were read, where they are known beside the estimate.
    """

    state: Array
    commands: Array
    positions: Array | None = None
    reading: Array | None = None


class StateEstimator(Protocol):
    """Causal estimation of the state of n plants from readings of their positions."""

    def reset(self, positions: Array) -> None:
        """Start anew, at rest at `positions` (n, D), with no command sent before."""
        ...

    def update(self, elapsed: float, positions: Array, commands: Array) -> Array:
        """Take the reading `positions` (n, D) that came `elapsed` [s] after the last one; return the estimate (n, X).

        `commands` (n, A) were in force in between.
        """
        ...


def causal_velocity(t: Array, q: Array, i: int, span: float, order: int = 2, fewest: int = 6) -> Array:
    """Return the velocity at sample i: the slope there of a polynomial through the last `span` seconds.

    Args:
        t: (N,) [s].
        q: (N, D) positions.
        i: sample; only samples up to it are used.
        span: [s], extended to at least `fewest` samples.
        order: of the polynomial.
    """
    return _fit(t, q, i, span, order, fewest)[1]


def _fit(t: Array, q: Array, i: int, span: float, order: int, fewest: int, back: float = 0.0) -> tuple[Array, Array]:
    """Position and velocity, `back` seconds before sample i, of the polynomial that ends at sample i."""
    a = max(min(int(np.searchsorted(t, t[i] - span - 1e-9)), i - fewest + 1), 0)
    x = t[a : i + 1] - t[i]
    order = min(order, len(x) - 1)
    if order < 1:
        return q[i], np.zeros(q.shape[1])
    scale = max(-x[0], 1e-9)
    c = np.linalg.lstsq(np.vander(x / scale, order + 1, increasing=True), q[a : i + 1], rcond=None)[0]
    at, powers = -back / scale, np.arange(order + 1)
    value = (at**powers) @ c
    slope = (powers[1:] * at ** (powers[1:] - 1)) @ c[1:] / scale
    return value, slope


def centred_state(t: Array, q: Array, period: float, span: float = 0.04) -> tuple[Array, Array]:
    """Return a uniform clock (N',) and two-sided states on it (N', X): for training targets, never for predictions.

    A local parabola over `span` seconds (at least five samples) about each instant gives position and velocity.

    Args:
        t: (N,) [s].
        q: (N, D) positions.
        period: of the new clock [s].
        span: [s].
    """
    clock = t[0] + period * np.arange(int((t[-1] - t[0]) / period + 1e-6) + 1)
    states = np.empty((len(clock), 2 * q.shape[1]))
    for k, at in enumerate(clock):
        a, b = np.searchsorted(t, [at - span / 2, at + span / 2])
        nearest = int(np.clip(np.searchsorted(t, at), 0, len(t) - 1))
        a, b = max(min(int(a), nearest - 2), 0), min(max(int(b), nearest + 3), len(t))
        x = t[a:b] - at
        scale = max(float(np.abs(x).max()), 1e-9)
        c = np.linalg.lstsq(np.vander(x / scale, min(3, len(x)), increasing=True), q[a:b], rcond=None)[0]
        states[k] = np.concatenate([c[0], c[1] / scale])
    return clock, states


class DerivativeFilter:
    """`StateEstimator` without a model: a causal polynomial through the last readings.

    Args:
        span: of the polynomial [s].
        order: of the polynomial.
    """

    def __init__(self, span: float = 0.05, order: int = 2) -> None:
        self.span, self.order = span, order
        self._t: list[float] = []
        self._q: list[Array] = []

    def reset(self, positions: Array) -> None:
        self._t, self._q = [0.0], [positions.copy()]

    def update(self, elapsed: float, positions: Array, commands: Array) -> Array:
        self._t.append(self._t[-1] + elapsed)
        self._q.append(positions.copy())
        while len(self._t) > 6 and self._t[0] < self._t[-1] - self.span - 1e-9:
            del self._t[0], self._q[0]
        flat = np.stack(self._q).reshape(len(self._q), -1)
        velocity = causal_velocity(np.array(self._t), flat, len(flat) - 1, self.span, self.order)
        return np.concatenate([positions, velocity.reshape(positions.shape)], -1)


class ModelObserver:
    """`StateEstimator` with a model: a critically damped alpha-beta filter about the simulated plant.

    The plant predicts through its own chain, so that commands in flight are accounted for; each reading corrects
    position and velocity by alpha = 1 - theta^2 and beta = (1 - theta)^2 with theta = exp(-bandwidth * elapsed)
    (fading memory; Brookner 1998, section 1.2.6), for irregular readings too. A reading between two
    substeps corrects the nearer one, by what is predicted for its own instant.

    Args:
        plant: n running plants, its parameters written.
        bandwidth: [rad/s]; higher trusts the readings more.
    """

    def __init__(self, plant: RunningPlant, bandwidth: float = 30.0) -> None:
        self.plant, self.bandwidth = plant, bandwidth
        self._lead = 0.0  # of the last reading over the plant's substep [s]

    def reset(self, positions: Array) -> None:
        self.plant.reset(np.concatenate([positions, np.zeros_like(positions)], -1))
        self._lead = 0.0

    def update(self, elapsed: float, positions: Array, commands: Array) -> Array:
        timestep = self.plant.simulator.timestep
        steps = max(round((self._lead + elapsed) / timestep), 0)
        self._lead += elapsed - steps * timestep
        if steps:
            self.plant.step(np.repeat(commands[:, None], steps, 1))
        n, dof = positions.shape
        self.correct(positions, np.full(n, elapsed), np.full(n, self._lead), np.ones(n, bool))
        state = self.plant.state()
        state[:, :dof] += state[:, dof:] * self._lead
        return state

    def correct(self, positions: Array, elapsed: Array, lead: Array, mask: NDArray[np.bool_]) -> None:
        """Correct the plants of `mask` (n,) with readings taken `lead` (n,) [s] after the present substep.

        Args:
            positions: (n, D).
            elapsed: (n,) since the plant's last reading [s].
            lead: (n,) [s], less than a substep either way.
            mask: (n,).
        """
        state = self.plant.state()
        dof = positions.shape[1]
        q, v = state[:, :dof], state[:, dof:]
        theta = np.exp(-self.bandwidth * elapsed)[:, None]
        innovation = positions - (q + v * lead[:, None])
        corrected = np.concatenate(
            [q + (1 - theta**2) * innovation, v + (1 - theta) ** 2 / elapsed[:, None] * innovation], 1
        )
        self.plant.set_state(np.where(mask[:, None], corrected, state))


@dataclass(frozen=True)
class Observation:
    """How the state at the start of a window is estimated from the recording.

    Attributes:
        span: how much of the recording before the start is used [s].
        bandwidth: of the observer [rad/s].
    """

    span: float = 0.1
    bandwidth: float = 30.0

    def states(
        self,
        plant: Plant,
        values: dict[str, float],
        episodes: list[Episode],
        starts: list[NDArray[np.int_]],
        channels: list[str],
    ) -> Array:
        """Return the state estimate at each start: (W, X), from nothing later than the start.

        Args:
            plant: the model; without its chain for episodes whose actions were measured.
            values: the plant's parameters.
            episodes: the recordings.
            starts: for each, the observations to estimate at.
            channels: the observations that are joint positions.
        """
        measured = np.array([e.action_source == "measured" for e in episodes])
        owner = np.concatenate([np.full(len(s), e) for e, s in enumerate(starts)]).astype(int)
        out = np.empty((len(owner), 2 * len(channels)))
        for through_chain in (True, False):
            some = [e for e in range(len(episodes)) if measured[e] != through_chain and len(starts[e])]
            if some:
                rows = np.isin(owner, some)
                model = plant if through_chain else plant.without_chain()
                out[rows] = self._run(model, values, [episodes[e] for e in some], [starts[e] for e in some], channels)
        return out

    def _run(
        self,
        plant: Plant,
        values: dict[str, float],
        episodes: list[Episode],
        starts: list[NDArray[np.int_]],
        channels: list[str],
    ) -> Array:
        first, initial = [], []
        for episode, indices in zip(episodes, starts, strict=True):
            t, q = episode.observed_at, joint_positions(episode, channels)
            begin = np.searchsorted(t, t[indices] - self.span - 1e-9)
            begin = np.minimum(begin, np.maximum(indices - 5, 0))
            first.append(begin)
            for i, b in zip(indices, begin, strict=True):
                # the start of the history, from the history itself: later than b but not later than i
                initial.append(np.concatenate(_fit(t, q, i, t[i] - t[b], 2, 6, back=t[i] - t[b])))
        end = [e.observed_at[s] - e.observed_at[b] for e, s, b in zip(episodes, starts, first, strict=True)]
        stop = np.concatenate(end) / plant.timestep
        windows = cut_windows(
            episodes,
            first,
            channels=channels,
            length=(float(stop.max()) + 1) * plant.timestep,
            before=plant.filling,
            timestep=plant.timestep,
        )
        known = plant.nominal()
        running = plant.start(len(windows), {k: np.full(len(windows), v) for k, v in values.items() if k in known})
        return self._filter(running, windows, np.stack(initial), stop)

    def _filter(self, running: RunningPlant, windows: Windows, initial: Array, stop: Array) -> Array:
        observer, dt = ModelObserver(running, self.bandwidth), running.simulator.timestep
        running.reset(initial, windows.before)
        # each sample is used at the substep nearest to it, at most half a substep off, which `lead` makes good
        nearest = np.rint(windows.offset).astype(int)
        use = windows.valid & (windows.offset <= stop[:, None] + 1e-6)
        use[:, 0] = False  # the initial state has seen it
        gap = np.diff(windows.offset, axis=1, prepend=-1.0) * dt
        out, last = initial.copy(), np.rint(stop).astype(int)
        for k in range(1, int(last.max()) + 1):
            running.step(windows.commands[:, k - 1 : k])
            due = use & (nearest == k)
            hit = due.any(1)
            if hit.any():
                m = due.argmax(1)
                rows = np.arange(len(m))
                lead = np.where(hit, (windows.offset[rows, m] - k) * dt, 0.0)
                elapsed = np.where(hit, np.maximum(gap[rows, m], dt), 1.0)
                observer.correct(windows.positions[rows, m], elapsed, lead, hit)
            done = last == k
            if done.any():
                state = running.state()
                dof = state.shape[1] // 2
                rest = (stop[done] - k)[:, None] * dt
                out[done] = state[done]
                out[done, :dof] += rest * state[done, dof:]
        return out


__all__ = [
    "DerivativeFilter",
    "Estimate",
    "ModelObserver",
    "Observation",
    "StateEstimator",
    "at_offsets",
    "causal_velocity",
    "centred_state",
]
