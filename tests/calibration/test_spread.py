"""The spread of a fit against what linear regression says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim2real.calibration import identify
from sim2real.episodes import Channels, Episode
from sim2real.plant import Plant
from sim2real.randomization import FunctionModel, FunctionParameter, ParameterSet

NOISE, PULL = 0.01, 2.0


def cart(x: Any, u: Any, p: Any, dt: float) -> Any:
    q, v = x[:, :1], x[:, 1:]
    a = p["cart.pull"] * u
    return np.concatenate([q + dt * v + 0.5 * dt**2 * a, v + dt * a], 1)  # exact for held commands


def recorded(rng: np.random.Generator, seconds: float) -> Episode:
    period, t = 0.01, np.arange(round(seconds / 0.01) + 1) * 0.01
    u = np.repeat(rng.choice([-1.0, 1.0], round(seconds / 0.1)), 10)[:, None]
    q, v = [0.0], 0.0
    for a in PULL * u[:, 0]:
        q.append(q[-1] + period * v + 0.5 * period**2 * a)
        v += period * a
    readings = np.array(q)[:, None] + NOISE * rng.normal(size=(len(t), 1))
    return Episode("log", t, readings, t[:-1], u, "commanded", Channels((("x", "m"),), (("u", "N"),)))


def expected(episode: Episode, window: float) -> float:
    """Standard deviation of the pull by ordinary least squares, each window with its own start."""
    many, t, total = round(window / 0.01), episode.observed_at, 0.0
    for first in range(0, len(t) - many, many):
        u, q, v = episode.actions[first : first + many, 0], [0.0], 0.0
        for a in u:
            q.append(q[-1] + 0.01 * v + 0.5 * 0.01**2 * a)
            v += 0.01 * a
        starts = np.stack([np.ones(many + 1), np.arange(many + 1) * 0.01], 1)
        slope = np.array(q) - starts @ np.linalg.lstsq(starts, np.array(q), rcond=None)[0]
        total += slope @ slope
    return float(NOISE / np.sqrt(total))


def test_intervals_are_as_wide_as_those_of_linear_regression() -> None:
    """A soft-L1 loss with its knee at two standard deviations loses a few percent to least squares, no more."""
    model = FunctionModel(
        cart, {"dynamics.cart.pull": FunctionParameter(1.0, "1/kg", low=0.0)}, ("x",), ("u",), ("m",), ("N",)
    )
    plant = Plant(model, timestep=0.01)
    prior = ParameterSet.parse({"dynamics.cart.pull": "=U(0, 10)"}, plant.units())
    ratios, z = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        log = recorded(rng, 60.0)
        found = identify(plant, [log], prior, channels=["x"], tries=0, starts=1, samples=800, rng=rng)
        sigma = expected(log, 0.5)
        ratios.append(found.samples.std() / sigma)
        z.append((found.values["dynamics.cart.pull"] - PULL) / sigma)
        assert found.noise == pytest.approx([NOISE], rel=0.1)
        assert found.evidence["settled"]
    assert np.mean(ratios) == pytest.approx(1.05, abs=0.09)
    assert 0.5 < np.std(z) < 1.6
