"""Whether readings can be relied on."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array
from sim2real.estimation import Estimate
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
        self._same: NDArray[np.int_] | None = None

    def look(self, estimate: Estimate, t: float, expected: Array | None, sent: Array) -> tuple[str | None, bool]:
        """Return what is wrong with readings, if anything is, and whether they are good for nothing.

        Args:
            estimate: of n plants.
            t: now [s].
            expected: (n, X) states by dead reckoning, where they are known.
            sent: (n, A) command that was in force since the readings before.
        """
        state = np.asarray(estimate.state, float)
        elapsed = self.period if self._time is None else t - self._time
        self._time = t
        if not np.isfinite(state).all():
            return "readings are not finite", True
        read = state[:, : state.shape[1] // 2] if estimate.reading is None else np.asarray(estimate.reading)
        frozen = self._frozen(state, read, sent)
        if not 0 < elapsed <= LATE * self.period:
            return f"readings are late: {1e3 * elapsed:.0f} ms after the last one", False
        if frozen is not None:
            return frozen, True
        jump = self._jump(read, expected, elapsed)
        return jump, jump is not None

    def _jump(self, read: Array, expected: Array | None, elapsed: float) -> str | None:
        if expected is None:
            return None
        away = read - expected[:, : read.shape[1]]
        turns = np.round(away / (2 * np.pi)) * 2 * np.pi  # a hinge's reading may begin anew after a turn
        away = np.abs(np.where(self._hinge, away - turns, away))
        far = away > MOVED + elapsed * self._fastest
        if not far.any():
            return None
        joint = int(far.any(0).argmax())
        name = self.braking.robot.joint_names[joint]
        return f"readings jump: {name} is {away[:, joint].max():.2g} from where it can be"

    def _frozen(self, state: Array, read: Array, sent: Array) -> str | None:
        same = np.zeros(len(read), bool) if self._seen is None else (read == self._seen).all(1)
        if self._same is None or self._seen is None:
            self._same, self._reckoned = np.zeros(len(read), int), state.copy()
        self._seen, self._same = read.copy(), np.where(same, self._same + 1, 0)
        found = None
        for i in range(len(read)):
            if not same[i]:
                self._reckoned[i] = state[i]
                continue
            if self._same[i] > self._patience:  # at rest: what is reckoned drifts
                continue
            here = self.braking.dynamics(self._reckoned[i])
            self._reckoned[i] = self.braking.after(self._reckoned[i], here, sent[i], self.period)
            gone = np.abs(self._reckoned[i] - state[i])[: state.shape[1] // 2][self.braking.driven]
            if self._same[i] == self._patience and (gone > MOVED).any():
                found = f"readings have not changed for {self._same[i]} periods"
        return found
