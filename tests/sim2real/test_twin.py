"""Twins: what they log, row by row, against motion that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sim2real.adapters import Chain
from sim2real.errors import ParameterError
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.twin import Twin, excite

Array = NDArray[np.float64]
DT, PERIOD = 0.001, 0.01
RAIL = """
<mujoco>
  <option gravity="0 0 0"/>
  <worldbody>
    <body name="cart">
      <inertial pos="0 0 0" mass="2" diaginertia="1 1 1"/>
      <joint name="rail" type="slide" axis="1 0 0"/>
    </body>
  </worldbody>
  <actuator><motor name="drive" joint="rail"/></actuator>
</mujoco>
"""


@pytest.fixture(scope="module")
def rail(tmp_path_factory: pytest.TempPathFactory) -> RobotModel:
    path: Path = tmp_path_factory.mktemp("robot") / "rail.xml"
    path.write_text(RAIL)
    return RobotModel(path)


def expected(forces: Array, mass: float, delay: float = 0.0) -> Array:
    """Positions (N + 1,) after each force, held for a period and late by `delay`: semi-implicit Euler by hand."""
    substeps = np.repeat(forces, round(PERIOD / DT))
    late = np.concatenate([np.zeros(round(delay / DT)), substeps])[: len(substeps)]
    position = DT * np.cumsum(DT * np.cumsum(late / mass))
    return np.concatenate([[0.0], position[round(PERIOD / DT) - 1 :: round(PERIOD / DT)]])


@pytest.mark.parametrize("delay", [0.0, 0.004, 0.02])
def test_each_row_is_the_reading_before_its_command(rail: RobotModel, delay: float) -> None:
    twin = Twin(
        Plant(rail, Chain.from_config([{"stage": "latency"}]), DT, threads=1),
        {"dynamics.cart.mass": 4.0, "execution.latency.delay": delay},
    )
    forces = np.random.default_rng(0).normal(size=(15, 1))
    log = twin.record("log", forces, 0.02)
    held = np.repeat(forces, 2, 0)  # two readings a command
    np.testing.assert_array_equal(log.actions, held)
    np.testing.assert_allclose(log.observed_at, PERIOD * np.arange(31), atol=1e-12)
    np.testing.assert_array_equal(log.commanded_at, log.observed_at[:-1])
    np.testing.assert_allclose(log.observations[:, 0], expected(held[:, 0], 4.0, delay), atol=1e-12)
    assert (log.name, log.action_source) == ("log", "commanded")


def test_a_recording_can_start_anywhere(rail: RobotModel) -> None:
    twin = Twin(Plant(rail, timestep=DT, threads=1))
    log = twin.record("log", np.zeros((20, 1)), PERIOD, start=np.array([0.3, -0.5]))
    np.testing.assert_allclose(log.observations[:, 0], 0.3 - 0.5 * log.observed_at, atol=1e-12)


def test_readings_are_whole_encoder_steps(rail: RobotModel) -> None:
    step = 0.0015
    twin = Twin(Plant(rail, timestep=DT, threads=1), perception=Chain.from_config([{"stage": "encoder", "step": step}]))
    running = twin.start(np.array([[0.1, 0.0], [-0.2, 1.0]]))
    for _ in range(30):
        reading, truth = running.step(np.array([[1.0], [-1.0]]), PERIOD), running.state()[:, :1]
        assert reading.shape == (2, 1)
        np.testing.assert_allclose(reading / step, np.rint(reading / step), atol=1e-9)
        assert np.abs(reading - truth).max() <= step / 2 + 1e-12
        assert np.abs(reading - truth).max() > 0.0
    np.testing.assert_array_equal(running.reading, reading)


def test_logged_velocities_lag(rail: RobotModel) -> None:
    chain = Chain.from_config([{"stage": "velocity_filter", "time_constant": 0.05}])
    twin = Twin(Plant(rail, timestep=DT, threads=1), perception=chain)
    log = twin.record("log", np.full((60, 1), 2.0), PERIOD)  # 1 m/s²
    assert log.channels.observations == (("position", "m"), ("velocity", "m/s"))
    assert log.observations[0].tolist() == [0.0, 0.0]
    # a first-order lag follows a ramp a time constant late
    np.testing.assert_allclose(log.observations[-1, 1], log.observed_at[-1] - 0.05, atol=2e-3)


def test_channels_are_named_after_the_joints() -> None:
    twin = Twin(Plant(RobotModel("cartpole"), timestep=DT, threads=1))
    joints, actuators = twin.plant.model.joint_names, twin.plant.model.actuator_names
    assert len(joints) == 2
    assert twin.channels.observations == ((f"{joints[0]}.position", "m"), (f"{joints[1]}.position", "rad"))
    assert twin.channels.actions == ((f"{actuators[0]}.effort", "N"),)
    pendulum = Twin(Plant(RobotModel("pendulum"), timestep=DT, threads=1))
    assert pendulum.channels.observations == (("position", "rad"),)
    assert pendulum.channels.actions == (("effort", "N·m"),)


def test_the_truth_is_in_force_and_unknown_names_are_not_taken(rail: RobotModel) -> None:
    plant = Plant(rail, Chain.from_config([{"stage": "latency"}]), DT, threads=1)
    twin = Twin(plant, {"dynamics.cart.mass": 3.0})
    assert twin.values["dynamics.cart.mass"] == 3.0
    assert twin.values["execution.latency.delay"] == 0.0
    said = r"no parameter named 'dynamics\.cart\.mas'; did you mean dynamics\.cart\.mass"
    with pytest.raises(ParameterError, match=said):
        Twin(plant, {"dynamics.cart.mas": 3.0})


def test_times_that_do_not_divide_are_refused(rail: RobotModel) -> None:
    with pytest.raises(ParameterError, match=r"the period of 0\.01 s is no whole number of 0\.003 s"):
        Twin(Plant(rail, timestep=0.003, threads=1))
    twin = Twin(Plant(rail, timestep=DT, threads=1))
    for hold in (0.015, 0.004):
        with pytest.raises(ParameterError, match=rf"the hold of {hold} s is no whole number of 0\.01 s"):
            twin.record("log", np.zeros((3, 1)), hold)
    with pytest.raises(ParameterError, match=r"the control period of 0\.0105 s"):
        twin.start(np.zeros((1, 2))).step(np.zeros((1, 1)), 0.0105)


def test_excitation_fills_its_limits_and_repeats_with_its_seed() -> None:
    limit = np.array([3.0, 0.5])
    found = [excite(np.random.default_rng(s), 20, 0.02, limit, (0.4, 1.7)) for s in (0, 0, 1)]
    assert found[0].shape == (1000, 2)
    assert found[0].tobytes() == found[1].tobytes()
    assert not np.array_equal(found[0], found[2])
    assert (np.abs(found[0]) <= limit).all()
    assert (np.abs(found[0]).max(0) > 0.9 * limit).all()
    # both of its frequencies stand out, by channel
    power = np.abs(np.fft.rfft(found[0][:, 0])) ** 2
    frequency = np.fft.rfftfreq(1000, 0.02)
    for f in (0.4, 1.7):
        assert power[np.abs(frequency - f).argmin()] > 20 * np.median(power)
