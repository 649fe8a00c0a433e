"""Genesis: closed forms, the other engine, each parameter, and Gymnasium's conventions. All in one process: it is slow
to start."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sim2real.adapters import Chain, Latency, TorqueLimit
from sim2real.adapters.stage import plain
from sim2real.calibration import identify
from sim2real.cli import main
from sim2real.errors import MissingExtraError, NonFiniteError, ParameterError, RenderError, RobotError
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel, Simulator
from sim2real.randomization.genesis import GenesisModel, GenesisSimulator, GenesisVectorEnv
from sim2real.randomization.genesis.models import GenesisFields
from sim2real.randomization.vector import (
    AppendParametersVector,
    FunctionTask,
    MujocoVectorEnv,
    make_vec,
    robot_task,
    to_rsl_rl,
    to_stable_baselines,
)
from sim2real.recipe import load_recipe
from sim2real.simulators import read_disagreement
from sim2real.twin import Twin, excite

pytest.importorskip("genesis", reason="Genesis is not installed (extra `genesis`)")
Array = NDArray[np.float64]
MODES = ("NextStep", "SameStep", "Disabled")

# Everything that Genesis has for each plant, at work: a box that slides, an arm at its stop, a servo at its limit.
ALL = """
<mujoco>
  <option timestep="0.002" gravity="0 0 -9.81"/>
  <worldbody>
    <geom name="floor" type="plane" size="20 20 1" friction="0.3"/>
    <body name="box" pos="0 0 0.1">
      <freejoint name="float"/>
      <geom name="box" type="box" size="0.1 0.1 0.1" mass="2" friction="0.5"/>
    </body>
    <body name="arm" pos="0 3 1">
      <inertial pos="0.02 0.01 -0.2" mass="0.5" diaginertia="0.02 0.017 0.008" euler="10 20 30"/>
      <joint name="shoulder" axis="0.2 1 0.3" damping="0.05" frictionloss="0.02" armature="0.01" stiffness="0.4"
        limited="true" range="-0.5 0.4"/>
      <body name="hand" pos="0 0 -0.4">
        <inertial pos="0 0.02 -0.1" mass="0.2" diaginertia="0.002 0.002 0.001"/>
        <joint name="wrist" axis="1 0.3 0.2" damping="0.02" armature="0.003"/>
        <body name="sled" pos="0.05 0 -0.1">
          <inertial pos="0.01 0.02 0" mass="0.1" diaginertia="0.001 0.0012 0.0014"/>
          <joint name="rail" type="slide" axis="1 0 0.2" damping="0.5" frictionloss="0.3" stiffness="2"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <general name="servo" joint="wrist" gainprm="2" biastype="affine" biasprm="0 -2 -0.05" gear="1.5"
      forcelimited="true" forcerange="-0.3 0.2"/>
    <motor name="motor" joint="shoulder" gear="0.7"/>
    <motor name="pull" joint="rail" gear="2"/>
  </actuator>
</mujoco>
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("robots") / "all.xml"
    file.write_text(ALL)
    return file


def task_of(robot: Any, **arguments: Any) -> FunctionTask:
    """A task that shows the state."""
    return FunctionTask(
        robot,
        observation=lambda p: torch.cat([p.qpos, p.qvel], 1),
        reward=lambda p, action: p.qvel.sum(1) - (action**2).sum(1),
        terminated=lambda p: p.qvel[:, 0].abs() > 1e6,
        torch=True,
        **arguments,
    )


# Physics.


def block(velocity: float, height: float) -> FunctionTask:
    """A block that moves along x and z and does not tilt."""
    spec = mujoco.MjSpec.from_string(
        """<mujoco><option timestep="0.002"/><worldbody>
        <geom type="plane" size="20 20 1" friction="0.2"/>
        <body name="block"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
        <geom type="box" size="0.1 0.1 0.05" mass="1" friction="0.2"/></body></worldbody></mujoco>"""
    )
    start = np.array([0.0, height]), np.array([velocity, 0.0])
    return task_of(spec, initial=lambda rng: start)


def test_what_falls_falls_by_half_g_t_squared_and_under_each_gravity_of_its_own() -> None:
    envs = GenesisVectorEnv(block(0.0, 50.0), 3, parameters={"dynamics.world.gravity": "*U(0.5, 2)"})
    gravity = np.array([9.81, 1.62, 3.72])
    envs.reset(seed=0, options={"parameters": {"dynamics.world.gravity": gravity}})
    for _ in range(500):
        observation = envs.step(np.zeros((3, 0)))[0]
    np.testing.assert_allclose(50.0 - observation[:, 1].cpu().numpy(), 0.5 * gravity, rtol=0.01)


def test_a_block_that_slides_slows_down_by_friction_times_what_presses_it_down() -> None:
    friction = np.array([0.2, 0.35, 0.5])
    envs = GenesisVectorEnv(block(1.2, 0.05), 3)
    names = [name for name in envs.parameter_store().nominal() if name.endswith("friction[0]")]
    assert len(names) == 2
    envs.reset(seed=0, options={"parameters": dict.fromkeys(names, friction)})
    speed = torch.stack([envs.step(np.zeros((3, 0)))[0][:, 2:] for _ in range(100)]).double().numpy()
    before, after, seconds = speed[24], speed[99], 75 * 0.002
    # contacts that are a convex problem let it hop a little: what presses it down is its weight on average only
    pressed = 9.81 * seconds + (after - before)[:, 1]
    np.testing.assert_allclose((before - after)[:, 0], friction * pressed, rtol=0.01)
    assert (after[:, 0] > 0).all()


def test_the_period_of_a_pendulum_is_that_of_the_closed_form() -> None:
    model = GenesisModel("pendulum")
    simulator = model.simulate(3, 0.001)
    nominal, mass = model.nominal, np.array([0.3, 0.546, 1.0])
    still = {"dynamics.hinge.damping": 0.0, "dynamics.hinge.frictionloss": 0.0}
    simulator.write({**{k: np.full(3, v) for k, v in still.items()}, "dynamics.payload.mass": mass})
    simulator.set_state(np.tile([0.05, 0.0], (3, 1)))
    angle = simulator.step(np.zeros((3, 4000, 1)))[:, :, 0]
    # rod about the hinge, payload at 0.5 m with its own inertia (which follows its mass), rotor
    inertia = nominal["dynamics.hinge.armature"] + 0.0027 + 0.13 * 0.24**2 + mass * 0.25 + 1.365e-4 * mass / 0.546
    period = 2 * np.pi * np.sqrt(inertia / (9.81 * (0.13 * 0.24 + mass * 0.5)))
    for row, expected in zip(angle, period, strict=True):
        k = np.flatnonzero((row[:-1] > 0) & (row[1:] <= 0))
        crossings = k + row[k] / (row[k] - row[k + 1])
        assert 0.001 * np.diff(crossings).mean() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("robot", ["pendulum", "cartpole", "two_link_arm", "furuta"])
def test_both_engines_agree_over_a_second_whatever_the_parameters(robot: str) -> None:
    here = GenesisModel(robot).simulate(3, 0.001)
    there = RobotModel(robot).simulate(3, 0.001, 1)
    assert isinstance(here, Simulator)
    assert there.units().items() >= here.units().items()
    known = {n: here.nominal()[n] for n in here.nominal() if n.split(".")[-1] in ("mass", "damping", "gear")}
    rng = np.random.default_rng(0)
    values = {name: value * rng.uniform(0.7, 1.3, 3) for name, value in known.items()}
    state = rng.uniform(-0.5, 0.5, (3, 2 * here.degrees_of_freedom))
    strength = 0.02 if robot == "furuta" else 0.5
    wave = strength * np.sin(2 * np.pi * np.arange(1000) * 0.001)
    effort = np.tile(wave[None, :, None], (3, 1, len(there.model.driven)))
    paths = []
    for simulator in (here, there):
        simulator.write(values)
        for name, value in values.items():
            np.testing.assert_allclose(simulator.read()[name], value, rtol=1e-6)
        simulator.set_state(state)
        np.testing.assert_allclose(simulator.state(), state, atol=1e-6)
        paths.append(simulator.step(effort))
    motion = np.ptp(paths[1], axis=(0, 1))
    assert (np.abs(paths[0] - paths[1]).max((0, 1)) < 0.02 * motion).all()
    assert (np.abs(paths[0] - paths[1])[:, :100].max((0, 1)) < 0.001 * motion).all()
    there.set_state(here.state())
    np.testing.assert_allclose(here.effective_inertia(), there.effective_inertia(), rtol=2e-3)
    np.testing.assert_allclose(
        here.bias_effort(), there.bias_effort(), atol=2e-5 * np.abs(there.bias_effort()).max() + 1e-5
    )


# Parameters.


def drive(envs: GenesisVectorEnv, forced: Mapping[str, Array]) -> Array:
    """Push the box, throw the arm against its stop and move all motors; return where everything was: (n, T, X)."""
    options = {"parameters": dict(forced)} if forced else None
    seen = [envs.reset(seed=[0] * envs.num_envs, options=options)[0]]
    for k in range(120):
        control = np.array([0.8, 0.3 * np.sin(0.1 * k), 0.5]) * (1 if k < 60 else -1)
        seen.append(envs.step(np.tile(control, (envs.num_envs, 1)))[0])
    return torch.stack(seen, 1).double().numpy()


def test_every_parameter_is_written_read_back_and_changes_the_motion_of_its_environment(everything: Path) -> None:
    velocity = np.zeros(9)
    velocity[:4], velocity[6:] = [1.0, 0.3, 0.0, 0.0], [2.0, 3.0, 0.5]
    start = np.array([0, 0, 0.1, 1, 0, 0, 0, 0.1, 0.2, 0.1], float)
    task = task_of(str(everything), initial=lambda rng: (start, velocity), frame_skip=2)
    every = GenesisFields(task.model, "all").nominal
    nominal = {name: value for name, value in every.items() if name.startswith("dynamics.")}
    assert {
        "box.mass", "arm.inertia[1]", "arm.second_moment[2]", "arm.com[0]", "shoulder.damping", "shoulder.frictionloss",
        "shoulder.armature", "rail.stiffness", "shoulder.range[1]", "servo.kp", "servo.kv", "servo.gear",
        "servo.force_range[1]", "motor.gain", "world.gravity", "world.gravity_x", "floor.friction[0]",
        "box.friction[0]",
    } <= {name.split(".", 1)[1] for name in nominal}  # fmt: skip
    # without a push a box slides as far whatever its mass
    push = {"body": "box", "force": [3, 1, 0], "torque": [0.3, 0.2, 0.2], "every": 0.05, "duration": 0.1}
    # an environment for each parameter and one as in the file; second moments and scales are other views of inertias
    names = [name for name in nominal if not name.endswith("scale") and "second_moment" not in name]
    envs = GenesisVectorEnv(task, len(names) + 1, push=push)
    store, at_rest = envs.parameter_store(), drive(envs, {})
    assert store.nominal() == every
    others = [name for name in nominal if name not in names]
    for group in (names, others):
        forced = {name: np.full(envs.num_envs, nominal[name]) for name in group}
        for k, name in enumerate(group, start=1):
            # so that an inertia stays that of a body and a range a range
            factor = 0.1 if "range[0]" in name else 0.9 if "range" in name else 1.1
            # of two that touch the larger counts: the box has 0.5
            factor = 2.0 if name == "dynamics.floor.friction[0]" else factor
            forced[name][k] = factor * nominal[name] if nominal[name] else 0.1
        moved = drive(envs, forced)
        for k, name in enumerate(group, start=1):
            np.testing.assert_allclose(store.read()[name], forced[name], rtol=1e-6, atol=1e-12, err_msg=name)
            assert np.abs(moved[k] - moved[0]).max() > 1e-5, f"{name} changed nothing"
        for k in (0, *range(len(group) + 1, envs.num_envs)):
            np.testing.assert_array_equal(moved[k], at_rest[0], err_msg=f"what others have moved environment {k}")
    np.testing.assert_array_equal(drive(envs, {}), at_rest)


def test_what_genesis_does_not_have_for_each_plant_is_refused_with_the_reason() -> None:
    simulator = GenesisModel("pendulum").simulate(2, 0.001)
    assert "dynamics.weight.size[0]" in simulator.silent()
    with pytest.raises(RobotError, match="Genesis does not have it for each plant"):
        simulator.write({"dynamics.link.scale": np.ones(2)})
    with pytest.raises(ParameterError, match="cannot be negative"):
        simulator.write({"dynamics.payload.mass": np.array([0.5, -1.0])})
    with pytest.raises(ParameterError, match=r"did you mean dynamics\.payload\.mass"):
        simulator.write({"dynamics.paylod.mass": np.ones(2)})
    np.testing.assert_array_equal(simulator.read()["dynamics.payload.mass"], [0.546, 0.546])


def test_a_mass_scales_the_inertia_in_genesis_itself_and_a_mask_spares_the_others() -> None:
    simulator = GenesisModel("pendulum").simulate(3, 0.001)
    before = simulator.scene.entity.get_links_inertia().cpu().numpy()
    simulator.write({"dynamics.payload.mass": np.full(3, 2 * 0.546)}, np.array([False, True, False]))
    after = simulator.scene.entity.get_links_inertia().cpu().numpy()
    np.testing.assert_allclose(after[1, 2], 2 * before[1, 2], rtol=1e-6)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    simulator.restore()
    np.testing.assert_allclose(simulator.scene.entity.get_links_inertia().cpu().numpy(), before, rtol=1e-6)


def test_a_scene_is_lent_again_as_good_as_new() -> None:
    def path_of(simulator: GenesisSimulator) -> Array:
        simulator.set_state(np.tile([0.4, 1.0], (2, 1)))
        return simulator.step(np.ones((2, 50, 1)))

    first = GenesisModel("pendulum").simulate(2, 0.001)
    scene, expected = first.scene, path_of(first)
    other = GenesisModel("pendulum").simulate(2, 0.001)
    assert other.scene is not scene
    first.write({"dynamics.payload.mass": np.array([1.0, 2.0])})
    del first
    again = GenesisModel("pendulum").simulate(2, 0.001)
    assert again.scene is scene
    np.testing.assert_array_equal(path_of(again), expected)
    np.testing.assert_array_equal(path_of(other), expected)


def test_a_plant_behind_a_chain_is_the_same_on_both_engines() -> None:
    chain = Chain([Latency(delay=0.0125, native=True), TorqueLimit(limit=0.8, native=True)])
    commands = np.random.default_rng(0).uniform(-2, 2, (2, 300, 1))
    paths = []
    for model in (GenesisModel("pendulum"), RobotModel("pendulum")):
        plant = Plant(model, chain, threads=1).start(2)
        plant.write({"execution.latency.delay": np.array([0.0125, 0.004])})
        plant.reset(np.zeros((2, 2)))
        paths.append(plant.step(commands))
    np.testing.assert_allclose(paths[0][..., 0], paths[1][..., 0], atol=5e-3)
    np.testing.assert_allclose(paths[0][..., 1], paths[1][..., 1], atol=0.02)


def test_a_robot_is_identified_on_this_engine() -> None:
    truth = {"dynamics.payload.mass": 0.83, "execution.latency.delay": 0.03}
    robot = Twin(Plant(RobotModel("pendulum"), Chain([Latency()]), timestep=0.005, threads=1), truth)
    commands = excite(np.random.default_rng(0), 2.0, 0.02, np.array([3.0]), (0.4, 1.2))
    plant = Plant(GenesisModel("pendulum"), Chain([Latency()]), timestep=0.005)
    notations = {"dynamics.payload.mass": "*U(0.4, 3)", "execution.latency.delay": "=U(0, 0.08) s"}
    posterior = identify(
        plant, [robot.record("log", commands, 0.02)], ParameterSet.parse(notations, plant.units()),
        channels=["position"], tries=2, rng=np.random.default_rng(1),
    )  # fmt: skip
    for name, value in truth.items():
        assert posterior.values[name] == pytest.approx(value, rel=1e-4)


def test_what_is_not_finite_names_its_plant() -> None:
    simulator = GenesisModel("pendulum").simulate(3, 0.001)
    simulator.write({"dynamics.payload.mass": np.array([0.5, 0.6, 0.7])})
    effort = np.zeros((3, 2, 1))
    effort[1] = np.nan
    with pytest.raises(NonFiniteError, match=r"plant 1 has a effort.*dynamics.payload.mass=0.6"):
        simulator.step(effort)


def robot(options: str = "", joint: str = "", geom: str = "", actuator: str = "", flags: str = "") -> str:
    """A bar at a hinge and a ball that falls beside it, with something more."""
    return f"""<mujoco><option timestep="0.002" {options}><flag {flags}/></option><worldbody>
        <geom name="floor" type="plane" size="5 5 1"/>
        <body name="bar" pos="0 0 2"><joint name="hinge" axis="0 1 0" damping="0.01" {joint}/>
          <inertial pos="0.05 0 -0.2" mass="0.5" diaginertia="0.01 0.011 0.003"/></body>
        <body name="ball" pos="1 0 0.11"><joint name="fall" type="slide" axis="0 0 1"/>
          <geom name="ball" type="sphere" size="0.1" mass="0.3" {geom}/></body>
        </worldbody><actuator>
        {actuator or '<motor name="motor" joint="hinge"/>'}
        </actuator></mujoco>"""


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"joint": 'actuatorfrclimited="true" actuatorfrcrange="-0.2 0.2"'},
        {"joint": 'ref="0.5"', "actuator": '<position name="servo" joint="hinge" kp="5" kv="0.1"/>'},
        {"actuator": '<motor name="motor" joint="hinge" gear="-2" ctrllimited="true" ctrlrange="-0.3 0.1"/>'},
        {"actuator": '<motor name="motor" joint="hinge" gear="-2" forcelimited="true" forcerange="-0.3 0.1"/>'},
        {"actuator": '<motor name="motor" joint="hinge" gear="0"/>'},
        {"joint": 'stiffness="2"'},
        {"joint": 'limited="true" range="-0.1 0.2"'},
        {"joint": 'limited="true" range="-0.1 0.2"', "flags": 'limit="disable"'},
        {"flags": 'gravity="disable"'},
        {"geom": 'solref="0.05 1"'},
    ],
    ids=lambda more: " ".join(more.values())[:40] or "plain",
)
def test_a_robot_moves_as_on_mujoco_whatever_its_file_says(more: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "robot.xml"
    file.write_text(robot(**more))
    paths = []
    for model in (GenesisModel(file), RobotModel(file)):
        simulator = model.simulate(2, 0.002, 1)
        simulator.set_state(np.array([[0.1, 0.0, 1.0, 0.0], [-0.05, 0.0, 0.0, -0.5]]))
        paths.append(simulator.step(np.tile(np.array([[[0.4]], [[-0.4]]]), (1, 150, 1))))
    motion = np.ptp(paths[1], axis=(0, 1)) + 1e-3
    # a ball that hits the floor tells single from double precision
    assert (np.abs(paths[0] - paths[1]).max((0, 1)) < np.array([0.01, 0.05, 0.01, 0.05]) * motion).all()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"options": 'integrator="RK4"'}, "integrates by Euler or implicitfast"),
        ({"options": 'density="1.2"'}, "no medium"),
        ({"flags": 'damper="disable"'}, "cannot disable damper"),
        ({"joint": 'stiffness="1" springref="0.3"'}, r"springref \(joint 0\)"),
        ({"geom": 'condim="1"'}, r"condim 3 \(geom 1\)"),
        ({"geom": 'solref="-100 -1"'}, "no negative solref"),
        ({"geom": 'margin="0.01"'}, "no margin"),
        ({"geom": 'priority="2"'}, "no priority"),
        ({"actuator": '<general joint="hinge" dyntype="filter" dynprm="0.1"/>'}, "motors and servos"),
        ({"actuator": '<motor joint="hinge"/><motor joint="hinge"/>'}, "two actuators drive one joint"),
    ],
)
def test_robots_that_genesis_computes_otherwise_are_refused(more: dict[str, str], why: str, tmp_path: Path) -> None:
    file = tmp_path / "robot.xml"
    file.write_text(robot(**more))
    with pytest.raises(RobotError, match=why):
        GenesisVectorEnv(task_of(str(file)), 1)
    with pytest.raises(RobotError, match="Genesis models no tendons"):
        GenesisModel("double_pendulum").simulate(1, 0.001)


def test_an_inertia_stays_about_its_axes_in_a_scene_that_is_lent_again(tmp_path: Path) -> None:
    file = tmp_path / "robot.xml"
    file.write_text(robot().replace('axis="0 1 0"', 'axis="1 0 0"'))
    first = GenesisModel(file).simulate(2, 0.002)
    expected, scene = first.effective_inertia(), first.scene
    first.write({"dynamics.bar.inertia[0]": np.full(2, 0.0135)})
    assert (first.effective_inertia()[:, 0] > expected[:, 0] + 0.003).all()
    del first
    again = GenesisModel(file).simulate(2, 0.002)
    assert again.scene is scene
    np.testing.assert_allclose(again.effective_inertia(), expected, rtol=1e-6)


def test_a_store_that_outlives_its_environment_keeps_the_scene_to_itself() -> None:
    envs = GenesisVectorEnv(swinging(), 5)
    store, scene = envs.parameter_store(), envs.scene
    del envs
    other = GenesisVectorEnv(swinging(), 5)
    assert other.scene is not scene
    store.write({"dynamics.payload.mass": np.full(5, 2.0)})
    np.testing.assert_array_equal(other.parameter_store().read()["dynamics.payload.mass"], np.full(5, 0.546))


def test_an_environment_that_is_lost_starts_anew_and_the_others_go_on() -> None:
    envs, alone = (GenesisVectorEnv(swinging(), 2) for _ in "ab")
    for e in (envs, alone):
        e.reset(seed=0)
    calm = torch.zeros(2, 1)
    blown = calm.clone()
    blown[1] = torch.nan
    for k in range(3):
        got = envs.step(blown if k == 0 else calm)[0]
        expected = alone.step(calm)[0]
        np.testing.assert_array_equal(got[0], expected[0])
        assert bool(torch.isfinite(got).all())


def test_controls_are_those_of_the_last_step_and_none_after_a_reset() -> None:
    task = FunctionTask(
        robot_task("pendulum").spec,  # type: ignore[arg-type]
        observation=lambda p: torch.cat([p.ctrl, p.qpos], 1),
        reward=lambda p, action: p.ctrl[:, 0],
        terminated=lambda p: p.qpos[:, 0] > 99,
        torch=True,
    )
    for envs in (GenesisVectorEnv(task, 2), MujocoVectorEnv(task, 2, threads=1)):
        envs.reset(seed=0)
        actions = np.full((2, 1), 5.0, np.float32)
        observation, reward = envs.step(actions)[:2]
        actions[:] = -7.0
        assert np.asarray(observation)[:, 0].tolist() == np.asarray(reward).tolist() == [5.0, 5.0]
        assert np.asarray(envs.reset()[0])[:, 0].tolist() == [0.0, 0.0]


def test_a_task_keeps_its_robot_to_itself() -> None:
    spec = robot_task("pendulum").spec
    assert spec is not None
    task = task_of(spec)
    spec.actuators[0].gear[0] = 77.0
    assert GenesisVectorEnv(task, 1).scene.gear.item() == 2.0


# Environments.

GAPS: dict[str, Any] = {
    "parameters": {"dynamics.*.mass": "*U(0.7, 1.3) each", "dynamics.motor.gear": "*U(0.8, 1.2)"},
    "initial_state": {"dynamics.hinge.initial_velocity": "+U(-1, 1)"},
    "push": {"body": "payload", "force": "U(1, 3)", "every": "U(0.1, 0.3)", "duration": 0.05},
    "execution": [{"stage": "latency", "delay": 0.013}, {"stage": "dead_zone", "width": 0.1}],
    "perception": [{"stage": "noise", "additive": 0.02}, {"stage": "latency", "delay": 0.02}],
}


def swinging() -> FunctionTask:
    return FunctionTask(
        "pendulum",
        observation=lambda p: torch.cat([p.qpos.sin(), p.qpos.cos(), p.qvel], 1),
        reward=lambda p, action: -p.qpos[:, 0].cos() - 0.01 * action[:, 0] ** 2,
        terminated=lambda p: p.qvel[:, 0].abs() > 2.5,
        frame_skip=10,
        noise=0.5,
        torch=True,
    )


def pair(mode: str = "NextStep", n: int = 4, **arguments: Any) -> tuple[GenesisVectorEnv, MujocoVectorEnv]:
    more = {**GAPS, "max_episode_steps": 30, "autoreset_mode": mode, **arguments}
    return GenesisVectorEnv(swinging(), n, **more), MujocoVectorEnv(swinging(), n, threads=1, **more)


def assert_alike(got: Any, expected: Any, where: str = "") -> None:
    """The same keys, shapes and masks; numbers as near as single precision and a contactless second allow."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected:
            assert_alike(got[key], expected[key], f"{where}/{key}")
        return
    if isinstance(expected, np.ndarray) and expected.dtype == object:
        for k, value in enumerate(expected):
            assert (got[k] is None) == (value is None), where
            if value is not None:
                assert_alike(got[k], value, f"{where}[{k}]")
        return
    got, expected = plain(got), np.asarray(expected)
    assert got.shape == expected.shape, where
    if expected.dtype == np.bool_:
        np.testing.assert_array_equal(got, expected, err_msg=where)
    else:
        np.testing.assert_allclose(got, expected, atol=0.02, err_msg=where)


@pytest.mark.parametrize("mode", MODES)
def test_an_environment_does_what_the_one_on_mujoco_does_in_every_mode(mode: str) -> None:
    ours, theirs = pair(mode)
    got, expected = ours.reset(seed=3), theirs.reset(seed=3)
    assert_alike(got[0], expected[0], "reset")
    assert_alike(got[1], expected[1], "infos of reset")
    assert ours.np_random_seed == theirs.np_random_seed == (3, 4, 5, 6)
    rng, ends = np.random.default_rng(0), np.zeros(2, int)
    for step in range(80):
        actions = rng.uniform(-3, 3, (4, 1)).astype(np.float32)
        got, expected = ours.step(actions), theirs.step(actions)
        for what, value in zip(("observation", "reward", "terminated", "truncated"), got, strict=False):
            assert isinstance(value, torch.Tensor), what
            assert value.dtype == (torch.bool if what.endswith("ated") else torch.float32), what
        for k in range(5):
            assert_alike(got[k], expected[k], f"step {step} {k}")
        done = expected[2] | expected[3]
        ends += [expected[2].sum(), expected[3].sum()]
        if mode == "Disabled" and done.any():
            with pytest.raises(gym.error.ResetNeeded, match="episodes have ended"):
                ours.step(actions)
            options = {"reset_mask": done}
            for there, expected in zip(
                ours.reset(options=dict(options)), theirs.reset(options=dict(options)), strict=True
            ):
                assert_alike(there, expected, f"reset at {step}")
    assert (ends > 0).all()


def collected(envs: GenesisVectorEnv, seed: Any = 5) -> bytes:
    parts = [envs.reset(seed=seed)[0].numpy().tobytes()]
    for k in range(40):
        observation, reward, terminated, _, infos = envs.step(torch.full((4, 1), float(np.sin(k))))
        parts += [x.numpy().tobytes() for x in (observation, reward, terminated)]
        parts += [v.tobytes() for _, v in sorted(infos["parameters"].items())]
    return b"".join(parts)


@pytest.mark.parametrize("mode", MODES[:2])
def test_the_same_seed_gives_the_same_bytes_whatever_ran_before(mode: str) -> None:
    first, second = pair(mode)[0], pair(mode)[0]
    expected = collected(first)
    second.reset(seed=1, options={"parameters": {"dynamics.payload.mass": 2.0}})
    second.step(np.ones((4, 1)))
    assert collected(second) == expected
    assert collected(second, seed=6) != expected


def test_environment_i_depends_on_its_own_seed_alone_and_seeds_may_be_a_list() -> None:
    envs = pair(perception=())[0]
    first, infos = envs.reset(seed=[7, 1, 7, 2])
    np.testing.assert_array_equal(first[0], first[2])
    assert (first[0] != first[1]).any()
    masses = infos["parameters"]["dynamics.payload.mass"]
    assert masses[0] == masses[2] != masses[1]
    with pytest.raises(ParameterError, match="a seed for each of 4 environments, found 2"):
        envs.reset(seed=[1, 2])


def test_a_reset_of_some_leaves_the_others_alone() -> None:
    plain_gaps = {"push": None, "perception": ()}
    envs, untouched = (
        GenesisVectorEnv(swinging(), 4, autoreset_mode="Disabled", **{**GAPS, **plain_gaps}) for _ in "ab"
    )
    actions = torch.linspace(-1, 1, 4)[:, None]
    for e in (envs, untouched):
        e.reset(seed=0)
        for _ in range(5):
            last = e.step(actions)[0]
    mask = np.array([False, True, False, True])
    observation, infos = envs.reset(options={"reset_mask": mask, "parameters": {"dynamics.payload.mass": 1.5}})
    np.testing.assert_array_equal(observation[~mask], last[~mask])
    assert (observation[mask] != last[mask]).any(1).all()
    assert infos["parameters"]["dynamics.payload.mass"].tolist()[1::2] == [1.5, 1.5]
    for _ in range(5):
        got, expected = envs.step(actions), untouched.step(actions)
        np.testing.assert_array_equal(got[0][~mask], expected[0][~mask])
        np.testing.assert_array_equal(got[1][~mask], expected[1][~mask])


def test_building_and_stepping_seeds_nothing() -> None:
    assert np.float64(2.3e-308) / np.float64(1e4) > 0.0, "numbers next to zero are rounded to it"

    def states() -> tuple[Any, Any]:
        return np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002

    before = states()
    envs = pair(n=3)[0]
    envs.reset()
    envs.step(np.zeros((3, 1)))
    assert states() == before


def test_what_was_returned_is_not_overwritten() -> None:
    envs = pair(n=4)[0]
    envs.reset(seed=0)
    kept = envs.step(np.ones((4, 1)))
    copies = [kept[k].clone() for k in range(4)]
    forces = kept[4]["applied_effort"].clone()
    for _ in range(3):
        envs.step(-np.ones((4, 1)))
    for value, copy in zip(kept, copies, strict=False):
        assert torch.equal(value, copy)
    assert torch.equal(kept[4]["applied_effort"], forces)


def test_stages_with_feedback_see_the_motion_of_the_plant() -> None:
    stages = [{"stage": "dead_zone", "width": 0.05}, {"stage": "friction", "coulomb": 0.2, "viscous": 0.1}]
    ours, theirs = pair("Disabled", execution=stages, push=None, perception=())
    assert_alike(ours.reset(seed=0)[0], theirs.reset(seed=0)[0])
    for _ in range(15):
        got, expected = ours.step(np.ones((4, 1))), theirs.step(np.ones((4, 1)))
        assert_alike(got[4]["delivered_action"], expected[4]["delivered_action"], "delivered")
        assert_alike(got[0], expected[0])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ParameterError, match="torch=True"):
        GenesisVectorEnv(
            FunctionTask(
                "pendulum",
                observation=lambda p: np.sin(p.qpos),
                reward=lambda p, a: p.qpos[:, 0],
                terminated=lambda p: p.qpos[:, 0] > 1,
            ),
            2,
        )
    with pytest.raises(ParameterError, match="give the task the file"):
        GenesisVectorEnv(task_of(RobotModel("pendulum").mj), 2)
    with pytest.raises(ParameterError, match="on Genesis plants have no 'site_xpos'"):
        GenesisVectorEnv(task_of("pendulum", fields=("site_xpos",)), 2)
    with pytest.raises(ParameterError, match="those that have: pendulum, cartpole"):
        make_vec("Hopper-v5", 2, vectorization="genesis")
    envs = make_vec("pendulum", 2, vectorization="genesis")
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros((2, 1)))
    envs.reset(seed=0)
    with pytest.raises(ParameterError, match=r"expected actions \(2, 1\)"):
        envs.step(np.zeros((3, 1)))
    with pytest.raises(ParameterError, match="num_envs must be at least 1"):
        make_vec("pendulum", 0, vectorization="genesis")


def test_without_genesis_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genesis", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sim2real-toolkit\[genesis\]'"):
        GenesisModel("two_link_arm").simulate(7, 0.001)


@pytest.mark.parametrize("name", ["pendulum", "cartpole", "franka_reach", "go2_walk"])
def test_the_robot_tasks_are_the_same_on_both_engines(name: str) -> None:
    ours = make_vec(name, 3, vectorization="genesis", max_episode_steps=20)
    theirs = make_vec(name, 3, threads=1, max_episode_steps=20)
    first, expected = ours.reset(seed=1)[0], theirs.reset(seed=1)[0]
    np.testing.assert_allclose(first, expected, atol=1e-6)
    low, high = ours.single_action_space.low, ours.single_action_space.high  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for k in range(3):
        actions = 0.5 * (low + high) + 0.2 * (high - low) * rng.uniform(-1, 1, (3, len(low)))
        got, there = ours.step(actions.astype(np.float32)), theirs.step(actions.astype(np.float32))
        # the feet of the dog are on the floor from its second step on, and contacts tell engines apart
        if name != "go2_walk" or k == 0:
            np.testing.assert_allclose(got[0], there[0], atol=2e-2)
            np.testing.assert_allclose(got[1], there[1], atol=5e-3)
    assert not bool(got[2].any())
    assert robot_task(name).action_space.shape == low.shape


# Those who train.


@pytest.fixture(params=["mujoco", "genesis"])
def trained(request: pytest.FixtureRequest) -> Any:
    how = {} if request.param == "mujoco" else {"vectorization": "genesis"}
    return make_vec(
        "cartpole",
        4,
        autoreset_mode="SameStep",
        max_episode_steps=25,
        parameters={"dynamics.pole.mass": "*U(0.5, 2)"},
        **how,
    )


def test_stable_baselines_trains_on_it(trained: Any) -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed (extra `rl`)")
    envs = to_stable_baselines(AppendParametersVector(trained))
    first = envs.reset()
    assert isinstance(first, np.ndarray)
    assert first.shape == (4, 6)
    model = sb3.PPO("MlpPolicy", envs, n_steps=32, batch_size=64, n_epochs=1, device="cpu", seed=0)
    model.learn(128)
    for _ in range(30):
        _, rewards, dones, infos = envs.step(np.full((4, 1), 1.0, np.float32))
        assert rewards.dtype == np.float32
        for i in np.flatnonzero(dones):
            assert infos[i]["terminal_observation"].shape == (6,)
    assert np.isfinite(model.predict(first)[0]).all()


def test_rsl_rl_sees_tensors(trained: Any) -> None:
    pytest.importorskip("tensordict", reason="tensordict is not installed (extra `rl`)")
    envs = to_rsl_rl(trained)
    assert (envs.num_envs, envs.num_actions, envs.max_episode_length) == (4, 1, 25)
    assert envs.get_observations()["policy"].shape == (4, 5)
    ended = late = 0
    for k in range(60):
        observations, rewards, dones, extras = envs.step(torch.full((4, 1), 0.0 if k < 30 else 1.0))
        assert observations["policy"].dtype == rewards.dtype == torch.float32
        assert torch.equal(envs.episode_length_buf == 0, dones.bool())
        ended, late = ended + int(dones.sum()), late + int(extras["time_outs"].sum())
    assert 0 < late < ended
    envs.episode_length_buf = torch.tensor([0, 5, 24, 7])
    assert envs.step(torch.zeros(4, 1))[3]["time_outs"].tolist()[2] == 1.0
    with pytest.raises(ParameterError, match="max_episode_steps"):
        to_rsl_rl(make_vec("pendulum", 2, autoreset_mode="SameStep"))  # type: ignore[arg-type]


def test_dead_zones_and_latencies_are_those_of_the_chain() -> None:
    """The command reaches the plant at the substep that the delay says, not at the control step."""
    forced = {"execution.latency.delay": np.array([0.0, 0.013]), "dynamics.hinge.frictionloss": 0.0}
    start = FunctionTask(
        "pendulum",
        observation=lambda p: p.qvel,
        reward=lambda p, a: p.qvel[:, 0],
        terminated=lambda p: p.qvel[:, 0] > 99,
        frame_skip=20,
        initial=lambda rng: (np.zeros(1), np.zeros(1)),
        torch=True,
    )
    envs = GenesisVectorEnv(start, 2, execution=[{"stage": "latency", "delay": 0.013, "longest": 0.05}])
    envs.reset(seed=0, options={"parameters": forced})
    speed = envs.step(np.ones((2, 1)))[0][:, 0].numpy()
    # from rest, under a constant torque, speed is nearly proportional to how long it has acted: 20 ms and 7 ms
    assert speed[1] / speed[0] == pytest.approx(7 / 20, rel=0.03)


def test_a_recipe_is_compared_on_both_engines_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["simulators=[mujoco,genesis]", "compare.draws=3", "compare.seconds=1.0"]
    assert main(["evaluate", "recipes/pendulum.yaml", *settings, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "mujoco and genesis agree" in said
    (directory,) = tmp_path.glob("*/simulators-*")
    found = read_disagreement(directory)
    assert found.simulators == ("mujoco", "genesis")
    assert 0 < found.largest < 0.02
    assert set(found.explained) == set(load_recipe("recipes/pendulum.yaml").parameters)
    page = (directory / "simulators.html").read_text(encoding="utf-8")
    assert "hinge.velocity" in page
    assert "mujoco and genesis agree" in page
    assert main(["evaluate", "recipes/dfki_double_pendulum.yaml", *settings, "--output", str(tmp_path)]) == 1
    assert "Genesis models no tendons" in capsys.readouterr().err


def test_the_code_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "genesis.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(block, names)
    assert names["observations"].shape == (64, 33)
    assert names["states"].shape == (3, 10, 2)
    for envs in (names["here"], names["there"]):
        assert envs.reset(seed=0)[0].shape == (4, 3)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "two_engines.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "mujoco and genesis agree" in said
    assert "genesis Tensor" in said


def test_pictures_are_those_of_mujoco() -> None:
    pixels = {"camera": "front", "height": 32, "width": 32}
    drawn = {"perception.*.diffuse[0]": "=U(0.1, 1)", "perception.*.rgba[1]": "=U(0, 1) each"}
    both = []
    for how in ({}, {"vectorization": "genesis"}):
        try:
            envs = make_vec("pendulum", 3, parameters=drawn, pixels=pixels, **how)
        except RenderError as error:
            pytest.skip(str(error))
        seen = envs.reset(seed=2)[0]
        both.append(np.asarray(seen))
        assert envs.observation_space.contains(both[-1])
    np.testing.assert_array_equal(*both)
    assert len({picture.tobytes() for picture in both[1]}) == 3
    assert torch.is_tensor(seen)
