"""Windows that grow: long ones say more of a model that is right, and are come to by way of shorter ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sim2real.calibration.shooting import ShootingProblem
from sim2real.episodes import Array, Episode

# The first length [s], and the factor from one to the next.
FIRST, GROWTH = 0.5, 4.0
# How many times a change of the start positions may be magnified within a window of a length that is chosen.
MAGNIFIED = 50.0


def next_length(length: float, limit: float, longest: float) -> float:
    """Return the length of windows that comes after one, the first after zero, the last being the limit [s]."""
    following = GROWTH * length if length else FIRST
    return following if following < min(limit, longest) / 2 else limit


def longest_possible(episodes: Sequence[Episode]) -> float:
    """Return the longest windows [s] that every recording has one of; infinite where all can be replayed as a whole."""
    if not any(e.excluded for e in episodes):
        return np.inf
    stretches = []
    for episode in episodes:
        cuts = sorted(t for pair in episode.excluded for t in pair)
        ends = [float(episode.observed_at[0]), *cuts, float(episode.observed_at[-1])]
        stretches.append(max(b - a for a, b in list(pairwise(ends))[::2]))
    return float(np.floor(max(min(stretches), FIRST) / FIRST) * FIRST)


def foreseeable(problem: ShootingProblem, x: Array) -> float:
    """Return how long motions of all windows can be told from their start [s]; infinite where they all can be.

    Beyond it a change of the start positions, and much the same a change of a parameter, is magnified so much that
    the error has many local minima.
    """
    reach = np.inf
    for part in problem.parts:
        _, by_state = part.by_start(x[part.columns])
        magnified = np.abs(by_state[..., : by_state.shape[-1] // 2]).max((2, 3)) > MAGNIFIED
        if magnified.any():
            reach = min(reach, float(part.windows.offset[magnified].min()) * part.plant.timestep)
    return reach
