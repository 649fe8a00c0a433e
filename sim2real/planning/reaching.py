"""Reaching for a place in space: where a robot's bodies are, as a differentiable function of its joints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sim2real.errors import ModelError, did_you_mean
from sim2real.planning.costs import number, numbers
from sim2real.randomization import RobotModel


@dataclass(frozen=True)
class _Link:
    """A body on the way from the world to the one that reaches: where it sits on the one before, and its joints."""

    place: tuple[float, ...]
    turn: tuple[tuple[float, ...], ...]
    joints: tuple[tuple[int, bool, tuple[float, ...], tuple[float, ...], float], ...]


class Kinematics:
    """Where a point of a body is, for any positions of the joints, as the robot's file has it.

    Args:
        robot: with hinges and slides.
        body: its name.
        point: of the body, in its own frame [m].

    Raises:
        ModelError: there is no such body.
    """

    def __init__(self, robot: RobotModel, body: str, point: tuple[float, ...] = (0.0, 0.0, 0.0)) -> None:
        import mujoco

        mj, hinge = robot.mj, int(mujoco.mjtJoint.mjJNT_HINGE)
        names = [mj.body(i).name for i in range(1, mj.nbody)]
        if body not in names:
            raise ModelError(f"the robot has no body {body!r}{did_you_mean(body, names)}")
        self.point, self.links = numbers("point", point), list[_Link]()
        if len(self.point) != 3:
            raise ModelError(f"a point of a body has three coordinates [m], found {self.point}")
        at = mj.body(body).id
        while at:
            turn = np.zeros(9)
            mujoco.mju_quat2Mat(turn, mj.body_quat[at])
            first, many = mj.body_jntadr[at], mj.body_jntnum[at]
            joints = tuple(
                (
                    j,
                    bool(mj.jnt_type[j] == hinge),
                    tuple(mj.jnt_axis[j].tolist()),
                    tuple(mj.jnt_pos[j].tolist()),
                    float(mj.qpos0[mj.jnt_qposadr[j]]),
                )
                for j in range(first, first + many)
            )
            place = tuple(mj.body_pos[at].tolist())
            self.links.insert(0, _Link(place, tuple(map(tuple, turn.reshape(3, 3).tolist())), joints))
            at = mj.body_parentid[at]

    def __call__(self, positions: Tensor) -> Tensor:
        """Return where the point is in the world [m]: (..., D) -> (..., 3)."""

        def constant(values: object) -> Tensor:
            return torch.as_tensor(values, dtype=positions.dtype)

        where, turned = constant([0.0, 0.0, 0.0]), torch.eye(3, dtype=positions.dtype)
        for link in self.links:
            where, turned = where + turned @ constant(link.place), turned @ constant(link.turn)
            for joint, hinge, axis, anchor, zero in link.joints:
                by = positions[..., joint, None] - zero
                if hinge:
                    pivot = where + turned @ constant(anchor)
                    turned = turned @ _rotation(constant(axis), by[..., None])
                    where = pivot - turned @ constant(anchor)
                else:
                    where = where + (turned @ constant(axis)) * by
        return where + turned @ constant(self.point)


def _rotation(axis: Tensor, angle: Tensor) -> Tensor:
    """Return the matrices (..., 3, 3) of rotations about a unit axis by angles (..., 1, 1) (Rodrigues)."""
    x, y, z = axis.tolist()
    cross = axis.new_tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return torch.eye(3, dtype=axis.dtype) + torch.sin(angle) * cross + (1 - torch.cos(angle)) * (cross @ cross)


@dataclass(frozen=True)
class Reach:
    """Bring a point of a body to a place in the world, and keep it there: (distance / width)², velocities, effort.

    Attributes:
        kinematics: of the point.
        goal: (3,) [m].
        width: a distance that counts as near [m].
        velocity: weight of the squared velocities of all joints [s²/rad² or s²/m²].
        effort: weight of the squared command [1/effort²].
    """

    kinematics: Kinematics
    goal: tuple[float, ...]
    width: float = 0.1
    velocity: float = 0.02
    effort: float = 0.002

    def __post_init__(self) -> None:
        object.__setattr__(self, "goal", numbers("goal", self.goal))
        for name in ("width", "velocity", "effort"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        if len(self.goal) != 3 or self.width <= 0:
            raise ModelError(
                f"reaching needs a goal of three coordinates [m] and a width above zero, found {self.goal} and "
                f"{self.width:g}"
            )

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        d = states.shape[-1] // 2
        moving = self.velocity * states[..., d:].square().sum(-1)
        return self._left(states) + moving + self.effort * commands.square().sum(-1)

    def closeness(self, states: Tensor) -> Tensor:
        """Return exp(-(distance / width)²)."""
        return torch.exp(-self._left(states))

    def _left(self, states: Tensor) -> Tensor:
        at = self.kinematics(states[..., : states.shape[-1] // 2])
        return ((at - at.new_tensor(self.goal)) / self.width).square().sum(-1)
