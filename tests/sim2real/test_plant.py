"""The plant: a robot behind its chain, substep by substep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim2real.adapters import Chain, DeadZone, FirstOrderLag, Friction, Latency, TorqueLimit
from sim2real.errors import NonFiniteError, ParameterError
from sim2real.plant import Plant, repeated, require_finite
from sim2real.randomization import ParameterStore, RobotModel

Array = NDArray[np.float64]
DELAY, MASS = "execution.latency.delay", "dynamics.payload.mass"
OPEN = Chain([Latency(delay=0.0125), DeadZone(width=0.1), FirstOrderLag(time_constant=0.01), TorqueLimit(limit=2.0)])
FEEDBACK = Chain([*OPEN.stages, Friction(coulomb=0.1, viscous=0.05)])


@pytest.fixture(scope="module")
def model() -> RobotModel:
    return RobotModel("pendulum")


@pytest.mark.parametrize("chain", [Chain([Latency()]), Chain([Latency(), Friction()])], ids=["open", "feedback"])
def test_a_delayed_command_acts_at_its_substep(model: RobotModel, chain: Chain) -> None:
    steps, at, delay = 120, 40, 0.0125
    command = np.where(np.arange(steps) >= at, 1.5, 0.0)
    delayed = Plant(model, chain).start(1, {DELAY: np.array([delay])}).step(command[None, :, None])
    # twelve and a half substeps: the first substep that feels anything feels half of it
    shifted = np.zeros(steps)
    shifted[at + 12], shifted[at + 13 :] = 0.75, 1.5
    direct = Plant(model).start(1).step(shifted[None, :, None])
    np.testing.assert_allclose(delayed, direct, rtol=0, atol=1e-12)
    first = int(np.flatnonzero(np.abs(delayed[0]).max(1) > 0)[0])
    assert first == at + 12


@settings(max_examples=15, deadline=None)
@given(whole=st.integers(0, 60), timestep=st.sampled_from([0.001, 0.002]), seed=st.integers(0, 100))
def test_a_whole_delay_is_a_shifted_command(model: RobotModel, whole: int, timestep: float, seed: int) -> None:
    commands = np.random.default_rng(seed).normal(size=(1, 100, 1))
    shifted = np.concatenate([np.zeros((1, whole, 1)), commands[:, : 100 - whole]], 1)
    plant = Plant(model, Chain([Latency()]), timestep)
    got = plant.start(1, {DELAY: np.array([whole * timestep])}).step(commands)
    np.testing.assert_allclose(got, Plant(model, timestep=timestep).start(1).step(shifted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("chain", [Chain(), OPEN, FEEDBACK], ids=["none", "open", "feedback"])
@pytest.mark.parametrize("block", [1, 7, 30])
def test_blocks_of_substeps_do_not_matter(model: RobotModel, chain: Chain, block: int) -> None:
    n, steps = 3, 60
    rng = np.random.default_rng(0)
    commands, start = 3 * rng.normal(size=(n, steps, 1)), rng.normal(size=(n, 2))
    values = {MASS: np.array([0.3, 0.6, 0.9])}
    whole, parts = (Plant(model, chain).start(n, values) for _ in range(2))
    whole.reset(start)
    parts.reset(start)
    expected = whole.step(commands)
    got = np.concatenate([parts.step(commands[:, k : k + block]) for k in range(0, steps, block)], 1)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(parts.state(), expected[:, -1])


@pytest.mark.parametrize("chain", [OPEN, FEEDBACK], ids=["open", "feedback"])
def test_each_plant_runs_as_if_alone(model: RobotModel, chain: Chain) -> None:
    rng = np.random.default_rng(1)
    commands, start = 3 * rng.normal(size=(3, 50, 1)), rng.normal(size=(3, 2))
    values = {MASS: np.array([0.3, 0.6, 0.9]), DELAY: np.array([0.0, 0.0031, 0.02])}
    together = Plant(model, chain).start(3, values)
    together.reset(start)
    states = together.step(commands)
    for i in range(3):
        alone = Plant(model, chain, threads=1).start(1, {k: v[i : i + 1] for k, v in values.items()})
        alone.reset(start[i : i + 1])
        np.testing.assert_array_equal(alone.step(commands[i : i + 1])[0], states[i])


@pytest.mark.parametrize("chain", [OPEN, FEEDBACK], ids=["open", "feedback"])
def test_reset_leaves_the_chain_as_the_commands_before_left_it(model: RobotModel, chain: Chain) -> None:
    rng = np.random.default_rng(2)
    before, commands, start = rng.normal(size=(2, 50, 1)), rng.normal(size=(2, 40, 1)), rng.normal(size=(2, 2))
    lived, told, fresh = (Plant(model, chain).start(2) for _ in range(3))
    lived.step(before)
    lived.set_state(start)
    expected = lived.step(commands)
    told.step(commands)  # whatever happened before the reset
    told.reset(start, before)
    np.testing.assert_array_equal(told.state(), start)
    np.testing.assert_array_equal(told.step(commands), expected)
    fresh.reset(start)
    assert not np.array_equal(fresh.step(commands), expected)
    told.reset(start)
    fresh.reset(start)
    np.testing.assert_array_equal(told.step(commands), fresh.step(commands))


def test_feedback_that_does_nothing_is_no_feedback(model: RobotModel) -> None:
    commands = np.random.default_rng(3).normal(size=(2, 50, 1))
    with_friction = Plant(model, Chain([*OPEN.stages, Friction()])).start(2)
    np.testing.assert_array_equal(with_friction.step(commands), Plant(model, OPEN).start(2).step(commands))


def test_feedback_sees_the_plant_of_this_substep(model: RobotModel) -> None:
    commands = np.random.default_rng(4).normal(size=(1, 30, 1))
    running = Plant(model, Chain([Friction(coulomb=0.2, viscous=0.1)])).start(1)
    running.reset(np.array([[0.3, 1.0]]))
    states = running.step(commands)
    # by hand, an effort a substep, from the state that the substep before left
    bare = Plant(model).start(1)
    bare.reset(np.array([[0.3, 1.0]]))
    for k in range(30):
        velocity = bare.state()[:, 1]
        inertia, load = bare.simulator.effective_inertia()[:, 0], bare.simulator.bias_effort()[:, 0]
        stop = inertia * velocity / 0.001 + commands[:, k, 0] - load
        most = 0.2 + 0.1 * np.abs(velocity)
        effort = commands[:, k, 0] - np.clip(stop, -most, most)
        np.testing.assert_allclose(bare.step(effort[:, None, None])[:, 0], states[:, k], atol=1e-12)


ELBOW_DRIVE = """<mujoco><worldbody><body name="upper"><joint name="shoulder" axis="0 1 0"/>
  <geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.02"/><body name="lower" pos="0 0 -0.3">
  <joint name="elbow" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.02"/></body></body></worldbody>
  <actuator><motor name="motor" joint="elbow"/></actuator></mujoco>"""


def test_friction_acts_on_the_joint_that_the_actuator_drives(tmp_path: Path) -> None:
    file = tmp_path / "acrobot.xml"
    file.write_text(ELBOW_DRIVE, encoding="utf-8")
    plant = Plant(RobotModel(file), Chain([Friction()]))
    assert (plant.degrees_of_freedom, plant.actions) == (2, 1)
    running = plant.start(1)
    running.reset(np.array([[0.1, 0.2, 3.0, 4.0]]))
    view, inertia = running._view(), running.simulator.effective_inertia()
    assert (view.position.item(), view.velocity.item()) == (0.2, 4.0)
    assert view.effective_inertia.item() == inertia[0, 1] < inertia[0, 0]


def test_friction_brings_coupled_joints_to_rest_without_chatter() -> None:
    frictionless = {
        f"dynamics.{joint}.{field}": np.zeros(1)
        for joint in ("shoulder", "elbow")
        for field in ("damping", "frictionloss")
    }
    running = Plant(RobotModel("double_pendulum"), Chain([Friction()])).start(1, frictionless)
    running.write({"execution.friction.coulomb": np.array([[0.6, 0.4]])})
    running.reset(np.array([[0.3, -0.2, 2.0, -3.0]]))
    states = running.step(np.zeros((1, 1300, 2)))[0]
    np.testing.assert_allclose(states[-200:], np.tile([*states[-1, :2], 0.0, 0.0], (200, 1)), atol=1e-9)
    turns = np.abs(np.diff(np.sign(np.round(states[:, 2:], 6)), axis=0)) == 2
    assert turns.sum() < 20


# Parameters


def test_dynamics_and_execution_are_one_store(model: RobotModel) -> None:
    plant = Plant(model, OPEN)
    running = plant.start(2)
    assert isinstance(running, ParameterStore)
    assert running.nominal() == plant.nominal() == {**model.nominal, **OPEN.nominal()}
    assert running.units() == plant.units()
    assert (plant.units()[MASS], plant.units()[DELAY]) == ("kg", "s")
    assert running.read().keys() == plant.nominal().keys()
    running.write({MASS: np.array([0.5, 0.7]), DELAY: np.array([0.01, 0.02])}, np.array([False, True]))
    assert running.read()[MASS].tolist() == [0.546, 0.7]
    assert running.read()[DELAY].tolist() == [0.0125, 0.02]
    assert running.simulator.read()[MASS].tolist() == [0.546, 0.7]


@pytest.mark.parametrize(
    ("name", "meant"), [("dynamics.payload.mas", MASS), ("execution.latency.dealy", DELAY), ("latency", "available")]
)
def test_an_unknown_name_is_refused_and_nothing_is_written(model: RobotModel, name: str, meant: str) -> None:
    running = Plant(model, OPEN).start(1)
    with pytest.raises(ParameterError, match=f"no parameter named '{name}'.*{meant}"):
        running.write({MASS: np.ones(1), name: np.ones(1)})
    assert running.read()[MASS].tolist() == [0.546]


def test_measured_efforts_go_past_the_chain(model: RobotModel) -> None:
    bare = Plant(model, OPEN, timestep=0.002, threads=1).without_chain()
    assert (bare.chain.stages, bare.timestep, bare.threads) == ((), 0.002, 1)
    assert DELAY not in bare.nominal()


def test_start_makes_independent_plants(model: RobotModel) -> None:
    plant = Plant(model, OPEN)
    first, second = plant.start(1, {MASS: np.array([2.0])}), plant.start(1)
    first.step(np.ones((1, 30, 1)))
    assert second.state().tolist() == [[0, 0]]
    assert second.read()[MASS].tolist() == [0.546]
    assert plant.nominal()[MASS] == 0.546


def test_small_things() -> None:
    assert {k: v.tolist() for k, v in repeated({"a": 1, "b": 0.5}, 2).items()} == {"a": [1, 1], "b": [0.5, 0.5]}
    value = np.ones(2)
    assert require_finite(value, "it") is value
    with pytest.raises(NonFiniteError, match=r"it is not finite \(1 of 2 numbers\)"):
        require_finite(np.array([1.0, np.nan]), "it")
