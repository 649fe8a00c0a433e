"""A safety filter that trusts neither the model nor the planner: what it lets through can still be stopped in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
# So many readings that are the same to the bit, while the robot should move, are of a sensor that has stopped.
FROZEN = 5


@dataclass(frozen=True)
class Limits:
    """Hard limits of the joints that actuators drive, in their order.

    Attributes:
        effort: (A,) largest command [N·m or N].
        position: (A, 2) [rad or m], infinite where there is none.
        velocity: (A,) [rad/s or m/s], infinite where there is none; finite where a position is limited.
        rate: (A,) largest change of a command in a second [N·m/s or N/s], infinite where there is none.

    Raises:
        ModelError: shapes disagree, a limit is not positive, or a joint with stops has no limit of velocity.
    """

    effort: Sequence[float]
    position: Sequence[tuple[float, float]] = ()
    velocity: Sequence[float] = ()
    rate: Sequence[float] = ()

    def __post_init__(self) -> None:
        many = len(self.effort)
        filled = {
            "position": self.position or [(-np.inf, np.inf)] * many,
            "velocity": self.velocity or [np.inf] * many,
            "rate": self.rate or [np.inf] * many,
        }
        for name, value in filled.items():
            if len(value) != many:
                raise ModelError(f"limits of {many} actuators: expected as many of {name}, found {len(value)}")
            object.__setattr__(self, name, value)
        stops = np.asarray(self.position)
        if not (stops[:, 0] < stops[:, 1]).all():
            raise ModelError(f"the lower stop of a joint is below the upper one, found {self.position}")
        if min(*self.effort, *self.velocity, *self.rate) <= 0:
            raise ModelError("limits of effort, velocity and rate are above zero")
        stopped = np.isfinite(stops).any(1)
        if not np.isfinite(np.asarray(self.velocity)[stopped]).all():
            raise ModelError("a joint with stops needs a limit of its velocity: how else could it stop in time?")


class Braking:
    """How a robot stops: every driven joint slows down from its limit of velocity to rest in one time, the shortest
    that its efforts allow for wherever it is within its limits.

    Joints that nothing drives follow as they must.

    Args:
        robot: whose dynamics are known, up to `margin`.
        limits: of the driven joints.
        margin: by which accelerations may differ from the model's.

    Attributes:
        time: from the limit of velocity to rest [s].
        deceleration: (A,) that is asked for [rad/s² or m/s²].
        reliable: (A,) what is left of it where the robot differs from the model by `margin`.

    Raises:
        ModelError: there is no actuator, no limit of velocity, or the efforts cannot hold the robot everywhere.
    """

    def __init__(self, robot: RobotModel, limits: Limits, margin: float = 0.2) -> None:
        self.robot, self.margin = robot, margin
        self.driven = robot.driven
        if len(limits.effort) != len(self.driven):
            raise ModelError(f"{robot.name} has {len(self.driven)} actuators, the limits are of {len(limits.effort)}")
        self._free = np.setdiff1d(np.arange(robot.mj.nv), self.driven)
        self._gear = robot.mj.actuator_gear[:, 0].copy()
        self._data = mujoco.MjData(robot.mj)
        self._full = np.zeros((robot.mj.nv, robot.mj.nv))
        self.effort = np.asarray(limits.effort, float)
        fastest = np.asarray(limits.velocity, float)
        # of a joint without a limit, what others need
        fastest = np.where(np.isfinite(fastest), fastest, fastest[np.isfinite(fastest)].max(initial=1.0))
        self.time = self._shortest(limits, fastest)
        self.deceleration = fastest / self.time
        self.reliable = (1 - margin) * self.deceleration - margin * self._worst
        if not (self.reliable > 0).all():
            raise ModelError(
                f"where {robot.name} differs from its model by {margin:.0%}, efforts of {limits.effort} may not stop "
                "it; allow more effort, or a smaller margin"
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

    def _shortest(self, limits: Limits, fastest: Array) -> float:
        rng, model, a = np.random.default_rng(0), self.robot.mj, self.driven
        positions = rng.uniform(-np.pi, np.pi, (SAMPLES, model.nq))
        low, high = np.asarray(limits.position, float).T
        inside = np.isfinite(low) & np.isfinite(high)
        positions[:, a[inside]] = rng.uniform(low[inside], high[inside], (SAMPLES, int(inside.sum())))
        velocities = rng.uniform(-1, 1, (SAMPLES, model.nv))
        velocities[:, a] *= fastest
        known = [self.dynamics(np.concatenate(s)) for s in zip(positions, velocities, strict=True)]
        self._worst = np.max([np.abs(np.linalg.solve(inertia, bias)) for inertia, bias in known], 0)
        signs = np.sign(velocities[:, a])
        room = (1 - self.margin) * self.effort * np.abs(self._gear)

        def enough(time: float) -> bool:
            slower = -signs * fastest / time
            return all(
                (np.abs(inertia @ d + bias) <= room).all() for (inertia, bias), d in zip(known, slower, strict=True)
            )

        low_time, high_time = 1e-3, 100.0
        if not enough(high_time):
            raise ModelError(
                f"efforts of {limits.effort} cannot hold {self.robot.name} everywhere within its limits with "
                f"{self.margin:.0%} to spare; allow more effort, or less velocity"
            )
        for _ in range(HALVINGS):
            middle = float(np.sqrt(low_time * high_time))
            low_time, high_time = (low_time, middle) if enough(middle) else (middle, high_time)
        return high_time


class SafetyFilter:
    """A `Policy` around a policy: commands pass if the robot can still stop in time afterwards, else it brakes.

    - Efforts and their rate are clipped.
    - After every command, the joints must be able to stop before their stops, and be within their velocities, by the
      model's acceleration and 20 % more or less of it. Where they would not, the command goes only as far from braking
      as it may.
    - Readings that are not finite, late, or frozen, and a policy that throws or returns what is no command, latch the
      emergency stop: the robot brakes and is held, until `release`.

    It knows the robot's dynamics, but neither the world model nor the planner.

    Args:
        policy: what to filter; for as many plants as are asked for.
        limits: of the driven joints.
        robot: with hinges and slides; its commands are efforts.
        period: of the loop [s].
        margin: by which accelerations may differ from the model's.

    Attributes:
        braking: how the robot stops.
        stopped: why the emergency stop is latched; None while it is not.
        interventions: how often a command was changed, by reason.
    """

    def __init__(self, policy: Policy, limits: Limits, robot: RobotModel, period: float, margin: float = 0.2) -> None:
        self.policy, self.limits, self.period, self.margin = policy, limits, period, margin
        self.braking = Braking(robot, limits, margin)
        self._effort, self._rate = np.asarray(limits.effort, float), np.asarray(limits.rate, float) * period
        self._low, self._high = np.asarray(limits.position, float).T
        self._fastest = np.asarray(limits.velocity, float)
        width = AWAY * np.where(np.isfinite(self._high - self._low), self._high - self._low, 0.0)
        self._inside = self._low + width, self._high - width
        self.interventions: dict[str, int] = {}
        self.stopped: str | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the past, but not an emergency stop."""
        self.policy.reset()
        self._time: float | None = None
        self._seen: Array | None = None
        self._sent: Array | None = None
        self._same = 0

    def release(self) -> None:
        """Take the emergency stop back."""
        self.stopped = None
        self._same = 0

    def stop(self, reason: str) -> None:
        """Latch the emergency stop."""
        self.stopped = self.stopped or reason

    def act(self, estimate: Estimate, t: float) -> Array:
        """Return commands (n, A) that are safe."""
        seen = np.asarray(estimate.state, float)
        blind = self._watch(seen, t)
        asked = None if self.stopped else self._ask(estimate, t)
        n, actions = len(seen), len(self._effort)
        if self._sent is None or self._sent.shape[0] != n:
            self._sent, self._known = np.zeros((n, actions)), np.zeros_like(seen)
        if blind:  # where it was last is where it is held
            seen = self._known.copy()
            seen[:, seen.shape[1] // 2 :] = 0.0
        self._known = seen
        out = np.empty((n, actions))
        for i, state in enumerate(seen):
            out[i] = self._one(state, None if asked is None else asked[i], self._sent[i])
        self._sent = out
        return out.copy()

    def _watch(self, state: Array, t: float) -> bool:
        """Latch the stop where readings are not to be relied on; return whether they are good for nothing."""
        if self._time is not None and not 0 < t - self._time <= LATE * self.period:
            self.stop(f"readings are late: {1e3 * (t - self._time):.0f} ms after the last one")
        self._time = t
        if not np.isfinite(state).all():
            self.stop("readings are not finite")
            return True
        same = self._seen is not None and np.array_equal(self._seen, state)
        self._same, self._seen = self._same + 1 if same else 0, state.copy()
        frozen = self._same >= FROZEN and bool(np.abs(state[:, state.shape[1] // 2 :]).max(initial=0.0) > 0)
        if frozen:
            self.stop(f"readings have not changed for {self._same} periods")
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

    def _one(self, state: Array, asked: Array | None, sent: Array) -> Array:
        """Return a safe command (A,) for one plant."""
        braking, half = self.braking, len(state) // 2
        inertia, bias = braking.dynamics(state)
        q, v = state[:half][braking.driven], state[half:][braking.driven]
        back = (np.clip(q, *self._inside) - q) / BACK
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

        def safe(command: Array) -> bool:
            return self._can_stop(q, v, *braking.acceleration(inertia, bias, command))

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
    half = states.shape[1] // 2
    driven = safety.braking.driven
    q, v = states[:, :half][:, driven], states[:, half:][:, driven]
    low, high = np.asarray(safety.limits.position, float).T
    slows = safety.braking.reliable
    reach = v * np.abs(v) / (2 * slows) + v * safety.period
    within = (np.maximum(q, q + reach) <= high) & (np.minimum(q, q + reach) >= low)
    return np.asarray((within & (np.abs(v) <= np.asarray(safety.limits.velocity))).all(1))
