"""A safety filter that trusts neither the model nor the planner: what it lets through can still be stopped in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array
from sim2real.estimation import Estimate
from sim2real.planning.policy import Policy
from sim2real.randomization import RobotModel
from sim2real.safety.braking import Braking, Dynamics
from sim2real.safety.clearance import Clearance
from sim2real.safety.limits import Limits
from sim2real.safety.watchdog import Watchdog

# Shares of the way from braking to what was asked for.
SHARES = np.linspace(1, 0, 32, endpoint=False)[1:]
# Stretches that the way to a standstill is looked at in.
STRETCHES = 8
# Share of the way between its stops, and of its velocity, that a joint keeps away from them; how soon it is back [s].
AWAY, BACK = 0.02, 0.1
# Periods in which the last of a velocity fades.
FADE = 3
# Share of what a period of braking takes from a velocity below which a joint stands.
STILL = 0.1
# How soon what the model does not know of accelerations is learned, and made up for in braking [s].
LEARNED = 0.08


@dataclass
class _Hold:
    """How a plant that brakes is held.

    Attributes:
        place: (A,) where, NaN before it stands.
        left: (A,) time until it should stand [s].
    """

    place: Array
    left: Array


class SafetyFilter:
    """A `Policy` around a policy: commands pass if the robot can still stop in time afterwards, else it brakes.

    - Efforts and their rate are clipped; braking is not held to the rate.
    - After every command, the joints must be able to stop before their stops, and be within their velocities, by the
      model's acceleration and what the margin adds to it or takes from it. Where they would not, the command goes only
      as far from braking as it may.
    - Where a clearance is to be kept, so must it be all along the way to a standstill, as slowly and as quickly as the
      robot may stop.
    - Commands that are still on their way are followed to where they lead first.
    - Readings that are not finite, late, frozen or jump, and a policy that throws or returns what is no command, latch
      the emergency stop: the robot brakes and is held, until `release`. Without readings it brakes by dead reckoning.

    It knows the robot's dynamics, but neither the world model nor the planner.

    Args:
        policy: what to filter; for as many plants as are asked for.
        limits: of the driven joints.
        robot: with hinges and slides, and motors.
        period: of the loop [s].
        margin: by which each body, and what joints rub, may differ from the model's.
        delay: from a command to its effect [s]; whole periods are reckoned with.

    Attributes:
        braking: how the robot stops.
        clearance: that is kept; None where none is to be.
        inside: what joints are kept within, (A,) below and (A,) above; a little less than their stops.
        fastest: (A,) velocity that is kept; a little less than the limit.
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
        self.braking = Braking(robot, limits, margin, FADE * period)
        self._effort, self._rate = np.asarray(limits.effort, float), np.asarray(limits.rate, float) * period
        low, high = np.asarray(limits.position, float).T
        self.fastest = (1 - AWAY) * np.asarray(limits.velocity, float)
        width = AWAY * np.where(np.isfinite(high - low), high - low, 0.0)
        self.inside = low + width, high - width
        self._gain = 1.0 - math.exp(-period / LEARNED)
        self._flying_for = math.ceil(delay / period - 1e-6)
        self._watchdog = Watchdog(self.braking, limits, period)
        self.clearance = None if limits.clearance is None else Clearance(robot, limits.clearance, limits.workspace)
        self.interventions: dict[str, int] = {}
        self.stopped: str | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the past, but not an emergency stop."""
        self.policy.reset()
        self._held: dict[int, _Hold] = {}  # of plants that brake
        self._sent: list[Array] = []  # in force since the readings before, and on its way
        self._known: Array | None = None  # where the robot is, by dead reckoning where it cannot be read
        self._watchdog.forget()

    def release(self) -> None:
        """Take the emergency stop back."""
        self.stopped = self._known = None
        self._held = {}
        self._watchdog.forget()

    def stop(self, reason: str) -> None:
        """Latch the emergency stop."""
        self.stopped = self.stopped or reason

    def act(self, estimate: Estimate, t: float) -> Array:
        """Return commands (n, A) that are safe."""
        state = np.asarray(estimate.state, float)
        n, actions = len(state), len(self._effort)
        if not self._sent or len(self._sent[0]) != n:
            self._sent, self._known = [np.zeros((n, actions))] * (self._flying_for + 1), None
            self._push = np.zeros((n, actions))  # acceleration that holding takes beyond the model
            self._unread, self._time = np.zeros(n, bool), t - self.period
            self._watchdog.forget()
        wrong, at, blind = self._watchdog.look(state, estimate.reading, t, self._known, self._sent[0])
        if wrong is not None:
            self.stop(wrong)
        asked = None if self.stopped else self._ask(estimate, t)
        if at is None:  # nothing was ever known
            return self._note(np.zeros((n, actions)))
        if self.stopped:  # a robot that is held rests on what can be read
            at = np.where(blind[:, None], at, state)
        braking, out, known = self.braking, np.empty((n, actions)), np.empty_like(state)
        # what came about while nothing was read did not come about in a period
        unread, self._unread = blind | self._unread, blind
        self._beyond = self._unforeseen(at, unread, t)
        flying, half = self._sent[1:], state.shape[1] // 2
        for i in range(n):
            there, here = at[i], braking.dynamics(at[i])
            first = here
            for sent in flying:
                there = braking.after(there, here, sent[i], self.period)
                if i in self._held:  # what it was sent makes up for what the model does not have
                    there[half:][braking.driven] -= self.period * self._push[i]
                    there[:half][braking.driven] -= 0.5 * self.period**2 * self._push[i]
                here = braking.dynamics(there)
            out[i] = self._one(i, there, here, None if asked is None else asked[i], bool(blind[i]))
            known[i] = braking.after(at[i], first, flying[0][i] if flying else out[i], self.period)
        self._known = known
        return self._note(out)

    def _note(self, sent: Array) -> Array:
        self._sent = [*self._sent[1:], sent]
        return sent.copy()

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

    def _one(self, i: int, state: Array, here: Dynamics, asked: Array | None, blind: bool) -> Array:
        """Return a safe command (A,) for plant i, that will be at `state` (X,) when it takes effect."""
        braking, half = self.braking, len(state) // 2
        q, v = state[:half][braking.driven], state[half:][braking.driven]
        if asked is None:
            self._count("emergency stop")
            if blind:  # what is only reckoned is no place to go back to
                stood = i in self._held and not np.isnan(self._held[i].place).any()
                return braking.command(here, -v, self._push[i] if stood else 0.0)
            place, push = self._place(i, q, v)
            return self._brake(here, place, q, v, push)
        limited = np.minimum(np.maximum(asked, -self._effort), self._effort)
        if (limited != asked).any():
            self._count("effort")
        sent = self._sent[-1][i]
        slower = np.minimum(np.maximum(limited, sent - self._rate), sent + self._rate)
        if (slower != limited).any():
            self._count("rate")
        known = braking.within(state)
        if known and self._safe(state, here, slower[None])[0]:
            self._held.pop(i, None)
            return np.asarray(slower)
        self._count("braking")
        place, push = self._place(i, q, v)
        brake = self._brake(here, place, q, v, push)
        if not known:
            return brake
        # the furthest way from braking to what was asked for that is safe
        commands = brake + SHARES[:, None] * (slower - brake)
        found = self._safe(state, here, commands)
        if found.any():
            self._held.pop(i, None)
            return np.asarray(commands[int(found.argmax())])
        return brake

    def _brake(self, here: Dynamics, place: Array, q: Array, v: Array, push: Array | float = 0.0) -> Array:
        """Return the command that brakes, and goes to a place within the stops."""
        low, high = self.inside
        back = (np.minimum(np.maximum(place, low), high) - q) / BACK
        return self.braking.command(here, back - v, push)

    def _safe(self, state: Array, here: Dynamics, commands: Array) -> NDArray[np.bool_]:
        """Return which of commands (S, A) are safe; with a clearance, no more than the first one of them."""
        driven, half = self.braking.driven, len(state) // 2
        change = here.acceleration(commands)
        change, unsure = change[:, driven], here.unsure(change)[:, driven]
        found = self._can_stop(state[:half][driven], state[half:][driven], change, unsure)
        if self.clearance is not None and found.any():
            found = self._first_away(state, change, unsure, found)
        return found

    def _place(self, i: int, q: Array, v: Array) -> tuple[Array, Array]:
        """Return where plant i is held, each joint where it first stood still, and what it takes beyond the model.

        A robot that is heavier than its model sinks and never stands still: it is held where it should have stood.
        """
        steady = self.braking.deceleration
        if i not in self._held:
            self._held[i] = _Hold(np.full_like(q, np.nan), np.abs(v) / steady + self.braking.fade)
        hold, push, most = self._held[i], self._push[i], self.braking.quickest
        hold.left -= self.period
        stands = (np.abs(v) <= STILL * self.period * steady) | (hold.left <= 0)
        hold.place[:] = np.where(np.isnan(hold.place) & stands, q, hold.place)
        stood = ~np.isnan(hold.place)
        # while it is slowed down, velocities lag, and what the model misses cannot be told from that
        if stood.any():
            push[:] = np.where(stood, push - self._gain * (push + self._beyond[i]), push)
            np.clip(push, -most, most, out=push)
        # what was learned elsewhere must not make it slow down any less
        return np.where(stood, hold.place, q), np.where(stood | (push * v < 0), push, 0.0)

    def _unforeseen(self, at: Array, unread: NDArray[np.bool_], t: float) -> Array:
        """Return by how much plants, now `at` (n, X), were accelerated beyond what the model said: (n, A)."""
        late, self._time = abs(t - self._time - self.period) > 0.5 * self.period, t
        half, driven = at.shape[1] // 2, self.braking.driven
        if self._known is None or late:
            return np.zeros((len(at), len(driven)))
        beyond = (at - self._known)[:, half:][:, driven] / self.period
        return np.where(unread[:, None], 0.0, beyond)

    def _can_stop(self, q: Array, v: Array, acceleration: Array, unsure: Array) -> NDArray[np.bool_]:
        """Return whether joints are within their limits after a period of (S, A), and can still stop before they leave
        them: (S,)."""
        dt, (low, high) = self.period, self.inside
        change, doubt = dt * acceleration, dt * unsure
        # forwards, and backwards as if that were forwards: the furthest that a period takes it, and then its braking
        # distance
        fast = np.array([v + change + doubt, doubt - v - change])
        ahead = np.array([v, -v])[:, None]
        onwards = np.maximum(fast, 0)
        reach = dt * np.maximum(ahead, onwards) + self.braking.distance(onwards)
        within = (reach <= np.array([high - q, q - low])[:, None]) & (fast <= self.fastest)
        return np.asarray(within.all((0, -1)))

    def _first_away(self, state: Array, change: Array, unsure: Array, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the first of accelerations (S, A), the furthest from braking first, that keep away: (S,).

        What is closer to braking keeps away where it does further from it; that is what halving relies on.
        """
        rows = np.flatnonzero(among)
        out, low, high = np.zeros(len(among), bool), 0, len(rows)
        while low < high:
            middle = (low + high) // 2
            if self._keeps_away(state, change[rows[middle]], unsure[rows[middle]]):
                high = middle
            else:
                low = middle + 1
        if low < len(rows):
            out[rows[low]] = True
        return out

    def _keeps_away(self, state: Array, change: Array, unsure: Array) -> bool:
        """Return whether the clearance is kept through a period of acceleration `change`, and until a standstill."""
        assert self.clearance is not None
        return all(
            self.clearance.kept(stopping(self.braking, state, a, self.period, slows), leaving=True)
            for a, slows in ((change - unsure, None), (change + unsure, None), (change, self.braking.quickest))
        )

    def _count(self, reason: str) -> None:
        self.interventions[reason] = self.interventions.get(reason, 0) + 1


def stopping(braking: Braking, state: Array, change: Array, period: float, slows: Array | None = None) -> Array:
    """Return the way (S + 3, V) of all joints from a state (X,) through a period, and on until the driven ones stand.

    Args:
        braking: how they stop; the joints that nothing drives are left where they are.
        state: positions, then velocities.
        change: (A,) acceleration in the period.
        period: [s].
        slows: (A,) deceleration after it; that which can be relied on, fading at the end, if not given.
    """
    half, driven = len(state) // 2, braking.driven
    q, v = state[:half][driven], state[half:][driven]
    after = v + period * change
    there = q + 0.5 * period * (v + after)
    steady = braking.deceleration if slows is None else slows
    stands = np.abs(after) / steady
    t = np.minimum(np.linspace(0, 1, STRETCHES + 1)[:, None] * stands.max(), stands)
    way = np.tile(state[:half], (STRETCHES + 3, 1))
    way[1:-1, driven] = there + after * t - 0.5 * np.sign(after) * steady * t**2
    way[-1] = way[-2]
    if slows is None:
        way[-1, driven] = there + np.sign(after) * braking.distance(np.abs(after))
    return way


def viable(safety: SafetyFilter, states: Array) -> NDArray[np.bool_]:
    """Return from which states (n, X) braking at once, as slowly as can be relied on, keeps what the filter keeps:
    (n,)."""
    half, driven = states.shape[1] // 2, safety.braking.driven
    q, v = states[:, :half][:, driven], states[:, half:][:, driven]
    low, high = safety.inside
    reach = np.sign(v) * safety.braking.distance(np.abs(v)) + v * safety.period
    within = (np.maximum(q, q + reach) <= high) & (np.minimum(q, q + reach) >= low)
    good = np.asarray((within & (np.abs(v) <= safety.fastest)).all(1))
    if safety.clearance is not None:
        none = np.zeros(len(driven))
        for i in np.flatnonzero(good):
            way = stopping(safety.braking, states[i], none, safety.period)
            good[i] = safety.clearance.kept(way)
    return good
