"""A Kalman filter of joint positions: causal velocities and how sure they are, from encoders alone.

Each joint is a point whose jerk is white noise (the Wiener-process acceleration model of Bar-Shalom, Li and Kirubarajan
2001, section 6.2.3), read by an encoder with white noise. Both noises can be fitted to recordings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from sim2real.episodes import Array, Episode
from sim2real.errors import LogError
from sim2real.windows import joint_positions

ROWS = 3000  # of a recording that noises are fitted to


def transition(dt: float) -> Array:
    """Return what position, velocity and acceleration become after a time [s]: (3, 3)."""
    return np.array([[1.0, dt, dt * dt / 2], [0.0, 1.0, dt], [0.0, 0.0, 1.0]])


def process_noise(dt: float) -> Array:
    """Return the covariance that white jerk of density one adds in a time [s]: (3, 3)."""
    return np.array(
        [
            [dt**5 / 20, dt**4 / 8, dt**3 / 6],
            [dt**4 / 8, dt**3 / 3, dt**2 / 2],
            [dt**3 / 6, dt**2 / 2, dt],
        ]
    )


class KalmanFilter:
    """`StateEstimator` of n plants from readings of their positions, at irregular times.

    Args:
        jerk: (D,) square root of the spectral density of the jerk of each joint [rad/s³/√Hz, m/s³/√Hz].
        noise: (D,) standard deviation of a reading of each joint [rad, m].

    Attributes:
        covariance: (D, 3, 3) of position, velocity and acceleration, the same for all plants.
    """

    def __init__(self, jerk: Sequence[float] | Array, noise: Sequence[float] | Array) -> None:
        self.jerk, self.noise = np.atleast_1d(np.asarray(jerk, float)), np.atleast_1d(np.asarray(noise, float))
        ok = self.jerk.shape == self.noise.shape and self.jerk.ndim == 1
        if not ok or not (np.isfinite(self.jerk).all() and (self.jerk > 0).all() and (self.noise > 0).all()):
            raise LogError(f"a Kalman filter takes a positive jerk and noise a joint, found {jerk} and {noise}")
        self.covariance = np.zeros((len(self.jerk), 3, 3))
        self._state = np.zeros((0, len(self.jerk), 3))

    @classmethod
    def fit(cls, episodes: Sequence[Episode], channels: Sequence[str]) -> KalmanFilter:
        """Return the filter whose innovations are most likely on recordings, joint by joint.

        Args:
            episodes: the recordings; the first 3,000 rows of each are used.
            channels: the observations that are joint positions.

        Raises:
            LogError: there are no episodes, or a joint does not move in any.
        """
        if not episodes:
            raise LogError("the noises of a Kalman filter are fitted to recordings, found none")
        jerks, noises = [], []
        for k, channel in enumerate(channels):
            parts = [(e.observed_at[:ROWS], joint_positions(e, list(channels))[:ROWS, k]) for e in episodes]
            changes = np.concatenate([abs(np.diff(q)) for _, q in parts])
            changes = changes[changes > 0]
            if not len(changes):
                raise LogError(f"{channel} does not move in any recording; nothing can be fitted to it")
            step = float(np.quantile(changes, 0.02))
            least = max(step / math.sqrt(12) / 4, 1e-12)  # an encoder is no better than a fraction of its step
            period = float(np.median(np.concatenate([np.diff(t) for t, _ in parts])))
            rough = float(np.median(changes)) / period / 0.1**2.5

            jerk, noise = _most_likely(parts, rough, step, least)
            jerks.append(jerk)
            noises.append(noise)
        return cls(jerks, noises)

    def reset(self, positions: Array) -> None:
        """Start anew, at rest at `positions` (n, D); velocity and acceleration are unknown."""
        n, dof = positions.shape
        if dof != len(self.jerk):
            raise LogError(f"the filter is of {len(self.jerk)} joints, found positions of {dof}")
        self._state = np.concatenate([positions[..., None], np.zeros((n, dof, 2))], -1)
        self.covariance = np.stack([_start(j, r) for j, r in zip(self.jerk, self.noise, strict=True)])

    def update(self, elapsed: float, positions: Array, commands: Array) -> Array:
        """Take the reading `positions` (n, D) that came `elapsed` [s] after the last one; return the estimate (n, 2 D).

        Commands are not used: this filter has no model of the plant.
        """
        step = transition(elapsed)
        predicted = self._state @ step.T
        p = step @ self.covariance @ step.T + self.jerk[:, None, None] ** 2 * process_noise(elapsed)
        s = p[:, 0, 0] + self.noise**2
        gain = p[:, :, 0] / s[:, None]
        self._state = predicted + gain * (positions - predicted[..., 0])[..., None]
        p = p - gain[:, :, None] * p[:, None, 0, :]
        self.covariance = (p + p.transpose(0, 2, 1)) / 2
        return np.concatenate([self._state[..., 0], self._state[..., 1]], -1)


def _most_likely(parts: Sequence[tuple[Array, Array]], jerk: float, noise: float, least: float) -> tuple[float, float]:
    """Return the jerk and the noise, of `least` at least, under which readings are most likely; from a first guess."""

    def cost(x: Array) -> float:
        return -sum(log_likelihood(t, q, math.exp(x[0]), least + math.exp(x[1])) for t, q in parts)

    start = np.array([math.log(jerk), math.log(noise)])
    found = minimize(cost, start, method="Nelder-Mead", options={"xatol": 0.02, "fatol": 0.05, "maxfev": 120})
    return math.exp(found.x[0]), least + math.exp(found.x[1])


def _start(jerk: float, noise: float) -> Array:
    """Return the covariance of a joint of which one position is known: it moves as its jerk makes it in a second."""
    return np.diag([noise**2, jerk**2 / 3 + noise**2, jerk**2])


def log_likelihood(t: Array, q: Array, jerk: float, noise: float) -> float:
    """Return the log likelihood of readings, by the innovations of the filter.

    Args:
        t: (N,) clock [s].
        q: (N,) positions.
        jerk: square root of the spectral density of the jerk.
        noise: standard deviation of a reading.
    """
    density, variance, total = jerk * jerk, noise * noise, 0.0
    x, v, a = float(q[0]), 0.0, 0.0
    (pxx, _, _), (_, pvv, _), (_, _, paa) = _start(jerk, noise).tolist()
    pxv = pxa = pva = 0.0
    for dt, reading in zip(np.diff(t).tolist(), q[1:].tolist(), strict=True):  # written out: it runs for every guess
        h = dt * dt / 2
        x, v = x + v * dt + a * h, v + a * dt
        bxv, bxa, bva = pxv + pvv * dt + pva * h, pxa + pva * dt + paa * h, pva + paa * dt
        bxx = pxx + pxv * dt + pxa * h
        pxx = bxx + bxv * dt + bxa * h + density * dt**5 / 20
        pxv = bxv + bxa * dt + density * dt**4 / 8
        pxa = bxa + density * dt**3 / 6
        pvv = pvv + pva * dt + bva * dt + density * dt**3 / 3
        pva = bva + density * dt**2 / 2
        paa = paa + density * dt
        s = pxx + variance
        e = reading - x
        total -= 0.5 * (math.log(2 * math.pi * s) + e * e / s)
        kx, kv, ka = pxx / s, pxv / s, pxa / s
        x, v, a = x + kx * e, v + kv * e, a + ka * e
        pvv, pva, paa = pvv - kv * pxv, pva - kv * pxa, paa - ka * pxa
        pxv, pxa, pxx = pxv - kx * pxv, pxa - kx * pxa, pxx - kx * pxx
    return total


__all__ = ["KalmanFilter", "log_likelihood", "process_noise", "transition"]
