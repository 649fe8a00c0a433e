"""Fallbacks: policies that need no world model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.estimation import Estimate
from sim2real.motors import gears
from sim2real.randomization import RobotModel


class Damping:
    """Brakes every driven joint, `command = -gain * velocity`, within the limits.

    Args:
        gain: [effort per unit of velocity].
        limit: (A,) largest command.
        driven: (A,) the joint of each command; the first ones if not given.
    """

    def __init__(self, gain: float, limit: Array, driven: NDArray[np.int_] | None = None) -> None:
        self.gain, self.limit = gain, np.atleast_1d(np.asarray(limit, float))
        self.driven = np.arange(len(self.limit)) if driven is None else np.asarray(driven, int)

    def reset(self) -> None:
        """There is nothing to forget."""

    def act(self, estimate: Estimate, t: float) -> Array:
        """Return commands (n, A)."""
        return np.asarray(np.clip(self.wanted(estimate), -self.limit, self.limit))

    def wanted(self, estimate: Estimate) -> Array:
        """Return commands before they are limited: (n, A)."""
        d = estimate.state.shape[1] // 2
        return np.asarray(-self.gain * estimate.state[:, d + self.driven])


class Hold(Damping):
    """Brakes, and then holds every driven joint where it came to rest: PD control, gravity compensated where asked for.

    Where a joint is to be held follows it at the distance at which the spring pulls with `strength`, like a foot that
    slips, so that it need not be told when it takes over, and never jumps.

    Args:
        gain: of the damping [effort per unit of velocity].
        limit: (A,) largest command.
        stiffness: of the spring [effort/rad or effort/m]; zero for gravity compensation alone.
        strength: share of the limit that the spring may pull with.
        gravity: a robot with a motor a joint, whose weight is carried, as its file has it; then gain and stiffness are
            those at the joint, behind its gear. None is carried if not given.
        driven: (A,) the joint of each command; of `gravity`, or the first ones, if not given.

    Raises:
        ModelError: the stiffness is below zero, the strength not between 0 and 1, or the robot's actuators no motors.
    """

    def __init__(
        self,
        gain: float,
        limit: Array,
        stiffness: float,
        *,
        strength: float = 0.5,
        gravity: RobotModel | None = None,
        driven: NDArray[np.int_] | None = None,
    ) -> None:
        if stiffness < 0 or not 0 < strength <= 1:
            raise ModelError(
                f"holding needs a stiffness of 0 or more and a strength of 0 to 1, found {stiffness:g} and {strength:g}"
            )
        super().__init__(gain, limit, gravity.driven if driven is None and gravity is not None else driven)
        self.stiffness, self.gravity = stiffness, gravity
        self.gears: Array = np.ones(len(self.limit)) if gravity is None else gears(gravity)
        pull = strength * self.limit * np.abs(self.gears)
        self.slack: Array = pull / stiffness if stiffness else np.full(len(self.limit), np.inf)
        if gravity is not None:
            import mujoco

            self._data = mujoco.MjData(gravity.mj)
        self.reset()

    def reset(self) -> None:
        """Forget where joints are to be held."""
        self._at: Array | None = None

    def wanted(self, estimate: Estimate) -> Array:
        """Return commands before they are limited: (n, A)."""
        where = estimate.state[:, self.driven]
        if self._at is None or len(self._at) != len(where):
            self._at = where.copy()
        # what cannot be read moves nothing, and one that could not be read at first is held where it is read
        known = np.where(np.isfinite(self._at), self._at, where)
        self._at = np.where(np.isfinite(where), np.clip(known, where - self.slack, where + self.slack), known)
        effort = super().wanted(estimate) + self.stiffness * (self._at - where) + self._weight(estimate)
        return np.asarray(effort / self.gears)

    def _weight(self, estimate: Estimate) -> Array:
        """Return what carries the robot's weight: (n, A)."""
        if self.gravity is None:
            return np.zeros(1)
        import mujoco

        joints, out = estimate.state.shape[1] // 2, []
        self._data.qvel[:] = 0.0
        for positions in estimate.state[:, :joints]:
            self._data.qpos[:] = positions
            mujoco.mj_forward(self.gravity.mj, self._data)
            out.append((self._data.qfrc_bias - self._data.qfrc_passive)[self.driven])
        return np.stack(out)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "_data"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if self.gravity is not None:
            import mujoco

            self._data = mujoco.MjData(self.gravity.mj)
