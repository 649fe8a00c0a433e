"""Adaptation: a few seconds of a changed robot name what changed, and an unchanged robot changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sim2real.adapters import Chain
from sim2real.calibration import Posterior, adapt
from sim2real.episodes import Episode
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite

MASS, DAMPING, DELAY = "dynamics.payload.mass", "dynamics.hinge.damping", "execution.latency.delay"
ARM = """
<mujoco>
  <option gravity="0 0 -9.81"/>
  <worldbody>
    <body name="payload">
      <inertial pos="0 0 -0.5" mass="0.5" diaginertia="1e-4 1e-4 1e-4"/>
      <joint name="hinge" type="hinge" axis="0 -1 0" damping="0.02" armature="0.002"/>
    </body>
  </worldbody>
  <actuator><motor name="motor" joint="hinge"/></actuator>
</mujoco>
"""
TRUTH = {MASS: 0.6, DAMPING: 0.04, DELAY: 0.02}


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    path = tmp_path_factory.mktemp("robot") / "arm.xml"
    path.write_text(ARM)
    return Plant(RobotModel(path), Chain.from_config([{"stage": "latency"}]), 0.005, threads=1)


@pytest.fixture(scope="module")
def posterior(plant: Plant) -> Posterior:
    """What an earlier, longer recording would have left: the truth, and a few percent of doubt about it."""
    notations = {MASS: "*U(0.3, 4)", DAMPING: "=U(0, 0.3)", DELAY: "=U(0, 0.06)"}
    prior = ParameterSet.parse(notations, plant.units()).against(plant.nominal())
    best = np.array([TRUTH[name] for name in prior.names])
    samples = best + np.random.default_rng(0).normal(size=(400, 3)) * [0.005, 0.002, 0.0004]
    return Posterior(prior, best, samples, np.array([5e-4]))


def two_seconds(plant: Plant, truth: dict[str, float], seed: int) -> Episode:
    twin = Twin(plant, truth, Chain.from_config([{"stage": "encoder", "step": 0.00153398}]))
    return twin.record("log", excite(np.random.default_rng(seed), 2, 0.02, np.array([4.0]), (0.5, 1.3)), 0.02)


def test_a_doubled_payload_is_what_moved(plant: Plant, posterior: Posterior) -> None:
    log = two_seconds(plant, TRUTH | {MASS: 2 * TRUTH[MASS]}, seed=0)
    lines: list[str] = []
    found = adapt(plant, posterior, [log], channels=["position"], rng=np.random.default_rng(1), progress=lines.append)
    assert found.moved == MASS
    assert found.was == TRUTH[MASS]
    low, high = found.posterior.interval(MASS)
    assert low <= 2 * TRUTH[MASS] <= high
    assert high - low < 0.3 * TRUTH[MASS]
    assert min(found.errors, key=lambda name: found.errors[name]) == MASS
    # what did not move is still known: within a few old standard deviations
    assert abs(found.posterior.values[DAMPING] - TRUTH[DAMPING]) < 0.008
    # the new posterior starts from the old prior, so that the next adaptation can free everything again
    assert found.posterior.prior == posterior.prior
    assert f"{MASS} moved from 0.6" in found.sentence()
    assert "a factor of 2.0" in found.sentence() or "a factor of 1.9" in found.sentence()
    assert len(lines) == 3
    json.dumps(found.to_json())


def test_an_unchanged_robot_changes_nothing(plant: Plant, posterior: Posterior) -> None:
    log = two_seconds(plant, TRUTH, seed=2)
    found = adapt(plant, posterior, [log], channels=["position"], rng=np.random.default_rng(1))
    assert found.moved == ""
    np.testing.assert_allclose(found.posterior.best, posterior.best, rtol=0.05)
    assert found.sentence().startswith("No parameter moved")


def test_what_left_a_posterior_that_gave_way_is_told(plant: Plant, posterior: Posterior) -> None:
    # so vague a posterior does not hold parameters against two seconds of logs: nothing has to be freed
    vague = Posterior(
        posterior.prior, posterior.best, posterior.best + 5 * (posterior.samples - posterior.best), posterior.noise
    )
    changed = {MASS: 0.75, DAMPING: 0.1, DELAY: 0.02}
    found = adapt(
        plant, vague, [two_seconds(plant, changed, seed=0)], channels=["position"], rng=np.random.default_rng(1)
    )
    assert found.moved == "all"
    for name in (MASS, DAMPING):
        low, high = found.posterior.interval(name)
        assert low <= changed[name] <= high
    told = found.sentence()
    assert told.startswith("Several parameters moved")
    assert f"{MASS} from 0.6 to 0.75" in told
    assert f"{DAMPING} from 0.04 to 0.1" in told
    assert DELAY not in told
    json.dumps(found.to_json())


def test_measured_actions_cannot_move_the_execution(plant: Plant, posterior: Posterior) -> None:
    heavy = TRUTH | {MASS: 2 * TRUTH[MASS]}
    efforts = two_seconds(plant.without_chain(), {n: heavy[n] for n in (MASS, DAMPING)}, 3)
    log = replace(efforts, action_source="measured")
    found = adapt(plant, posterior, [log], channels=["position"], rng=np.random.default_rng(1))
    assert found.moved == MASS
    assert DELAY not in found.errors
    # nothing was learned about the delay, so what was known of it stays
    assert found.posterior.names == posterior.names
    assert found.posterior.values[DELAY] == TRUTH[DELAY]
    assert found.posterior.interval(DELAY) == pytest.approx(posterior.interval(DELAY), rel=0.05)
