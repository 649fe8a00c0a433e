"""Policies: what turns an estimate into a command."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sim2real.episodes import Array
from sim2real.estimation import Estimate


class Policy(Protocol):
    """A planner, a user's policy, a fallback; for a batch of n plants at once."""

    def reset(self) -> None:
        """Forget the past."""
        ...

    def act(self, estimate: Estimate, t: float) -> Array:
        """Return the commands (n, A) for the plants of `estimate` at time `t` [s]."""
        ...


class Damping:
    """The safe fallback: brakes every joint, `command = -gain * velocity`, within the limits.

    Args:
        gain: [effort per unit of velocity].
        limit: (A,) largest command.
    """

    def __init__(self, gain: float, limit: Array) -> None:
        self.gain, self.limit = gain, limit

    def reset(self) -> None:
        pass

    def act(self, estimate: Estimate, t: float) -> Array:
        d = estimate.state.shape[1] // 2
        return np.clip(-self.gain * estimate.state[:, d : d + len(self.limit)], -self.limit, self.limit)
