"""A twin as a Gymnasium environment: what stands where a robot will."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from sim2real.episodes import Array
from sim2real.twin import RunningTwin, Twin


class TwinEnv(gym.Env[Array, Array]):
    """Observations are the twin's readings, actions its commands; there is no reward.

    Args:
        twin: the simulated robot.
        limit: (A,) largest command.
        period: of the control loop [s].
        seconds: that an episode lasts [s].
        spread: half width of the uniform start positions around hanging at rest [rad or m].
    """

    def __init__(self, twin: Twin, limit: Array, period: float, seconds: float = 10.0, spread: float = 0.5) -> None:
        self.twin, self.period, self.steps, self.spread = twin, period, max(round(seconds / period), 1), spread
        self.limit = np.asarray(limit, float)
        self.action_space = gym.spaces.Box(-self.limit, self.limit, dtype=np.float64)
        width = len(twin.channels.observations)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (width,), dtype=np.float64)
        self.names = [name for name, _ in twin.channels.observations]
        self.dt = period
        self._running: RunningTwin | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start near hanging at rest."""
        super().reset(seed=seed)
        dof = self.twin.plant.degrees_of_freedom
        state = np.zeros((1, 2 * dof))
        state[:, :dof] = self.np_random.uniform(-self.spread, self.spread, dof)
        self._running, self._step = self.twin.start(state, int(self.np_random.integers(2**31))), 0
        return self._running.reading[0].copy(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Hold a command for a period."""
        if self._running is None:
            raise gym.error.ResetNeeded("reset a TwinEnv before its first step")
        command = np.clip(np.asarray(action, float), -self.limit, self.limit)
        reading = self._running.step(command[None], self.period)[0]
        self._step += 1
        return reading.copy(), 0.0, False, self._step >= self.steps, {"state": self._running.state()[0]}
