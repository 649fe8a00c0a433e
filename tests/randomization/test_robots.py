"""The robots that come with the toolkit, against closed-form equations of motion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from sim2real.errors import RobotError
from sim2real.randomization.robots import ROBOTS, path

Array = NDArray[np.float64]
G = 9.81


def load(name: str, *, friction: bool = True) -> tuple[Any, Any]:
    model = mujoco.MjModel.from_xml_path(str(path(name)))
    if not friction:
        model.dof_damping[:] = 0.0
        model.dof_frictionloss[:] = 0.0
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def mass_matrix(model: Any, data: Any, q: Array) -> Array:
    data.qpos[:] = q
    data.qvel[:] = 0.0
    mujoco.mj_forward(model, data)
    full = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, full)
    return full


def bias(model: Any, data: Any, q: Array, qd: Array) -> Array:
    """Coriolis, centrifugal and gravity force: what an acceleration of zero costs."""
    data.qpos[:] = q
    data.qvel[:] = qd
    mujoco.mj_forward(model, data)
    return np.array(data.qfrc_bias)


# Closed forms: (q, qd) -> mass matrix, bias force. Numbers from the published dimensions, not from the files.


def pendulum(q: Array, qd: Array) -> tuple[Array, Array]:
    inertia = 0.546 * 0.5**2 + 0.4 * 0.546 * 0.025**2 + 0.13 * 0.24**2 + 0.13 * 0.5**2 / 12 + 0.0022
    return np.array([[inertia]]), np.array([G * (0.546 * 0.5 + 0.13 * 0.24) * np.sin(q[0])])


def servo_pendulum(q: Array, qd: Array) -> tuple[Array, Array]:
    inertia = 0.49 * 0.1**2 + 0.4 * 0.49 * 0.02525**2 + 0.02 * 0.1**2 / 3 + 0.00164
    return np.array([[inertia]]), np.array([G * (0.49 * 0.1 + 0.02 * 0.05) * np.sin(q[0])])


def two_links(q: Array, qd: Array, i1: float, i2: float, m2r2l1: float) -> tuple[Array, Array]:
    """Two links in a plane; i1 and i2 about their joints, i1 with the second link's mass at the elbow."""
    c, s = m2r2l1 * np.cos(q[1]), m2r2l1 * np.sin(q[1])
    mass = np.array([[i1 + i2 + 2 * c, i2 + c], [i2 + c, i2]])
    return mass, np.array([-s * (2 * qd[0] + qd[1]) * qd[1], s * qd[0] ** 2])


def double_pendulum(q: Array, qd: Array) -> tuple[Array, Array]:
    m1, m2, r1, r2, l1, rotor = 0.523, 0.626, 0.2, 0.256, 0.2, 6.29e-5
    mass, coriolis = two_links(q, qd, 0.0319 + m2 * l1**2, 0.0509, m2 * r2 * l1)
    lower = m2 * r2 * np.sin(q[0] + q[1])
    gravity = G * np.array([(m1 * r1 + m2 * l1) * np.sin(q[0]) + lower, lower])
    return mass + rotor * np.array([[1 + 36, -6], [-6, 36]]), coriolis + gravity


def two_link_arm(q: Array, qd: Array) -> tuple[Array, Array]:
    link = 0.3**2 / 3
    mass, coriolis = two_links(q, qd, link + 0.3**2, link, 0.15 * 0.3)
    return mass + 0.002 * np.eye(2), coriolis


def furuta(q: Array, qd: Array) -> tuple[Array, Array]:
    """Cazzolato and Prime 2011 (J. Control Science and Engineering), with a slender pole and the angle from hanging."""
    mp, lp, lr = 0.024, 0.129, 0.085
    spin = 0.5 * mp * 0.00475**2
    swing, couple = mp * lp**2 / 3, mp * lr * lp / 2
    s, c = np.sin(q[1]), np.cos(q[1])
    arm = 0.095 * lr**2 / 12 + 4.6e-6 + mp * lr**2
    mass = np.array([[arm + swing * s**2 + spin * c**2, couple * c], [couple * c, swing]])
    turn = 2 * (swing - spin) * s * c
    return mass, np.array(
        [turn * qd[0] * qd[1] - couple * s * qd[1] ** 2, -0.5 * turn * qd[0] ** 2 + G * mp * lp / 2 * s]
    )


def cartpole(q: Array, qd: Array) -> tuple[Array, Array]:
    """Barto, Sutton and Anderson 1983, with the angle from hanging."""
    s, c = np.sin(q[1]), np.cos(q[1])
    mass = np.array([[1.1, 0.1 * 0.5 * c], [0.1 * 0.5 * c, 0.1 * 1.0**2 / 3]])
    return mass, np.array([-0.1 * 0.5 * s * qd[1] ** 2, 0.1 * 0.5 * G * s])


CLOSED_FORM: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "cartpole": cartpole,
    "double_pendulum": double_pendulum,
    "furuta": furuta,
    "pendulum": pendulum,
    "servo_pendulum": servo_pendulum,
    "two_link_arm": two_link_arm,
}
# Joints that gravity pulls back to zero; the others (a rail, a vertical axis) it leaves alone.
HANGING = {
    "cartpole": ["hinge"],
    "double_pendulum": ["shoulder", "elbow"],
    "furuta": ["pole"],
    "pendulum": ["hinge"],
    "servo_pendulum": ["hinge"],
    "two_link_arm": [],
}
ACTUATORS = {
    "cartpole": {"motor": "slider"},
    "double_pendulum": {"shoulder_motor": "shoulder", "elbow_motor": "elbow"},
    "furuta": {"motor": "arm"},
    "pendulum": {"motor": "hinge"},
    "servo_pendulum": {"servo": "hinge"},
    "two_link_arm": {"shoulder_motor": "shoulder", "elbow_motor": "elbow"},
}


def test_every_robot_has_a_closed_form() -> None:
    assert set(ROBOTS) == set(CLOSED_FORM)


def test_unknown_robot_names_the_nearest() -> None:
    assert path("pendulum").name == "pendulum.xml"
    with pytest.raises(RobotError, match="did you mean pendulum"):
        path("pendulm")
    with pytest.raises(RobotError):
        path("../robots/pendulum")


@pytest.mark.parametrize("name", ROBOTS)
def test_everything_is_named(name: str) -> None:
    model, _ = load(name)
    for count, of in (
        (model.nbody, model.body),
        (model.njnt, model.joint),
        (model.ngeom, model.geom),
        (model.nu, model.actuator),
        (model.ncam, model.camera),
    ):
        names = [of(i).name for i in range(count)]
        assert all(names)
        assert len(set(names)) == count
    assert "front" in [model.camera(i).name for i in range(model.ncam)]
    drives = {model.actuator(i).name: model.joint(int(model.actuator_trnid[i, 0])).name for i in range(model.nu)}
    assert drives == ACTUATORS[name]


@pytest.mark.parametrize("name", ROBOTS)
def test_no_contact_and_no_clipping(name: str) -> None:
    model, data = load(name)
    assert model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_CONTACT
    assert model.opt.timestep == 0.001
    assert not model.actuator_ctrllimited.any()
    assert not model.actuator_forcelimited.any()
    assert not model.jnt_limited.any()
    within = np.array(model.actuator_ctrlrange[:, 1])
    forces = []
    for factor in (1.0, 10.0):
        data.ctrl[:] = factor * within
        mujoco.mj_forward(model, data)
        forces.append(np.array(data.actuator_force))
    np.testing.assert_allclose(forces[1], 10.0 * forces[0])
    assert (forces[0] > 0.0).all()


@pytest.mark.parametrize("name", ROBOTS)
def test_every_inertia_is_that_of_a_body(name: str) -> None:
    model, data = load(name)
    for principal in np.sort(model.body_inertia[1:], axis=1):
        assert principal[0] > 0.0
        assert principal[0] + principal[1] >= principal[2]
    rng = np.random.default_rng(0)
    for q in rng.uniform(-np.pi, np.pi, (20, model.nq)):
        assert np.linalg.eigvalsh(mass_matrix(model, data, q)).min() > 0.0


@pytest.mark.parametrize("name", ROBOTS)
def test_zero_hangs_and_gravity_restores(name: str) -> None:
    model, data = load(name)
    zero = np.zeros(model.nv)
    np.testing.assert_allclose(bias(model, data, zero, zero), 0.0, atol=1e-12)
    for j in range(model.nv):
        q = zero.copy()
        q[j] = 0.01
        pull = -bias(model, data, q, zero)[j]
        if model.joint(j).name in HANGING[name]:
            assert pull < -1e-5
        else:
            assert pull == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ROBOTS)
def test_positive_swings_counter_clockwise_in_front_of_the_camera(name: str) -> None:
    model, data = load(name)
    camera = model.camera("top" if name == "two_link_arm" else "front").id
    right, up = np.array(data.cam_xmat[camera]).reshape(3, 3).T[:2]
    for j in range(model.nv):
        if model.joint(j).name not in [*HANGING[name], *ACTUATORS[name].values()]:
            continue
        axis = np.array(data.xaxis[j])
        if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_SLIDE:
            assert axis @ right > 0.9
        elif name == "furuta":
            np.testing.assert_allclose(axis, [0, 0, 1] if model.joint(j).name == "arm" else [1, 0, 0], atol=1e-12)
        else:
            assert axis @ np.cross(right, up) > 0.9


@pytest.mark.parametrize("name", ROBOTS)
def test_equations_of_motion(name: str) -> None:
    model, data = load(name)
    rng = np.random.default_rng(1)
    for _ in range(20):
        q, qd = rng.uniform(-np.pi, np.pi, model.nv), rng.uniform(-5.0, 5.0, model.nv)
        mass, force = CLOSED_FORM[name](q, qd)
        np.testing.assert_allclose(mass_matrix(model, data, q), mass, rtol=1e-4, atol=1e-4 * mass.max())
        np.testing.assert_allclose(bias(model, data, q, qd), force, rtol=1e-4, atol=1e-4 * np.abs(mass).max())


@pytest.mark.parametrize("name", ROBOTS)
def test_actuator_accelerates_as_the_equations_say(name: str) -> None:
    model, data = load(name, friction=False)
    zero = np.zeros(model.nv)
    mass, _ = CLOSED_FORM[name](zero, zero)
    for i in range(model.nu):
        data.ctrl[:] = 0.0
        data.ctrl[i] = 0.01
        mujoco.mj_forward(model, data)
        torque = zero.copy()
        torque[model.actuator_trnid[i, 0]] = 0.01 * (0.578 if name == "servo_pendulum" else 1.0)
        np.testing.assert_allclose(data.qacc, np.linalg.solve(mass, torque), rtol=1e-3)


@pytest.mark.parametrize("name", ROBOTS)
def test_energy_is_conserved_without_friction(name: str) -> None:
    model, data = load(name, friction=False)
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_RK4  # the machine is tested here, not Euler's method
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ACTUATION
    model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_ENERGY
    data.qpos[:] = [1.0, -0.5][: model.nq]
    data.qvel[:] = [2.0, 3.0][: model.nv]
    mujoco.mj_forward(model, data)
    start, kinetic, where = data.energy.sum(), data.energy[1], np.array(data.qpos)
    for _ in range(1000):
        mujoco.mj_step(model, data)
    assert data.energy.sum() == pytest.approx(start, abs=1e-6 * kinetic)
    assert np.abs(data.qpos - where).max() > 0.1


@pytest.mark.parametrize("name", ROBOTS)
def test_friction_opposes_motion(name: str) -> None:
    model, data = load(name)
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ACTUATION
    data.qvel[:] = 1.0
    mujoco.mj_forward(model, data)
    assert (data.qfrc_passive + data.qfrc_constraint < 0.0).all()


def test_pendulum_is_the_published_one() -> None:
    model, data = load("pendulum")
    assert model.body("payload").jntnum == 0
    assert model.body_subtreemass[model.body("link").id] == pytest.approx(0.676)
    centre = data.xpos[model.body("link").id] - data.subtree_com[model.body("link").id]
    np.testing.assert_allclose(centre, [0.0, 0.0, 0.45], atol=1e-3)


def test_pendulum_period() -> None:
    model, data = load("pendulum", friction=False)
    inertia, _ = pendulum(np.zeros(1), np.zeros(1))
    amplitude = 0.05
    period = 2 * np.pi * np.sqrt(inertia[0, 0] / (G * (0.546 * 0.5 + 0.13 * 0.24))) * (1 + amplitude**2 / 16)
    data.qpos[0] = amplitude
    crossings = []
    for _ in range(6000):
        before = data.qpos[0]
        mujoco.mj_step(model, data)
        if before < 0.0 <= data.qpos[0]:
            crossings.append(data.time - model.opt.timestep * data.qpos[0] / (data.qpos[0] - before))
    assert len(crossings) >= 3
    assert np.diff(crossings).mean() == pytest.approx(period, rel=1e-4)


@pytest.mark.parametrize(("torque", "moves"), [(0.04, False), (0.08, True)])
def test_pendulum_sticks_below_its_dry_friction(torque: float, moves: bool) -> None:
    model, data = load("pendulum")
    data.ctrl[0] = torque
    for _ in range(500):
        mujoco.mj_step(model, data)
    assert (data.qpos[0] > 2e-3) == moves


def test_the_rotor_of_the_elbow_couples_both_joints() -> None:
    model, data = load("double_pendulum")
    coupled = mass_matrix(model, data, np.zeros(2))
    model.tendon_armature[:] = 0.0
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(
        coupled - mass_matrix(model, data, np.zeros(2)), 6.29e-5 * np.array([[1, -6], [-6, 36]]), atol=1e-12
    )


def test_servo_holds_its_goal_up_to_the_sag_of_its_gain() -> None:
    model, data = load("servo_pendulum", friction=False)
    model.dof_damping[:] = 0.0105
    data.ctrl[0] = 0.5
    for _ in range(5000):
        mujoco.mj_step(model, data)
    _, gravity = servo_pendulum(np.array(data.qpos), np.zeros(1))
    assert 0.578 * (0.5 - data.qpos[0]) == pytest.approx(gravity[0], rel=1e-3)
    assert 0.1 < data.qpos[0] < 0.5
