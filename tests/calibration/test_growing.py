"""Windows that grow for as long as motions can be told from their start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim2real.adapters import Chain
from sim2real.calibration import Posterior, identify
from sim2real.calibration.growing import MAGNIFIED, longest_possible, next_length
from sim2real.episodes import Channels, Episode
from sim2real.errors import ParameterError
from sim2real.plant import Plant
from sim2real.randomization import FunctionModel, FunctionParameter, ParameterSet

NAME = "dynamics.cart.mass"


def cart(rate: float) -> Plant:
    """A mass on a spring that pushes it away (rate > 0) or nothing at all (0): x'' = rate^2 x + u / m."""

    def step(x: Any, u: Any, p: Any, dt: float) -> Any:
        q, v = x[:, :1], x[:, 1:]
        v = v + dt * (rate**2 * q + u / p["cart.mass"])
        return np.concatenate([q + dt * v, v], 1)

    mass = {NAME: FunctionParameter(1.0, "kg", low=1e-3)}
    return Plant(FunctionModel(step, mass, ("slider",), ("motor",)), Chain(), timestep=0.002, threads=1)


def recorded(plant: Plant, seconds: float, feedback: float = 0.0) -> Episode:
    rng, period = np.random.default_rng(0), 0.01
    running = plant.start(1, {NAME: np.array([1.3])})
    running.reset(np.zeros((1, 2)))
    states, commands = [np.zeros(2)], []
    for k in range(round(seconds / period)):
        u = np.sin(3 * k * period) + 0.3 * rng.normal() - feedback * (2 * states[-1][0] + states[-1][1])
        commands.append([u])
        states.append(running.step(np.full((1, 5, 1), u))[0, -1])
    t = period * np.arange(len(states))
    return Episode(
        name="log",
        observed_at=t,
        observations=np.stack(states)[:, :1] + 0.001 * rng.normal(size=(len(t), 1)),
        commanded_at=t[:-1],
        actions=np.array(commands),
        action_source="commanded",
        channels=Channels((("position", "m"),), (("force", "N"),)),
    )


def fit(plant: Plant, log: Episode, window: Any) -> Posterior:
    prior = ParameterSet.parse({NAME: "*U(0.5, 3)"}, plant.units())
    return identify(
        plant,
        [log],
        prior,
        channels=["position"],
        window=window,
        tries=4,
        starts=1,
        block=0.5,
        examine=False,
        rng=np.random.default_rng(1),
    )


def test_lengths_grow_to_the_limit() -> None:
    def lengths(limit: float, longest: float) -> list[float]:
        out = [next_length(0.0, limit, longest)]
        while out[-1] < limit:
            out.append(next_length(out[-1], limit, longest))
        return out

    assert lengths(0.5, 60.0) == [0.5]
    assert lengths(0.9, 60.0) == [0.9]
    assert lengths(3.0, 60.0) == [0.5, 3.0]
    assert lengths(10.0, 60.0) == [0.5, 2.0, 10.0]
    assert lengths(np.inf, 60.0) == [0.5, 2.0, 8.0, np.inf]
    assert lengths(np.inf, 0.7) == [np.inf]


def test_a_motion_that_stays_near_is_replayed_as_a_whole_and_knows_more() -> None:
    plant = cart(0.0)
    log = recorded(plant, 8.0)
    short, grown = fit(plant, log, 0.5), fit(plant, log, "auto")
    assert grown.evidence["window"] == pytest.approx(8.0, abs=0.02)
    assert grown.samples.std() < 0.3 * short.samples.std()
    assert abs(grown.best[0] - 1.3) < 4 * grown.samples.std()


def test_windows_end_where_a_motion_diverges() -> None:
    rate = 3.0
    plant = cart(rate)
    log = recorded(plant, 8.0, feedback=20.0)
    found = fit(plant, log, "auto")
    # a change of the start position grows as cosh(rate t): up to the time when it has grown MAGNIFIED times
    reach = np.arccosh(MAGNIFIED) / rate
    assert 0.5 * reach < found.evidence["window"] <= reach + 0.02
    assert abs(found.best[0] - 1.3) < 4 * found.samples.std()


def test_another_word_is_refused() -> None:
    with pytest.raises(ParameterError, match="expected window=\"auto\" or a length in seconds, found 'long'"):
        fit(cart(0.0), recorded(cart(0.0), 2.0), "long")


def test_excluded_stretches_bound_the_windows() -> None:
    log = recorded(cart(0.0), 8.0)
    assert longest_possible([log]) == np.inf
    cut = replace(log, excluded=((2.0, 3.0), (3.2, 3.7)))
    assert longest_possible([log, cut]) == pytest.approx(4.0)  # 3.7 to 8, in steps of 0.5
    found = fit(cart(0.0), cut, "auto")
    assert found.evidence["window"] == pytest.approx(4.0, abs=0.02)
