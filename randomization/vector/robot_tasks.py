"""Problems to learn on, by name: of the packaged pendulum and cart-pole, and of robots that come with Genesis.

Each is a `FunctionTask` of tensors, which runs on MuJoCo and on Genesis alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim2real.errors import MissingExtraError, ParameterError, did_you_mean
from sim2real.randomization.vector.task import FunctionTask

if TYPE_CHECKING:
    import mujoco
    from torch import Tensor

# Of Go2: hip, thigh and calf of each leg when it stands [rad].
STANDING = (0.0, 0.8, -1.5) * 4


def robot_task(name: str) -> FunctionTask:
    """Return a problem by name; see `ROBOT_TASKS`.

    Raises:
        ParameterError: there is none of that name.
        MissingExtraError: its robot comes with Genesis, which is not installed.
    """
    if name not in ROBOT_TASKS:
        raise ParameterError(f"no robot task named {name!r}{did_you_mean(name, ROBOT_TASKS)}")
    return ROBOT_TASKS[name]()


def swing_up() -> FunctionTask:
    """Swing the pendulum up and hold it; 50 Hz. Actions from -1 to 1 are torques of up to 2 N·m.

    Observed are sine, cosine and velocity.
    """
    return FunctionTask(
        _limited("pendulum", 2.0),
        observation=lambda p: _joined(p.qpos.sin(), p.qpos.cos(), p.qvel),
        reward=lambda p, action: (
            0.5 - 0.5 * p.qpos[:, 0].cos() - 0.005 * p.qvel[:, 0] ** 2 - 0.008 * (action**2).sum(1)
        ),
        terminated=lambda p: p.qpos[:, 0].abs() > 12.0,
        frame_skip=20,
        initial=lambda rng: (rng.uniform(-np.pi, np.pi, 1), rng.uniform(-1.0, 1.0, 1)),
        torch=True,
    )


def balance() -> FunctionTask:
    """Keep the pole of the cart-pole up and the cart near the middle; 50 Hz. Actions from -1 to 1 are up to 10 N.

    Observed are the cart's position and velocity, and sine, cosine and velocity of the pole. An episode ends where the
    pole leans by more than 0.5 rad or the cart is more than a metre away.
    """
    return FunctionTask(
        _limited("cartpole", 10.0),
        observation=lambda p: _joined(p.qpos[:, :1], p.qpos[:, 1:].sin(), p.qpos[:, 1:].cos(), p.qvel),
        reward=lambda p, action: 1.0 - 0.1 * p.qpos[:, 0] ** 2 - 0.1 * (action**2).sum(1),
        terminated=lambda p: (p.qpos[:, 1].cos() > -np.cos(0.5)) | (p.qpos[:, 0].abs() > 1.0),
        frame_skip=20,
        initial=lambda rng: (
            np.array([rng.uniform(-0.1, 0.1), np.pi + rng.uniform(-0.1, 0.1)]),
            rng.uniform(-0.1, 0.1, 2),
        ),
        torch=True,
    )


def franka_reach() -> FunctionTask:
    """Bring the flange of the Franka arm of Genesis to a point that each episode draws anew; targets of joints, 50 Hz.

    Servos have 400 N·m/rad and 40 N·m·s/rad. Observed are positions and velocities of the joints and the way to the
    point. Nothing touches.
    """
    import mujoco

    spec = mujoco.MjSpec.from_file(str(genesis_asset("xml/franka_emika_panda/panda_nohand.xml")))
    for geom in spec.geoms:
        geom.contype = geom.conaffinity = 0
    # as an impedance controller has it; those of the file want an implicit method, which each engine has its own of
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
    for servo in spec.actuators:
        servo.gainprm[0], servo.biasprm[1], servo.biasprm[2] = 400.0, -400.0, -40.0
    rest = np.array([0.0, -0.4, 0.0, -2.0, 0.0, 1.6, 0.8])
    flange = int(spec.copy().compile().body("attachment").id)

    def way(p: Any) -> Tensor:
        return p.goal - p.xpos[:, flange]  # type: ignore[no-any-return]

    return FunctionTask(
        spec,
        observation=lambda p: _joined(p.qpos, p.qvel, way(p)),
        reward=lambda p, action: -way(p).norm(dim=1) - 0.001 * (p.qvel**2).sum(1),
        terminated=lambda p: p.qpos[:, 0] != p.qpos[:, 0],  # only where it is lost
        frame_skip=10,
        fields=("xpos",),
        initial=lambda rng: (rest + rng.uniform(-0.1, 0.1, 7), np.zeros(7)),
        goal=lambda rng: np.array([rng.uniform(0.3, 0.6), rng.uniform(-0.4, 0.4), rng.uniform(0.2, 0.7)]),
        torch=True,
    )


def go2_walk() -> FunctionTask:
    """Walk with the Go2 of Genesis as a command says: velocity forwards and sideways [m/s] and turning rate [rad/s].

    Actions are targets of the twelve joints, legs front left, front right, rear left, rear right, at 50 Hz, behind
    servos of 20 N·m/rad and 0.5 N·m·s/rad. Observed are the turning rates, which way is down, the command, positions
    relative to standing, and velocities. An episode ends where the trunk leans by more than 0.6 rad or is lower than
    0.15 m. Rewards after `examples/locomotion` of Genesis: tracking of both, and no bouncing.
    """
    return FunctionTask(
        go2(),
        observation=_walking,
        reward=_walked,
        terminated=lambda p: (_down(p)[:, 2] > -0.82) | (p.qpos[:, 2] < 0.15),
        frame_skip=4,
        initial=lambda rng: (
            np.array([0.0, 0.0, 0.36, 1.0, 0.0, 0.0, 0.0, *(STANDING + rng.uniform(-0.1, 0.1, 12))]),
            np.zeros(18),
        ),
        goal=lambda rng: np.array([rng.uniform(0.3, 0.8), rng.uniform(-0.2, 0.2), rng.uniform(-0.5, 0.5)]),
        torch=True,
    )


def go2() -> mujoco.MjSpec:
    """Return the Go2 that comes with Genesis, on a floor, with servos and rotors at its joints."""
    import mujoco

    spec = mujoco.MjSpec.from_file(str(genesis_asset("urdf/go2/urdf/go2.urdf")))
    spec.option.timestep = 0.005
    spec.body("base").add_freejoint(name="base")
    floor = spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[50.0, 50.0, 1.0])
    floor.friction[0] = 0.8
    sun = {"pos": [0.0, 0.0, 4.0], "dir": [0.3, 0.3, -1.0], "diffuse": [0.8, 0.8, 0.8]}
    spec.worldbody.add_light(name="sun", type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, **sun)
    beside = {"pos": [0.3, -1.4, 0.5], "xyaxes": [1.0, 0.2, 0.0, -0.06, 0.3, 1.0]}
    spec.body("base").add_camera(name="track", mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM, **beside)
    for joint in spec.joints:
        if joint.type == mujoco.mjtJoint.mjJNT_HINGE:
            joint.armature = 0.01
    order = [f"{leg}_{part}_joint" for leg in ("FL", "FR", "RL", "RR") for part in ("hip", "thigh", "calf")]
    for name, middle in zip(order, STANDING, strict=True):
        servo = spec.add_actuator(name=name.removesuffix("_joint"), target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.gainprm[0], servo.biasprm[1], servo.biasprm[2] = 20.0, -20.0, -0.5
        servo.biastype = mujoco.mjtBias.mjBIAS_AFFINE
        servo.ctrllimited, servo.ctrlrange = True, [middle - 0.5, middle + 0.5]
        servo.forcelimited, servo.forcerange = True, [-23.7, 23.7]
    return spec


def genesis_asset(path: str) -> Path:
    """Return where a file among the assets of Genesis lies; Genesis is not imported.

    Raises:
        MissingExtraError: Genesis is not installed.
    """
    import importlib.util

    found = importlib.util.find_spec("genesis")
    if found is None or found.origin is None:
        raise MissingExtraError(
            "the robot comes with Genesis, which is not installed: pip install 'sim2real-toolkit[genesis]'"
        )
    return Path(found.origin).parent / "assets" / path


def _limited(robot: str, effort: float) -> mujoco.MjSpec:
    """Return a packaged robot whose motors give so much for a command of one, which is the most [N·m or N]."""
    from sim2real.randomization.mujoco_model import load_spec

    spec = load_spec(robot)
    for actuator in spec.actuators:
        actuator.gear[0] *= effort
        actuator.ctrllimited, actuator.ctrlrange = True, [-1.0, 1.0]
    return spec


def _joined(*parts: Tensor) -> Tensor:
    import torch

    return torch.cat(parts, 1)


def _down(p: Any) -> Tensor:
    """Which way is down, along the axes of the trunk: (n, 3)."""
    w, x, y, z = p.qpos[:, 3:7].unbind(1)
    return -_joined(
        (2.0 * (x * z - w * y))[:, None], (2.0 * (y * z + w * x))[:, None], (w * w - x * x - y * y + z * z)[:, None]
    )


def _along_trunk(p: Any) -> Tensor:
    """Return the velocity of the trunk along its own axes, turned about the vertical alone: (n, 2) [m/s]."""
    w, x, y, z = p.qpos[:, 3:7].unbind(1)
    heading = (2.0 * (w * z + x * y)).atan2(1.0 - 2.0 * (y * y + z * z))
    forwards, sideways = p.qvel[:, 0], p.qvel[:, 1]
    cos, sin = heading.cos(), heading.sin()
    return _joined((cos * forwards + sin * sideways)[:, None], (cos * sideways - sin * forwards)[:, None])


def _standing(p: Any) -> Tensor:
    return p.qpos.new_tensor(STANDING)  # type: ignore[no-any-return]


def _walking(p: Any) -> Tensor:
    return _joined(p.qvel[:, 3:6], _down(p), p.goal.to(p.qpos.dtype), p.qpos[:, 7:] - _standing(p), p.qvel[:, 6:])


def _walked(p: Any, action: Tensor) -> Tensor:
    wanted = p.goal.to(p.qpos.dtype)
    off = ((_along_trunk(p) - wanted[:, :2]) ** 2).sum(1)
    turning = (p.qvel[:, 5] - wanted[:, 2]) ** 2
    pose: Tensor = (p.qpos[:, 7:] - _standing(p)).abs().sum(1)
    tracking: Tensor = (-off / 0.25).exp() + 0.2 * (-turning / 0.25).exp()
    bouncing: Tensor = p.qvel[:, 2] ** 2
    off_pose: Tensor = 0.02 * pose
    return tracking - bouncing - off_pose


ROBOT_TASKS: dict[str, Callable[[], FunctionTask]] = {
    "pendulum": swing_up,
    "cartpole": balance,
    "franka_reach": franka_reach,
    "go2_walk": go2_walk,
}
