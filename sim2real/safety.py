"""A safety filter that trusts neither the model nor the planner: what it lets through can still be stopped in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.estimation import Estimate
from sim2real.planning.policy import Policy
from sim2real.randomization import RobotModel

# States that the time to stop is found for, halvings of it, and of the way from braking to what was asked for.
SAMPLES, HALVINGS, SHARES = 2000, 20, 6
# Share of the way between its stops, and of its velocity, that a joint keeps away from them; how soon it is back [s].
AWAY, BACK = 0.02, 0.1
# A period may be longer than it should be by this factor before readings are late.
LATE = 2.5
# A reading that stays the same to the bit for so long [s] has stopped, if the robot must have moved so far [rad or m].
FROZEN, MOVED = 0.1, 0.05


@dataclass(frozen=True)
class Limits:
    """Hard limits of the joints that actuators drive, in their order.

    Attributes:
        effort: (A,) largest command [N·m or N].
        position: (A, 2) [rad or m], infinite where there is none.
        velocity: (A,) [rad/s or m/s], infinite where there is none; finite where a position is limited.
        rate: (A,) largest change of a command in a second [N·m/s or N/s], infinite where there is none.
        free: velocity up to which joints that nothing drives are reckoned with [rad/s or m/s]; beyond it, the others
            only brake.

    Raises:
        ModelError: shapes disagree, a limit is not positive, or a joint with stops has no limit of velocity.
    """

    effort: Sequence[float]
    position: Sequence[tuple[float, float]] = ()
    velocity: Sequence[float] = ()
    rate: Sequence[float] = ()
    free: float = 10.0

    def __post_init__(self) -> None:
        many = len(self.effort)
        nothing: dict[str, Any] = {"position": (-np.inf, np.inf), "velocity": np.inf, "rate": np.inf}
        for name, value in nothing.items():
            given = np.asarray(getattr(self, name), float)
            filled = given if len(given) else np.asarray([value] * many)
            if len(filled) != many:
                raise ModelError(f"limits of {many} actuators: expected as many of {name}, found {len(given)}")
            object.__setattr__(self, name, filled)
        object.__setattr__(self, "effort", np.asarray(self.effort, float))
        stops = np.asarray(self.position).reshape(many, 2)
        if not (stops[:, 0] < stops[:, 1]).all():
            raise ModelError(f"the lower stop of a joint is below the upper one, found {stops.tolist()}")
        if min(*self.effort, *self.velocity, *self.rate, self.free) <= 0:
            raise ModelError("limits of effort, velocity and rate are above zero")
        if not np.isfinite(np.asarray(self.velocity)[np.isfinite(stops).any(1)]).all():
            raise ModelError("a joint with stops needs a limit of its velocity: how else could it stop in time?")


class Braking:
    """How a robot stops: every driven joint slows down from its limit of velocity to rest in one time, the shortest
    that its efforts allow for wherever it is within its limits.

    Joints that nothing drives follow as they must.

    Args:
        robot: whose dynamics are known, up to `margin`; its actuators are motors.
        limits: of the driven joints.
        margin: by which inertia and bias may differ from the model's.

    Attributes:
        time: from the limit of velocity to rest [s].
        deceleration: (A,) that is asked for [rad/s² or m/s²].
        reliable: (A,) what is left of it where the robot differs from the model by `margin`.

    Raises:
        ModelError: an actuator is no motor of a joint of its own or not as strong as the limits say, no velocity is
            limited, or the efforts cannot stop and hold the robot everywhere.
    """

    def __init__(self, robot: RobotModel, limits: Limits, margin: float = 0.2) -> None:
        self.robot, self.margin = robot, margin
        self.driven, self.effort = robot.driven, np.asarray(limits.effort, float)
        self._gear = _gears(robot, self.effort)
        self._free = np.setdiff1d(np.arange(robot.mj.nv), self.driven)
        self._fastest_free = limits.free
        self._data = mujoco.MjData(robot.mj)
        self._full = np.zeros((robot.mj.nv, robot.mj.nv))
        fastest = np.asarray(limits.velocity, float)
        # of a joint without a limit, what others need
        fastest = np.where(np.isfinite(fastest), fastest, fastest[np.isfinite(fastest)].max(initial=1.0))
        self.time, worst = self._shortest(limits, fastest)
        self.deceleration = fastest / self.time
        # of what is pushed, which is what is asked for and what is held, and of what is held
        self.reliable = (1 - margin) * self.deceleration - 2 * margin * worst
        if not (self.reliable > 0).all():
            raise ModelError(
                f"where {robot.name} differs from its model by {margin:.0%}, efforts of {self.effort.tolist()} may not "
                "stop it; allow more effort, or a smaller margin"
            )

    def dynamics(self, state: Array) -> tuple[Array, Array]:
        """Return inertia (A, A) and bias (A,) of the driven joints at a state (X,): `inertia @ acceleration + bias` is
        the effort that accelerates them so, whatever the others do meanwhile."""
        model, data, half = self.robot.mj, self._data, len(state) // 2
        data.qpos[:], data.qvel[:] = state[:half], state[half:]
        mujoco.mj_fwdPosition(model, data)
        mujoco.mj_fwdVelocity(model, data)
        mujoco.mj_fullM(model, data, self._full)
        inertia, bias, a, f = self._full, data.qfrc_bias - data.qfrc_passive, self.driven, self._free
        if not len(f):
            return inertia[np.ix_(a, a)].copy(), bias[a]
        through = np.linalg.solve(inertia[np.ix_(f, f)], np.column_stack([inertia[np.ix_(f, a)], bias[f]]))
        across = inertia[np.ix_(a, f)]
        return inertia[np.ix_(a, a)] - across @ through[:, :-1], bias[a] - across @ through[:, -1]

    def command(self, inertia: Array, bias: Array, slower: Array, period: float) -> Array:
        """Return the command (A,) that changes velocities by `slower` (A,), as fast as joints may be slowed down."""
        wanted = np.clip(slower / period, -self.deceleration, self.deceleration)
        return np.asarray(np.clip((inertia @ wanted + bias) / self._gear, -self.effort, self.effort))

    def acceleration(self, inertia: Array, bias: Array, command: Array) -> tuple[Array, Array]:
        """Return the acceleration of driven joints under a command (A,), and by how much it may be another."""
        pushed, held = np.linalg.solve(inertia, np.column_stack([self._gear * command, bias])).T
        return pushed - held, self.margin * (np.abs(pushed) + np.abs(held))

    def after(self, state: Array, command: Array, period: float) -> Array:
        """Return where a command (A,) takes a state (X,) in a period; what nothing drives keeps its velocity."""
        half = len(state) // 2
        change, _ = self.acceleration(*self.dynamics(state), command)
        velocity = state[half:].copy()
        velocity[self.driven] += period * change
        return np.concatenate([state[:half] + 0.5 * period * (state[half:] + velocity), velocity])

    def within(self, state: Array) -> bool:
        """Return whether joints that nothing drives are as slow as was reckoned with."""
        half = len(state) // 2
        return bool((np.abs(state[half:][self._free]) <= self._fastest_free).all())

    def _shortest(self, limits: Limits, fastest: Array) -> tuple[float, Array]:
        """Return the shortest time to stop in, and the largest acceleration (A,) that has to be held."""
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
        known = [self.dynamics(np.concatenate(s)) for s in zip(positions, velocities, strict=True)]
        worst = np.max([np.abs(np.linalg.solve(inertia, bias)) for inertia, bias in known], 0)
        slower, room = -np.sign(velocities[:, a]) * fastest, self.effort * np.abs(self._gear)

        def enough(time: float) -> bool:
            return all(
                ((1 + self.margin) * (np.abs(inertia @ (d / time)) + np.abs(bias)) <= room).all()
                for (inertia, bias), d in zip(known, slower, strict=True)
            )

        short, long = 1e-3, 100.0
        if not enough(long):
            raise ModelError(
                f"efforts of {self.effort.tolist()} cannot hold {self.robot.name} everywhere within its limits with "
                f"{self.margin:.0%} to spare; allow more effort, or less velocity"
            )
        for _ in range(HALVINGS):
            middle = float(np.sqrt(short * long))
            short, long = (short, middle) if enough(middle) else (middle, long)
        return long, worst


def _gears(robot: RobotModel, effort: Array) -> Array:
    """Return what actuators make of commands (A,); refuse what is no motor, or weaker than it should be."""
    mj = robot.mj
    if len(effort) != mj.nu or not mj.nu:
        raise ModelError(f"{robot.name} has {mj.nu} actuators, the limits are of {len(effort)}")
    motor = (
        (mj.actuator_gaintype == int(mujoco.mjtGain.mjGAIN_FIXED))
        & (mj.actuator_biastype == int(mujoco.mjtBias.mjBIAS_NONE))
        & (mj.actuator_dyntype == int(mujoco.mjtDyn.mjDYN_NONE))
        & (mj.actuator_trntype == int(mujoco.mjtTrn.mjTRN_JOINT))
    )
    names = np.asarray(robot.actuator_names)
    if not motor.all():
        raise ModelError(
            f"a safety filter commands efforts: expected motors of joints, found {', '.join(names[~motor])} of "
            f"{robot.name}, which take something else"
        )
    if len(np.unique(robot.driven)) < mj.nu:
        raise ModelError(f"expected one motor a joint, found several on one in {robot.name}")
    factor = np.asarray(mj.actuator_gear[:, 0] * mj.actuator_gainprm[:, 0])
    for limited, ranges, sent in (
        (mj.actuator_ctrllimited, mj.actuator_ctrlrange, effort),
        (mj.actuator_forcelimited, mj.actuator_forcerange, effort * np.abs(mj.actuator_gainprm[:, 0])),
    ):
        weak = (limited != 0) & (np.abs(ranges).min(1) < sent)
        if weak.any():
            raise ModelError(f"{', '.join(names[weak])} of {robot.name} cannot do the efforts that the limits allow")
    return factor


class SafetyFilter:
    """A `Policy` around a policy: commands pass if the robot can still stop in time afterwards, else it brakes.

    - Efforts and their rate are clipped; braking is not held to the rate.
    - After every command, the joints must be able to stop before their stops, and be within their velocities, by the
      model's acceleration and what the margin adds to it or takes from it. Where they would not, the command goes only
      as far from braking as it may.
    - Commands that are still on their way are followed to where they lead first.
    - Readings that are not finite, late, or frozen, and a policy that throws or returns what is no command, latch the
      emergency stop: the robot brakes and is held, until `release`. Without readings it brakes by dead reckoning.

    It knows the robot's dynamics, but neither the world model nor the planner.

    Args:
        policy: what to filter; for as many plants as are asked for.
        limits: of the driven joints.
        robot: with hinges and slides, and motors.
        period: of the loop [s].
        margin: by which inertia and bias may differ from the model's.
        delay: from a command to its effect [s]; whole periods are reckoned with.

    Attributes:
        braking: how the robot stops.
        stopped: why the emergency stop is latched; None while it is not.
        interventions: how often a command was changed, by reason.

    Raises:
        ModelError: as `Braking`.
    """

    def __init__(
        self,
        policy: Policy,
        limits: Limits,
        robot: RobotModel,
        period: float,
        margin: float = 0.2,
        delay: float = 0.0,
    ) -> None:
        self.policy, self.limits, self.period = policy, limits, period
        self.braking = Braking(robot, limits, margin)
        self._effort, self._rate = np.asarray(limits.effort, float), np.asarray(limits.rate, float) * period
        low, high = np.asarray(limits.position, float).T
        self._fastest = np.asarray(limits.velocity, float)
        width = AWAY * np.where(np.isfinite(high - low), high - low, 0.0)
        self._inside = low + width, high - width
        self._flying_for = math.ceil(delay / period - 1e-6)
        self._patience = max(round(FROZEN / period), 3)
        self.interventions: dict[str, int] = {}
        self.stopped: str | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the past, but not an emergency stop."""
        self.policy.reset()
        self._sent: list[Array] = []  # as many as are on their way, and the last one
        self._known: Array | None = None  # where the robot is, by dead reckoning where it cannot be read
        self._forget_readings()

    def release(self) -> None:
        """Take the emergency stop back."""
        self.stopped = None
        self._forget_readings()

    def _forget_readings(self) -> None:
        self._time: float | None = None
        self._seen: Array | None = None
        self._same: NDArray[np.int_] | None = None

    def stop(self, reason: str) -> None:
        """Latch the emergency stop."""
        self.stopped = self.stopped or reason

    def act(self, estimate: Estimate, t: float) -> Array:
        """Return commands (n, A) that are safe."""
        state = np.asarray(estimate.state, float)
        n, actions = len(state), len(self._effort)
        if not self._sent or len(self._sent[0]) != n:
            self._sent, self._known = [np.zeros((n, actions))] * max(self._flying_for, 1), None
            self._forget_readings()
        blind = self._watch(estimate, t)
        asked = None if self.stopped else self._ask(estimate, t)
        if blind and self._known is None:  # nothing was ever known
            return self._note(np.zeros((n, actions)), None)
        at = self._known if blind else state
        assert at is not None
        out = np.empty((n, actions))
        for i in range(n):
            there = at[i]
            for sent in self._sent[-self._flying_for :] if self._flying_for else ():
                there = self.braking.after(there, sent[i], self.period)
            out[i] = self._one(there, None if asked is None else asked[i], self._sent[-1][i], bool(blind))
        return self._note(out, at)

    def _note(self, sent: Array, at: Array | None) -> Array:
        """Note what is sent, and where the robot will be a period from now."""
        self._sent = [*self._sent[1:], sent]
        if at is not None:
            acts = self._sent[0] if self._flying_for else sent
            self._known = np.stack([self.braking.after(x, u, self.period) for x, u in zip(at, acts, strict=True)])
        return sent.copy()

    def _watch(self, estimate: Estimate, t: float) -> bool:
        """Latch the stop where readings are not to be relied on; return whether they are good for nothing."""
        state = np.asarray(estimate.state, float)
        if self._time is not None and not 0 < t - self._time <= LATE * self.period:
            self.stop(f"readings are late: {1e3 * (t - self._time):.0f} ms after the last one")
        self._time = t
        if not np.isfinite(state).all():
            self.stop("readings are not finite")
            return True
        read = state[:, : state.shape[1] // 2] if estimate.reading is None else np.asarray(estimate.reading)
        same = np.zeros(len(read), bool) if self._seen is None else (read == self._seen).all(1)
        if self._same is None or self._seen is None:
            self._same, self._reckoned = np.zeros(len(read), int), state.copy()
        self._seen, self._same = read.copy(), np.where(same, self._same + 1, 0)
        frozen = False
        for i in range(len(read)):
            if not same[i]:
                self._reckoned[i] = state[i]
                continue
            if self._same[i] > self._patience:  # at rest: what is reckoned drifts
                continue
            self._reckoned[i] = self.braking.after(self._reckoned[i], self._sent[0][i], self.period)
            gone = np.abs(self._reckoned[i] - state[i])[: state.shape[1] // 2][self.braking.driven]
            if self._same[i] == self._patience and (gone > MOVED).any():
                self.stop(f"readings have not changed for {self._same[i]} periods")
                frozen = True
        return frozen

    def _ask(self, estimate: Estimate, t: float) -> Array | None:
        try:
            command = np.asarray(self.policy.act(estimate, t), float)
        except Exception as error:  # whatever a policy throws must not reach the robot
            self.stop(f"the policy failed: {type(error).__name__}: {error}")
            return None
        if command.shape != (len(estimate.state), len(self._effort)) or not np.isfinite(command).all():
            self.stop("the policy returned what is no command")
            return None
        return command

    def _one(self, state: Array, asked: Array | None, sent: Array, blind: bool) -> Array:
        """Return a safe command (A,) for one plant."""
        braking, half = self.braking, len(state) // 2
        inertia, bias = braking.dynamics(state)
        q, v = state[:half][braking.driven], state[half:][braking.driven]
        # what is only reckoned is no place to go back from
        back = np.zeros_like(q) if blind else (np.clip(q, *self._inside) - q) / BACK
        brake = braking.command(inertia, bias, back - v, self.period)
        if asked is None:
            self._count("emergency stop")
            return brake
        limited = np.clip(asked, -self._effort, self._effort)
        if not np.array_equal(limited, asked):
            self._count("effort")
        slower = np.clip(limited, sent - self._rate, sent + self._rate)
        if not np.array_equal(slower, limited):
            self._count("rate")
        known = braking.within(state)

        def safe(command: Array) -> bool:
            return known and self._can_stop(q, v, *braking.acceleration(inertia, bias, command))

        if safe(slower):
            return slower
        self._count("braking")
        good, bad = 0.0, 1.0
        for _ in range(SHARES):
            share = 0.5 * (good + bad)
            good, bad = (share, bad) if safe(brake + share * (slower - brake)) else (good, share)
        return np.asarray(brake + good * (slower - brake))

    def _can_stop(self, q: Array, v: Array, acceleration: Array, unsure: Array) -> bool:
        """Return whether joints are within their limits after a period, and can still stop before they leave them."""
        dt, slows, (low, high) = self.period, self.braking.reliable, self._inside
        for a in (acceleration - unsure, acceleration + unsure):
            after = v + dt * a
            # the furthest that a period takes it, and then its braking distance
            up, down = np.maximum.reduce([v, after, 0 * v]), np.minimum.reduce([v, after, 0 * v])
            highest = q + dt * up + np.maximum(after, 0) ** 2 / (2 * slows)
            lowest = q + dt * down - np.minimum(after, 0) ** 2 / (2 * slows)
            if (highest > high).any() or (lowest < low).any() or (np.abs(after) > (1 - AWAY) * self._fastest).any():
                return False
        return True

    def _count(self, reason: str) -> None:
        self.interventions[reason] = self.interventions.get(reason, 0) + 1


def viable(safety: SafetyFilter, states: Array) -> NDArray[np.bool_]:
    """Return from which states (n, X) braking at once keeps every limit: (n,)."""
    half, driven = states.shape[1] // 2, safety.braking.driven
    q, v = states[:, :half][:, driven], states[:, half:][:, driven]
    low, high = np.asarray(safety.limits.position, float).T
    reach = v * np.abs(v) / (2 * safety.braking.reliable) + v * safety.period
    within = (np.maximum(q, q + reach) <= high) & (np.minimum(q, q + reach) >= low)
    return np.asarray((within & (np.abs(v) <= np.asarray(safety.limits.velocity))).all(1))
