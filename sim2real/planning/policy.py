"""Policies: what turns an estimate into a command."""

from __future__ import annotations

from typing import Protocol

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
