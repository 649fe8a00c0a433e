"""How soon a robot can stop, and what it takes."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.motors import gears
from sim2real.randomization import RobotModel
from sim2real.safety.limits import Limits

# States that the time to stop is found for, and halvings of it.
SAMPLES, HALVINGS = 2000, 20
# How often what is asked for is corrected by what may come of it.
ROUNDS = 2
# Of the axes of a vector: the one after each, and the one before.
_NEXT, _LAST = np.array([1, 2, 0]), np.array([2, 0, 1])


class Dynamics:
    """A robot at one state, or at many, as its model has it, and by how much another one may differ.

    Inertia and bias are sums over bodies. Where each body, with its inertia, is up to `margin` heavier or lighter than
    the model's, and what joints rub as much, every part of an acceleration is off by its share.

    Args:
        inertia: (..., V, V).
        bias: (..., V).
        parts: (..., B, V, V) of the inertia, of each body.
        pulls: (..., B + 1, V) of the bias, of each body, and what rubs.
        friction: (V,) dry friction of each joint.
        driven: (A,) joints.
        gear: (A,) effort of a command of one.
        margin: see above.

    Attributes:
        held: (..., V) acceleration that is held in check where the robot stands still.
        sticks: (..., V) acceleration that dry friction keeps from coming about.
    """

    __slots__ = ("_asking", "_driven", "_parts", "_pulls", "_share", "_through", "held", "sticks")

    def __init__(
        self,
        inertia: Array,
        bias: Array,
        parts: Array,
        pulls: Array,
        friction: Array,
        driven: NDArray[np.int_],
        gear: Array,
        margin: float,
    ) -> None:
        self._driven, self._share = driven, margin / (1 - margin)
        inverse = np.asarray(np.linalg.inv(inertia), float)
        self.held: Array = _times(inverse, bias)
        self.sticks: Array = np.diagonal(inverse, axis1=-2, axis2=-1) * friction
        self._through = inverse[..., driven] * gear
        if len(driven) == len(friction):  # all are: no inverse is needed to go back
            self._asking: Array = inertia[..., driven, :][..., driven] / gear[:, None]
        else:
            self._asking = np.asarray(np.linalg.inv(self._through[..., driven, :]), float)
        self._parts = inverse[..., None, :, :] @ parts
        self._pulls = _times(inverse[..., None, :, :], pulls)

    def acceleration(self, command: Array) -> Array:
        """Return the acceleration (..., V) of all joints under a command (..., A)."""
        return np.asarray(_times(self._through, command) - self.held)

    def unsure(self, acceleration: Array) -> Array:
        """Return by how much (..., V) an acceleration (..., V) may be another."""
        off = np.abs(_times(self._parts, acceleration[..., None, :]) + self._pulls[..., :-1, :]).sum(-2)
        return np.asarray(self._share * (off + np.abs(self._pulls[..., -1, :])))

    def command(self, wanted: Array) -> Array:
        """Return the command (..., A) that gives driven joints an acceleration (..., A)."""
        return _times(self._asking, wanted + self.held[..., self._driven])

    def slowing(self, relied: Array, way: Array) -> tuple[Array, Array]:
        """Return a command (..., A), and the acceleration (..., A) that it asks for, so that at least `relied` comes of
        it, the one way or the other (..., A)."""
        asked = relied * way
        for _ in range(ROUNDS):
            command = self.command(asked)
            asked = way * (relied + self.unsure(self.acceleration(command))[..., self._driven])
        return self.command(asked), asked


def _times(matrix: Array, vector: Array) -> Array:
    return np.asarray((matrix @ vector[..., None])[..., 0])


def _cross(a: Array, b: Array) -> Array:
    """Return the products of vectors (..., 3): numpy's own takes five times as long for a few."""
    return np.asarray(a[..., _NEXT] * b[..., _LAST] - a[..., _LAST] * b[..., _NEXT])


class Braking:
    """How a robot stops: every driven joint slows down from its limit of velocity to rest in one time, the shortest
    that its efforts allow for wherever it is within its limits.

    More deceleration is asked for than is relied on, by what a robot that differs from the model may owe. Joints that
    nothing drives follow as they must.

    Args:
        robot: whose dynamics are known, up to `margin`; its actuators are motors.
        limits: of the driven joints.
        margin: by which each body, and what joints rub, may differ from the model's.
        fade: time in which the last of a velocity fades [s]; a few periods, so that lagging estimates do not make the
            robot tremble.

    Attributes:
        time: from the limit of velocity to rest [s].
        deceleration: (A,) that can be relied on [rad/s² or m/s²].
        quickest: (A,) what may become of it.

    Raises:
        ModelError: an actuator is no motor of a joint of its own or not as strong as the limits say, no velocity is
            limited, or the efforts cannot stop and hold the robot everywhere.
    """

    def __init__(self, robot: RobotModel, limits: Limits, margin: float = 0.2, fade: float = 0.06) -> None:
        if not 0 <= margin < 1:
            raise ModelError(f"expected a margin from 0 to below 1, found {margin:g}")
        mj = robot.mj
        if mj.neq:
            raise ModelError(f"{robot.name} has equality constraints, which braking does not reckon with")
        self.robot, self.margin, self.fade = robot, margin, fade
        self.driven, self.effort = robot.driven, np.asarray(limits.effort, float)
        self._gear = _gears(robot, self.effort)
        self._free = np.setdiff1d(np.arange(mj.nv), self.driven)
        self._fastest_free = limits.free
        self._data = mujoco.MjData(mj)
        self._full = np.zeros((mj.nv, mj.nv))
        self._bodies = np.flatnonzero((mj.body_mass > 0) & (mj.body_weldid != 0))
        self._jacobians = np.zeros((2, len(self._bodies), 3, mj.nv))  # of places, and of turns
        self._changes = np.zeros_like(self._jacobians)
        fastest = np.asarray(limits.velocity, float)
        # of a joint without a limit, what others need
        fastest = np.where(np.isfinite(fastest), fastest, fastest[np.isfinite(fastest)].max(initial=1.0))
        self.time, self.quickest = self._shortest(limits, fastest)
        self.deceleration = fastest / self.time

    def dynamics(self, state: Array) -> Dynamics:
        """Return the dynamics at a state (X,)."""
        return Dynamics(*self._at(state), self.robot.mj.dof_frictionloss, self.driven, self._gear, self.margin)

    def _at(self, state: Array) -> tuple[Array, Array, Array, Array]:
        """Return inertia, bias, and both by bodies: `M = sum m J'J + Jr'I Jr`, and the like."""
        mj, data, half = self.robot.mj, self._data, len(state) // 2
        data.qpos[:], data.qvel[:] = state[:half], state[half:]
        mujoco.mj_fwdPosition(mj, data)
        mujoco.mj_fwdVelocity(mj, data)
        mujoco.mj_fullM(mj, data, self._full)
        (at, turn), (moves, spins) = self._jacobians, self._changes
        for k, body in enumerate(self._bodies):
            mujoco.mj_jacBodyCom(mj, data, at[k], turn[k], body)
            mujoco.mj_jacDot(mj, data, moves[k], spins[k], data.xipos[body], body)
        mass, axes = mj.body_mass[self._bodies, None, None], data.ximat[self._bodies].reshape(-1, 3, 3)
        tensor = (axes * mj.body_inertia[self._bodies, None, :]) @ axes.swapaxes(1, 2)
        pushed, turned = mass * at.swapaxes(1, 2), turn.swapaxes(1, 2)
        velocity = data.qvel
        spin = turn @ velocity
        fall = moves @ velocity - mj.opt.gravity
        wrench = _times(tensor, spins @ velocity) + _cross(spin, _times(tensor, spin))
        rubs = -data.qfrc_passive
        pulls = np.concatenate([_times(pushed, fall) + _times(turned, wrench), rubs[None]])
        return self._full.copy(), data.qfrc_bias + rubs, pushed @ at + turned @ tensor @ turn, pulls

    def distance(self, speed: Array) -> Array:
        """Return how far joints get (..., A) from a speed (..., A) until they stand: steadily, then fading."""
        fades = self.deceleration * self.fade
        steady = (speed**2 / self.deceleration + fades * self.fade) / 2
        return np.where(speed > fades, steady, speed * self.fade)

    def command(self, here: Dynamics, slower: Array, push: Array | float = 0.0) -> Array:
        """Return the command (A,) that lets velocities change by `slower` (A,), as fast as joints may be slowed down.

        Args:
            here: the dynamics.
            slower: (A,) [rad/s or m/s].
            push: (A,) acceleration on top of it [rad/s² or m/s²].
        """
        _, most = here.slowing(self.deceleration, np.where(slower < 0, -1.0, 1.0))
        most = np.abs(most)
        sent = here.command(np.minimum(np.maximum(slower / self.fade, -most), most) + push)
        return np.asarray(np.minimum(np.maximum(sent, -self.effort), self.effort))

    def after(self, state: Array, here: Dynamics, command: Array, period: float, sticking: bool = False) -> Array:
        """Return where a command (A,) takes a state (X,) in a period; what nothing drives keeps its velocity.

        Where joints stick, dry friction slows them down; where they do not, they get further, which is safer to assume.
        """
        half = len(state) // 2
        velocity, still = state[half:].copy(), period * here.sticks[self.driven]
        moved = velocity[self.driven] + period * here.acceleration(command)[self.driven]
        velocity[self.driven] = np.sign(moved) * np.maximum(np.abs(moved) - still, 0.0) if sticking else moved
        return np.concatenate([state[:half] + 0.5 * period * (state[half:] + velocity), velocity])

    def within(self, state: Array) -> bool:
        """Return whether joints that nothing drives are as slow as was reckoned with."""
        half = len(state) // 2
        return bool((np.abs(state[half:][self._free]) <= self._fastest_free).all())

    def _shortest(self, limits: Limits, fastest: Array) -> tuple[float, Array]:
        """Return the shortest time to stop in, and the largest deceleration (A,) that may come of it."""
        rng, model, a = np.random.default_rng(0), self.robot.mj, self.driven
        positions = rng.uniform(-np.pi, np.pi, (SAMPLES, model.nq))
        low, high = np.asarray(limits.position, float).T
        inside = np.isfinite(low) & np.isfinite(high)
        positions[:, a[inside]] = rng.uniform(low[inside], high[inside], (SAMPLES, int(inside.sum())))
        most = np.full(model.nv, limits.free)
        most[a] = fastest
        velocities = rng.uniform(-1, 1, (SAMPLES, model.nv))
        # half of them as fast as may be: what turns fast pulls most
        velocities[::2] = np.sign(velocities[::2])
        velocities *= most
        found = zip(*(self._at(np.concatenate(s)) for s in zip(positions, velocities, strict=True)), strict=True)
        inertia, bias, parts, pulls = (np.stack(rows) for rows in found)
        known = Dynamics(inertia, bias, parts, pulls, model.dof_frictionloss, a, self._gear, self.margin)
        way = -np.sign(velocities[:, a])

        def enough(time: float) -> bool:
            return bool((np.abs(known.slowing(fastest / time, way)[0]) <= self.effort).all())

        short, long = 1e-3, 100.0
        if not enough(long):
            raise ModelError(
                f"efforts of {self.effort.tolist()} cannot stop and hold {self.robot.name} everywhere within its "
                f"limits if it differs from its model by {self.margin:.0%}; allow more effort, less velocity or margin"
            )
        for _ in range(HALVINGS):
            middle = float(np.sqrt(short * long))
            short, long = (short, middle) if enough(middle) else (middle, long)
        command, asked = known.slowing(fastest / long, way)
        return long, (np.abs(asked) + known.unsure(known.acceleration(command))[:, a]).max(0)


def _gears(robot: RobotModel, effort: Array) -> Array:
    """Return what actuators make of commands (A,); refuse what is no motor, or weaker than it should be."""
    mj = robot.mj
    if len(effort) != mj.nu or not mj.nu:
        raise ModelError(f"{robot.name} has {mj.nu} actuators, the limits are of {len(effort)}")
    factor, names = gears(robot), np.asarray(robot.actuator_names)
    joint = mj.actuator_trnid[:, 0]
    for limited, ranges, sent in (
        (mj.actuator_ctrllimited, mj.actuator_ctrlrange, effort),
        (mj.actuator_forcelimited, mj.actuator_forcerange, effort * np.abs(mj.actuator_gainprm[:, 0])),
        (mj.jnt_actfrclimited[joint], mj.jnt_actfrcrange[joint], effort * np.abs(factor)),
    ):
        weak = (limited != 0) & (np.minimum(-ranges[:, 0], ranges[:, 1]) < sent)
        if weak.any():
            raise ModelError(f"{', '.join(names[weak])} of {robot.name} cannot do the efforts that the limits allow")
    return factor
