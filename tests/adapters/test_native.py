"""Stages that are left to MuJoCo do what the stages themselves do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from sim2real import RandomizeDynamics, make_vec
from sim2real.adapters import Chain, ExecutionGap
from sim2real.errors import ParameterError
from sim2real.plant import Plant
from sim2real.randomization import RobotModel

Array = NDArray[np.float64]
ARM = """<mujoco><worldbody>
  <body><joint name="shoulder" type="hinge" axis="0 1 0"/>
    <geom type="capsule" fromto="0 0 0 0 0 -.4" size=".03" mass="1"/>
    <body pos="0 0 -.4"><joint name="elbow" type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0 0 -.4" size=".03" mass=".6"/></body></body></worldbody>
  <actuator><motor name="shoulder" joint="shoulder" {limit}/><motor name="elbow" joint="elbow"/></actuator></mujoco>"""


@pytest.fixture
def arm(tmp_path: Path) -> RobotModel:
    file = tmp_path / "arm.xml"
    file.write_text(ARM.format(limit=""))
    return RobotModel(file)


def plants(robot: RobotModel, native: bool, *stages: dict[str, Any], timestep: float = 1e-3) -> Plant:
    return Plant(robot, Chain.from_config([s | {"native": native} for s in stages]), timestep)


@pytest.mark.parametrize("channels", [None, (1,)])
@pytest.mark.parametrize(
    ("stage", "name", "values"),
    [
        ({"stage": "latency", "longest": 0.04}, "execution.latency.delay", (0.0, 0.001, 0.0125, 0.04)),
        ({"stage": "torque_limit"}, "execution.torque_limit.limit", (0.1, 0.5, 2.0, 50.0)),
    ],
)
def test_a_delay_and_a_limit_are_those_of_the_stage(
    arm: RobotModel, stage: Any, name: str, values: Any, channels: Any
) -> None:
    rng = np.random.default_rng(0)
    earlier, before = rng.normal(size=(4, 9, 2)), rng.normal(size=(4, 30, 2))
    commands = 2 * np.repeat(rng.normal(size=(4, 20, 2)), 10, 1)
    state, found = rng.normal(size=(4, 4)), []
    for native in (False, True):
        plant = plants(arm, native, stage | {"channels": channels})
        running = plant.start(4, {name: np.array(values)})
        running.step(earlier)  # a delay line that is written to, and then put into another state
        for filled in (before, None):
            running.reset(state, filled)
            found.append(running.step(commands))
        np.testing.assert_array_equal(running.read()[name], values)
        assert plant.nominal()[name] == running.nominal()[name] == Chain.from_config([stage]).nominal()[name]
        assert plant.units()[name] == running.units()[name] != ""
        running.restore()
        assert set(running.read()[name]) == {plant.nominal()[name]}
    np.testing.assert_allclose(found[2], found[0], atol=1e-11)
    np.testing.assert_allclose(found[3], found[1], atol=1e-11)
    assert np.abs(found[0] - found[1]).max() > 0.1 or name.endswith("limit")


def test_a_native_delay_shorter_than_a_substep_is_a_substep(arm: RobotModel) -> None:
    running = plants(arm, True, {"stage": "latency"}).start(2, {"execution.latency.delay": np.array([0.0003, 0.001])})
    out = running.step(np.repeat(np.random.default_rng(0).normal(size=(1, 20, 2)), 2, 0))
    np.testing.assert_array_equal(out[0], out[1])


@pytest.mark.parametrize(("coulomb", "viscous"), [(0.3, 0.0), (0.0, 0.05), (0.1, 0.02)])
def test_friction_converges_to_that_of_the_stage(arm: RobotModel, coulomb: float, viscous: float) -> None:
    """The two stop joints in different ways within a substep, so their difference shrinks in proportion to it."""
    apart = []
    for timestep in (8e-4, 2e-4):
        steps = round(0.4 / timestep)
        time = timestep * np.arange(steps)
        commands = np.stack([np.sin(8 * time), 0.5 * np.cos(11 * time)], 1)[None]
        ends = []
        for native in (False, True):
            friction = {"stage": "friction", "coulomb": coulomb, "viscous": viscous}
            running = plants(arm, native, friction, timestep=timestep).start(1)
            running.reset(np.array([[0.5, -0.3, 2.0, 1.0]]))
            ends.append(running.step(commands)[0, :: steps // 40])
        apart.append(np.abs(ends[0] - ends[1]).max())
    assert apart[1] < 0.4 * apart[0]
    assert apart[1] < 0.02


def test_friction_holds_an_arm(arm: RobotModel) -> None:
    running = plants(arm, True, {"stage": "friction", "coulomb": 8.0}).start(2)
    running.write({"execution.friction.coulomb": np.array([8.0, 0.0])})
    start = np.array([[0.5, -0.3, 0.0, 0.0]] * 2)
    running.reset(start)
    end = running.step(np.zeros((2, 1000, 2)))[:, -1]
    assert np.abs(end[0] - start[0]).max() < 1e-5
    assert np.abs(end[1] - start[1]).max() > 0.1


STAGES: list[dict[str, Any]] = [
    {"stage": "latency", "delay": 0.013},
    {"stage": "torque_limit", "limit": 40.0},
    {"stage": "friction", "coulomb": 0.5, "viscous": 0.1},
]
NATIVE = [STAGES[0], *(stage | {"native": True} for stage in STAGES[1:])]


def roll(env: Any, steps: int) -> tuple[Array, Array]:
    env.reset(seed=0)
    env.unwrapped.set_state(env.unwrapped.init_qpos, np.linspace(-3, 3, env.unwrapped.model.nv))
    rng = np.random.default_rng(1)
    out, forces = [], []
    for _ in range(steps):
        observation, *_, info = env.step(rng.uniform(-1, 1, 6).astype(np.float32))
        out.append(observation)
        forces.append(info["applied_effort"])
    return np.array(out), np.array(forces)


def test_an_environment_hands_over_in_efforts_at_the_joint() -> None:
    ours, native = (ExecutionGap(gym.make("HalfCheetah-v5"), stages) for stages in (STAGES, NATIVE))
    (observed, _), (seen, forces) = roll(ours, 5), roll(native, 5)
    assert np.abs(observed - seen).max() < 0.05 * np.abs(observed).max()
    gear = native.unwrapped.model.actuator_gear[:, 0]  # type: ignore[attr-defined]
    assert np.abs(forces * gear).max() == pytest.approx(40.0)
    free, _ = roll(ExecutionGap(gym.make("HalfCheetah-v5"), STAGES[:2]), 5)
    assert np.abs(observed - seen).max() < 0.2 * np.abs(observed - free).max(), "of what friction does at 10 ms"


def test_what_is_native_is_randomized_under_its_own_name() -> None:
    draws = {"execution.friction.coulomb": "=U(0, 2) N·m", "execution.latency.delay": "=U(0, 0.02) s"}
    env = RandomizeDynamics(ExecutionGap(gym.make("HalfCheetah-v5"), NATIVE), draws)
    found = []
    for seed in range(3):
        _, info = env.reset(seed=seed)
        model = env.unwrapped.model  # type: ignore[attr-defined]
        np.testing.assert_allclose(model.dof_frictionloss[3:], info["parameters"]["execution.friction.coulomb"])
        found.append(model.dof_frictionloss[3])
    assert len(set(found)) == 3
    envs = make_vec("HalfCheetah-v5", 3, execution=NATIVE, parameters=draws)
    _, infos = envs.reset(seed=0)
    np.testing.assert_allclose(infos["parameters"]["execution.friction.coulomb"], found)
    with pytest.raises(ParameterError, match=r"it is execution.friction.coulomb, which is native"):
        RandomizeDynamics(
            ExecutionGap(gym.make("HalfCheetah-v5"), NATIVE), {"dynamics.bthigh.frictionloss": "+U(0, 1)"}
        )


def test_a_vector_environment_hands_over_as_single_ones_do() -> None:
    envs = make_vec("HalfCheetah-v5", 2, execution=NATIVE)
    singles = [ExecutionGap(gym.make("HalfCheetah-v5"), NATIVE) for _ in range(2)]
    first, _ = envs.reset(seed=5)
    np.testing.assert_allclose(first, [env.reset(seed=5 + i)[0] for i, env in enumerate(singles)], atol=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.uniform(-1, 1, (2, 6)).astype(np.float32)
        observation, _, _, _, infos = envs.step(actions)
        single = [env.step(a) for env, a in zip(singles, actions, strict=True)]
        np.testing.assert_allclose(observation, [s[0] for s in single], atol=1e-9)
        np.testing.assert_allclose(infos["applied_effort"], [s[4]["applied_effort"] for s in single], atol=1e-9)
    before = envs.task.model.dof_frictionloss.copy()
    assert not before.any(), "the model of the task is not the one that is changed"


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ([{"stage": "gain", "native": True}], "does not model this stage"),
        ([{"stage": "servo_friction", "native": True}], "does not model this stage"),
        ([{"stage": "packets", "native": True}], "does not model this stage"),
        ([{"stage": "latency", "gap": "perception", "native": True}], "does not model this stage"),
        ([{"stage": "latency", "native": True, "start": "hold"}], "start from zeros"),
        ([{"stage": "torque_limit", "native": True}, {"stage": "latency"}], "cannot come after it"),
        ([{"stage": "torque_limit", "native": True}, {"stage": "latency", "native": True}], "cannot come after it"),
    ],
)
def test_what_the_engine_does_not_do_is_refused(stages: Any, why: str) -> None:
    with pytest.raises(ParameterError, match=why):
        Chain.from_config(stages)


def test_what_the_model_has_already_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "limited.xml"
    file.write_text(ARM.format(limit='forcerange="-1 1"'))
    limited = RobotModel(file)
    with pytest.raises(ParameterError, match="has a force range already"):
        plants(limited, True, {"stage": "torque_limit"}).nominal()
    env = gym.make("HalfCheetah-v5")
    with pytest.raises(ParameterError, match="without a history of the commands"):
        ExecutionGap(env, [{"stage": "latency", "native": True}, NATIVE[2]])
    assert not env.unwrapped.model.dof_frictionloss.any()  # type: ignore[attr-defined]
    randomized = RandomizeDynamics(gym.make("HalfCheetah-v5"), {"dynamics.torso.mass": "*U(0.9, 1.1)"})
    with pytest.raises(ParameterError, match="inside what randomizes it"):
        ExecutionGap(randomized, NATIVE)


def test_friction_comes_on_top_of_what_a_joint_has() -> None:
    env = ExecutionGap(gym.make("HalfCheetah-v5"), NATIVE)
    bare: Any = gym.make("HalfCheetah-v5").unwrapped
    np.testing.assert_allclose(env.unwrapped.model.dof_damping[3:], bare.model.dof_damping[3:] + 0.1)  # type: ignore[attr-defined]


def test_without_an_engine_the_stages_are_computed() -> None:
    native = Chain.from_config([STAGES[0] | {"native": True}, NATIVE[1]])
    line, other = (chain.bind(1, 2, 0.001) for chain in (native, Chain.from_config(STAGES[:2])))
    signal = 100 * np.random.default_rng(0).normal(size=(1, 40, 2))
    np.testing.assert_array_equal(line.apply(signal), other.apply(signal))
