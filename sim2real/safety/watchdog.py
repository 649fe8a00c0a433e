"""Whether readings can be relied on."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array
from sim2real.safety.braking import Braking
from sim2real.safety.limits import Limits

# A period may be longer than it should be by this factor before readings are late.
LATE = 2.5
# A reading that stays the same to the bit for so long [s] has stopped, if the robot must have moved so far [rad or m].
FROZEN, MOVED = 0.1, 0.05


class Watchdog:
    """Tells readings that are not finite, late, or frozen, and those that no robot within its limits could give.

    Args:
        braking: where the robot should be by now.
        limits: a reading that is further from there than the robot gets in a period has jumped.
        period: of the loop [s].
    """

    def __init__(self, braking: Braking, limits: Limits, period: float) -> None:
        self.braking, self.period = braking, period
        mj = braking.robot.mj
        self._fastest = np.full(mj.nv, limits.free)
        self._fastest[braking.driven] = limits.velocity
        self._hinge = mj.jnt_type == int(mujoco.mjtJoint.mjJNT_HINGE)
        self._patience = max(round(FROZEN / period), 3)
        self.forget()

    def forget(self) -> None:
        """Forget the past."""
        self._time: float | None = None
        self._seen: Array | None = None
        self._same: NDArray[np.int_] = np.zeros(0, int)  # for how many periods
        self._lost: NDArray[np.bool_] = np.zeros(0, bool)  # whether they should have changed

    def look(
        self, state: Array, reading: Array | None, t: float, expected: Array | None, sent: Array
    ) -> tuple[str | None, Array | None, NDArray[np.bool_]]:
        """Return what is wrong with readings, if anything is; the states (n, X) to go by, None if nothing is known; and
        which plants (n,) cannot be read.

        As long as a reading stays the same, its plant goes by dead reckoning for a while, though nothing is wrong yet.

        Args:
            state: (n, X) as it is estimated.
            reading: (n, V) of the positions, where they are known beside it.
            t: now [s].
            expected: (n, X) states by dead reckoning, where they are known.
            sent: (n, A) command that was in force since the readings before.
        """
        elapsed = self.period if self._time is None else t - self._time
        self._time = t
        missing = np.asarray(~np.isfinite(state).all(1), bool)
        if missing.any():
            at = None if expected is None else np.where(missing[:, None], expected, state)
            return "readings are not finite", at, missing
        read = state[:, : state.shape[1] // 2] if reading is None else np.asarray(reading)
        at = self._reckon(state, read, sent, expected)
        if not 0 < elapsed <= LATE * self.period:
            return f"readings are late: {1e3 * elapsed:.0f} ms after the last one", state, missing
        far = np.zeros((len(read), 1), bool) if expected is None else self._jumped(read, expected, elapsed)
        self._lost |= far.any(1) & (self._same > 0)
        jumped = far.any(1) & ~self._lost
        if self._lost.any():
            reason = f"readings have not changed for {self._same[self._lost].max()} periods"
        elif jumped.any():
            reason = f"readings jump: {self.braking.robot.joint_names[far.any(0).argmax()]} is where it cannot be"
        else:
            return None, at, missing
        blind = self._lost | jumped
        return reason, at if expected is None else np.where(blind[:, None], expected, at), blind

    def _jumped(self, read: Array, expected: Array, elapsed: float) -> NDArray[np.bool_]:
        """Return which joints (n, V) are further from where they should be than they can get."""
        away, reach = read - expected[:, : read.shape[1]], MOVED + elapsed * self._fastest
        if (np.abs(away) <= reach).all():
            return np.zeros(away.shape, bool)
        turns = np.round(away / (2 * np.pi)) * 2 * np.pi  # a hinge's reading may begin anew after a turn
        away = np.abs(np.where(self._hinge, away - turns, away))
        return np.asarray(away > reach)

    def _reckon(self, state: Array, read: Array, sent: Array, expected: Array | None) -> Array:
        """Return the states to go by: those of plants whose readings stay the same by dead reckoning, for a while."""
        if self._seen is None:
            self._same, self._lost = np.zeros(len(read), int), np.zeros(len(read), bool)
            self._seen, self._reckoned = read.copy(), state.copy()
            return state
        same = (read == self._seen).all(1)
        self._seen, self._same = read.copy(), np.where(same, self._same + 1, 0)
        self._lost &= same
        for i in range(len(read)):
            if self._lost[i] and expected is not None:
                self._reckoned[i] = expected[i]
            elif not same[i] or self._same[i] > self._patience:  # after that it is at rest: what is reckoned drifts
                self._reckoned[i] = state[i]
            else:
                here = self.braking.dynamics(self._reckoned[i])
                self._reckoned[i] = self.braking.after(self._reckoned[i], here, sent[i], self.period, True)
                gone = np.abs(self._reckoned[i] - state[i])[: state.shape[1] // 2][self.braking.driven]
                self._lost[i] = self._same[i] == self._patience and (gone > MOVED).any()
        return self._reckoned.copy() if same.any() else state
