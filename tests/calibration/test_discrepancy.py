"""What every joint may have that no parameter describes is fitted along, and left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim2real.adapters import Chain, Gain
from sim2real.calibration import Posterior, diagnose, identify
from sim2real.calibration.discrepancy import discrepancies
from sim2real.episodes import Channels, Episode
from sim2real.errors import ParameterError
from sim2real.plant import Plant
from sim2real.randomization import FunctionModel, FunctionParameter, ParameterSet, RobotModel
from sim2real.twin import Twin, excite

MASS, DAMPING = "dynamics.payload.mass", "dynamics.hinge.damping"
DRY, SPRING = "dynamics.hinge.frictionloss", "dynamics.hinge.stiffness"


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant(RobotModel("pendulum"), Chain([Gain(gain=2.0)]), timestep=0.005, threads=1)


@pytest.fixture(scope="module")
def log(plant: Plant) -> Episode:
    """A pendulum with more dry friction than its model has."""
    rng = np.random.default_rng(0)
    commands = excite(rng, 14.0, 0.02, np.array([2.0]), (0.5, 1.3))
    made = Twin(plant, {MASS: 0.83, DAMPING: 0.12, DRY: 0.2}).record("log", commands, hold=0.02)
    noisy = made.observations.copy()
    noisy[:, 0] += 0.003 * rng.normal(size=len(noisy))
    return Episode(**{**made.__dict__, "observations": noisy})


def prior(plant: Plant, *more: str) -> ParameterSet:
    return ParameterSet.parse(
        {MASS: "*U(0.4, 3)", DAMPING: "=U(0, 0.5)", **dict.fromkeys(more, "=U(0, 1)")}, plant.units()
    )


def fit(plant: Plant, log: Episode, **settings: Any) -> Posterior:
    settings = {"tries": 8, "starts": 1, "block": 0.5, "rng": np.random.default_rng(1), **settings}
    return identify(plant, [log], prior(plant), channels=["position"], **settings)


def test_it_keeps_friction_out_of_the_parameters(plant: Plant, log: Episode) -> None:
    misled, told = fit(plant, log), fit(plant, log, discrepancy=0.05)
    assert misled.names == (MASS, DAMPING)
    assert told.names == (MASS, DAMPING, DRY, SPRING)

    def off(found: Posterior) -> float:
        return float(abs(found.values[DAMPING] - 0.12) / found.samples[:, 1].std())

    assert off(misled) > 5
    assert off(told) < 3
    assert told.values[DRY] == pytest.approx(0.2, abs=0.03)
    assert told.evidence["discrepancy"] == {n: plant.nominal()[n] for n in (DRY, SPRING)}
    # nothing is amiss with a spring that is not there
    assert not any(SPRING in f.subject for f in diagnose(told))
    missing = [f for f in diagnose(told) if f.code == "missing-term"]
    assert [f.subject for f in missing] == [(DRY,)]
    assert "the recordings ask for dynamics.hinge.frictionloss 0." in missing[0].what
    assert not any(f.code == "missing-term" for f in diagnose(misled))


def test_widths_are_a_share_of_the_effort(plant: Plant) -> None:
    t = 0.005 * np.arange(2001)
    angle = 0.3 * np.sin(np.pi * t)  # five whole periods
    log = Episode(
        name="swing",
        observed_at=t,
        observations=angle[:, None],
        commanded_at=t[:-1],
        actions=1.5 * np.sign(np.sin(7 * t[:-1]))[:, None],
        action_source="commanded",
        channels=Channels((("position", "rad"),), (("torque", "N·m"),)),
    )
    some = prior(plant).against(plant.nominal())
    found = {p.name: p.distribution for p in discrepancies(plant, [log], some, ["position"], 0.02)}
    assert set(found) == {DRY, SPRING}  # damping is fitted anyway
    effort = 2.0 * 1.5  # through the gain
    assert found[DRY].sigma == pytest.approx(0.02 * effort)
    # of a sine, nine tenths lie below sin(0.9 pi / 2)
    assert found[SPRING].sigma == pytest.approx(0.02 * effort / (0.3 * np.sin(0.45 * np.pi)), rel=0.02)
    assert [d.mu for d in found.values()] == [plant.nominal()[n] for n in found]
    found = {p.name: p.distribution for p in discrepancies(plant, [log], ParameterSet(()), ["position"], 0.02)}
    assert found[DAMPING].sigma == pytest.approx(0.02 * effort / (np.pi * 0.3 * np.sin(0.45 * np.pi)), rel=0.02)


def test_what_has_no_such_parameters_is_refused(plant: Plant, log: Episode) -> None:
    def step(x: Any, u: Any, p: Any, dt: float) -> Any:
        v = x[:, 1:] + dt * u / p["cart.mass"]
        return np.concatenate([x[:, :1] + dt * v, v], 1)

    mass = {"dynamics.cart.mass": FunctionParameter(1.0, "kg", low=1e-3)}
    cart = Plant(FunctionModel(step, mass, ("slider",), ("motor",)), timestep=0.005, threads=1)
    some = ParameterSet.parse({"dynamics.cart.mass": "*U(0.5, 2)"}, cart.units())
    with pytest.raises(ParameterError, match="or not in the model, as in one that is a function"):
        identify(cart, [log], some, channels=["position"], discrepancy=0.02, rng=np.random.default_rng(0))
    everything = prior(plant, DRY, SPRING).against(plant.nominal())
    with pytest.raises(ParameterError, match="are either in the prior already"):
        discrepancies(plant, [log], everything, ["position"], 0.02)
    known = Posterior(some, np.ones(1), np.ones((5, 1)), np.ones(1))
    with pytest.raises(ParameterError, match="found a posterior"):
        discrepancies(plant, [log], known, ["position"], 0.02)
