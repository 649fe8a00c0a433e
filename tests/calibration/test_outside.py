"""Outside forces are found where they acted, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sim2real.adapters import Chain, Latency
from sim2real.calibration import diagnose, outside_forces, own_values
from sim2real.calibration.check import simulate_episode
from sim2real.calibration.posterior import Posterior
from sim2real.episodes import Episode
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite

MASS, DELAY = "dynamics.payload.mass", "execution.latency.delay"
TRUTH = {MASS: 0.7, DELAY: 0.02}


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant(RobotModel("pendulum"), Chain([Latency()]), timestep=0.005, threads=1)


def recording(plant: Plant, pushes: list[tuple[float, float, float]], seed: int = 0) -> Episode:
    """A minute of motion in which something else adds torque from, to [s], [N·m]."""
    rng = np.random.default_rng(seed)
    made = Twin(plant, TRUTH).record(f"log{seed}", excite(rng, 60, 0.02, np.array([2.0]), (0.5, 1.3)), hold=0.02)
    pushed = made.actions.copy()
    for start, stop, torque in pushes:
        pushed[(made.commanded_at >= start) & (made.commanded_at < stop)] += torque
    seen = simulate_episode(plant, replace(made, actions=pushed), TRUTH, ["position"], np.array([0.002]), rng)
    return replace(seen, actions=made.actions)


def test_a_push_is_found_when_and_as_strong_as_it_was(plant: Plant) -> None:
    pushes = [(20.0, 20.8, 1.5), (41.0, 41.5, -1.0)]
    found = outside_forces(plant, [recording(plant, pushes)], TRUTH, channels=["position"])
    assert len(found) == 2
    for force, (start, stop, torque) in zip(found, pushes, strict=True):
        assert force.start == pytest.approx(start, abs=0.3)
        assert force.stop == pytest.approx(stop, abs=0.3)
        assert force.effort == pytest.approx(torque, rel=0.35)
        assert (force.recording, force.unit) == ("log0", "N·m")


def test_where_nothing_pushes_nothing_is_found(plant: Plant) -> None:
    quiet = [recording(plant, [], seed) for seed in (1, 2)]
    assert len(outside_forces(plant, quiet, TRUTH, channels=["position"])) <= 2  # one a minute
    wrong = TRUTH | {MASS: 0.85}  # a model that is wrong all the time is no push
    assert len(outside_forces(plant, quiet, wrong, channels=["position"])) <= 4


def test_recordings_are_judged_with_values_of_their_own() -> None:
    own = {"a": {"mean": 0.6, "interval90": [0.5, 0.7]}, "b": {"mean": 0.9, "interval90": [0.8, 1.0]}}
    differs = {"b": {"parameter": DELAY, "own": 0.03, "common": 0.02, "error": 2.0, "error_own": 1.0}}
    push = {"recording": "a", "start": 1.0, "stop": 1.5, "action": "effort", "unit": "N·m", "effort": 1.2, "usual": 0.1}
    evidence = {"of_recordings": {MASS: own}, "recordings_differ": differs, "outside_forces": [push]}
    assert own_values(evidence) == {"a": {MASS: 0.6}, "b": {MASS: 0.9, DELAY: 0.03}}
    samples = np.random.default_rng(0).normal(0.6, 0.01, (100, 1))
    prior = ParameterSet.parse({MASS: "=U(0, 2)"}, {MASS: "kg"})
    posterior = Posterior(prior, np.array([0.6]), samples, np.array([0.01]), {**evidence, "recordings_differ": {}})
    (finding,) = diagnose(posterior)
    assert finding.code == "outside-force"
    assert "a from 1.0 to 1.5 s moves as if effort were +1.2 N·m more" in finding.what
